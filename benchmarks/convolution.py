"""Convolution and pooling in `lax.scan`, compared with no scan and with XLA.

Every layer is timed in float32: the forward pass, and the forward pass with the gradients with
respect to x and the weights. "inside" is a `lax.scan` of several passes, in which each pass waits
for the pass before it. "outside" is the same number of calls of one compiled pass. "XLA's own" is
the same pass with `lax.conv_general_dilated`, `lax.reduce_window` and similar functions, also in a
`lax.scan`.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import measure
import numpy as np

import fdl
from fdl.ops import convolution

PASSES = 3


def forms():
    """name -> (layer, the same layer with XLA's operations, the shape of x).

    The second layer is the first one itself if `by_xla` changes its operations, and None if there
    is none to compare with.
    """
    # Pooling is so fast that its time can be measured only with a large batch.
    image, deep, some, many = ((8, 28, 28, 32), *((n, 28, 28, 64) for n in (8, 32, 64)))
    window = functools.partial(jax.lax.reduce_window, padding="VALID")
    function = fdl.function

    def largest(k, s):
        sizes = {"window_dimensions": (1, k, k, 1), "window_strides": (1, s, s, 1)}
        pool = functools.partial(window, init_value=-jnp.inf, computation=jax.lax.max, **sizes)
        return function(pool)

    def mean(k, s):
        sizes = {"window_dimensions": (1, k, k, 1), "window_strides": (1, s, s, 1)}
        pool = functools.partial(window, init_value=0.0, computation=jax.lax.add, **sizes)
        return function(lambda x: pool(x) / k**2)

    def resized(method):
        return function(lambda x: jax.image.resize(x, (32, 56, 56, 64), method))

    both = {
        "3 x 3": (fdl.conv(64, (3, 3)), image),
        "stride 2": (fdl.conv(64, (3, 3), stride=2), image),
        "dilation 2": (fdl.conv(64, (3, 3), dilation=2), image),
        "1 x 1": (fdl.conv(64, (1, 1)), deep),
        "5 x 5, 1 to 6 channels": (fdl.conv(6, (5, 5)), (128, 28, 28, 1)),
        "3 x 3, 3 to 16 channels": (fdl.conv(16, (3, 3)), (64, 32, 32, 3)),
        "3 x 3, stride 2, 16 to 32 channels": (
            fdl.conv(32, (3, 3), stride=2),
            (64, 32, 32, 16),
        ),
        "7 x 7, stride 2, of 3 channels": (fdl.conv(64, (7, 7), stride=2), (8, 64, 64, 3)),
        "4 groups": (fdl.conv(64, (3, 3), groups=4), image),
        "depthwise": (fdl.depthwise_conv((3, 3)), deep),
        "separable": (fdl.separable_conv(64, (3, 3)), image),
        "1 axis": (fdl.conv(64, (5,)), (8, 512, 32)),
        "3 axes": (fdl.conv(32, (3, 3, 3)), (4, 12, 12, 12, 16)),
        "transposed, stride 2": (fdl.conv_transpose(32, (4, 4), stride=2), (8, 14, 14, 64)),
    }
    return {name: (layer, layer, shape) for name, (layer, shape) in both.items()} | {
        "max pooling 2": (fdl.max_pool((2, 2)), largest(2, 2), many),
        "max pooling 3, stride 2": (fdl.max_pool((3, 3), stride=2), largest(3, 2), many),
        "max pooling 14": (fdl.max_pool((14, 14)), largest(14, 14), many),
        "average pooling 2": (fdl.average_pool((2, 2)), mean(2, 2), many),
        "adaptive maximum to 7": (fdl.adaptive_max_pool((7, 7)), largest(4, 4), many),
        "adaptive mean to 5": (fdl.adaptive_average_pool((5, 5)), None, many),
        "global maximum": (fdl.global_max_pool(), function(lambda x: x.max((1, 2))), many),
        "global mean": (fdl.global_average_pool(), function(lambda x: x.mean((1, 2))), many),
        "nearest upsampling 2": (fdl.upsample((2, 2)), resized("nearest"), some),
        "linear upsampling 2": (fdl.upsample((2, 2), method="linear"), resized("linear"), some),
        "pixel shuffle 2": (fdl.pixel_shuffle(2), None, many),
        "pixel unshuffle 2": (fdl.pixel_unshuffle(2), None, many),
    }


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sweeps", type=int, default=3, help="number of sweeps over all forms")
    parser.add_argument("--only", default="", help="part of the names of forms; no file is written")
    options = parser.parse_args()
    taken = []
    for _ in range(options.sweeps):
        for name, (layer, other, shape) in forms().items():
            for way in ("forward", "with gradients") if options.only in name else ():
                taken.append(form(name, layer, other, shape, way, options.rounds))
                print(taken[-1], flush=True)
    rows = [
        median(taken[i :: len(taken) // options.sweeps])
        for i in range(len(taken) // options.sweeps)
    ]
    if options.only:
        print(*rows, sep="\n")
    else:
        measure.report("convolution", rows)


def median(rows):
    """The median of several rows of the same form, which were measured minutes apart."""
    numbers = ("ms", "inside_over_outside", "xla_over_fdl")
    return rows[0] | {
        each: statistics.median(row[each] for row in rows)
        for each in numbers
        if rows[0][each] is not None
    }


def form(name, layer, other, shape, way, rounds):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    params, _ = layer.init(jax.random.key(0), x)
    inside = scanned(one_pass(layer, way), params, x, PASSES)
    in_and_out = measure.paired(inside, repeated(one_pass(layer, way), params, x), rounds)
    row = {
        "form": name,
        "way": way,
        "ms": in_and_out["seconds"] / PASSES * 1e3,
        "inside_over_outside": in_and_out["seconds"] / in_and_out["seconds_other"],
        "xla_over_fdl": None,
    }
    if other is not None:
        # One pass of a convolution is enough: XLA can take hundreds of times as long as fdl.
        passes = 1 if other is layer else PASSES
        theirs = scanned(one_pass(other, way), params, x, passes)
        with by_xla():
            theirs()
        own = measure.seconds(theirs) / passes
        row["xla_over_fdl"] = own * PASSES / in_and_out["seconds"]
    return row


def one_pass(layer, way):
    def forward(params, x):
        return layer.apply(params, {}, x)[0]

    def with_gradients(params, x):
        y, back = jax.vjp(forward, params, x)
        return back(y)

    return forward if way == "forward" else with_gradients


def first(tree):
    """A number that depends on all results of a pass, but is too small to change the next pass."""
    return sum(leaf.ravel()[0] for leaf in jax.tree.leaves(tree)) * 1e-30


def scanned(run, params, x, passes):
    @jax.jit
    def loop(params, x):
        # The results are carried, so that XLA cannot leave any of them out.
        held = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(run, params, x))

        def body(carry, _):
            x, held = carry
            held = run(params, x)
            return (x + first(held), held), None

        return jax.lax.scan(body, (x, held), None, length=passes)[0]

    return lambda: jax.block_until_ready(loop(params, x))


def repeated(run, params, x):
    @jax.jit
    def once(params, x):
        held = run(params, x)
        return x + first(held), held

    def loop():
        y = x
        for _ in range(PASSES):
            y, held = once(params, y)
        jax.block_until_ready((y, held))

    return loop


class by_xla:
    """A context in which functions are traced with XLA's convolution and its gradients."""

    def __enter__(self):
        self.before = vars(convolution).copy()
        convolution._convolve = _Plain(convolution._convolve_by_xla)
        convolution._input_gradient = _Plain(convolution._input_gradient_by_xla)

    def __exit__(self, *_):
        convolution._convolve = self.before["_convolve"]
        convolution._input_gradient = self.before["_input_gradient"]


class _Plain:
    def __init__(self, bind):
        self.bind = bind


if __name__ == "__main__":
    main()
