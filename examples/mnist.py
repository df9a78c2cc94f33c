"""A network learns to read MNIST: 60,000 handwritten digits of 28 x 28 pixels.

This is examples/digits.py with MNIST. The files are read from the folder in the environment
variable FDL_DATA, or downloaded once (11 MB). By default, the network is 784-512-512-10 with
dropout, the same as in Keras's examples, which report an accuracy of 98.40 % after 20 epochs.
"""

import digits
import report

import fdl


def main(arguments=None):
    given = options(arguments)
    digits.learn(report.mnist(given.data), given, scale=1 / 255)


def options(arguments=None):
    parser = report.parser(
        __doc__,
        hidden=[512, 512],
        dropout=0.2,
        optimizer="momentum",
        rate=0.1,
        batch=128,
        epochs=20,
        seed=0,
        out="out/mnist",
    )
    parser.add_argument("--data", metavar="FOLDER", help=report.DATA)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    fdl.use_compilation_cache()
    main()
