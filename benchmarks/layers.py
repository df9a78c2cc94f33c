"""Layers beside those of torch: a forward pass and both gradients, and an update of the weights.

In fdl, the steps are a loop inside one compiled program, as in training; in torch, they are eager,
as torch's documentation recommends for layers of this size. Images are channels last in both. It
needs torch (pip install -e '.[peers]').
"""

import os

import jax
import jax.numpy as jnp
import measure
import numpy as np

import fdl

SMALL = 1e-6  # the learning rate: the numbers hardly change, but no step can be left out
SECONDS = 0.3  # of a timed run
PAIRS = 7


def cases(nn):
    """Name -> (layer of fdl, function that makes torch's, shape of x, number of spatial axes)."""
    images, small = (64, 32, 32, 16), (64, 8, 8, 64)
    convolution, transposed = nn.Conv2d, nn.ConvTranspose2d
    return {
        "dense 512": (fdl.dense(512), lambda: nn.Linear(512, 512), (128, 512), 0),
        "dense 32": (fdl.dense(32), lambda: nn.Linear(32, 32), (128, 32), 0),
        "conv 3x3, 1 to 32": (
            fdl.conv(32, (3, 3)), lambda: convolution(1, 32, 3, padding=1), (128, 28, 28, 1), 2),
        "conv 3x3, 3 to 16": (
            fdl.conv(16, (3, 3)), lambda: convolution(3, 16, 3, padding=1), (64, 32, 32, 3), 2),
        "conv 3x3, 16 to 16": (
            fdl.conv(16, (3, 3)), lambda: convolution(16, 16, 3, padding=1), images, 2),
        "conv 3x3, 64 to 64": (
            fdl.conv(64, (3, 3)), lambda: convolution(64, 64, 3, padding=1), small, 2),
        "conv 1x1, 64 to 256": (fdl.conv(256, (1, 1)), lambda: convolution(64, 256, 1), small, 2),
        "conv 3x3, stride 2": (
            fdl.conv(32, (3, 3), stride=2, padding=((1, 1), (1, 1))),
            lambda: convolution(16, 32, 3, stride=2, padding=1), images, 2),
        "conv 3x3, dilation 2": (
            fdl.conv(16, (3, 3), dilation=2),
            lambda: convolution(16, 16, 3, dilation=2, padding=2), images, 2),
        "conv 3x3, 16 groups of 1": (
            fdl.conv(16, (3, 3), groups=16),
            lambda: convolution(16, 16, 3, padding=1, groups=16), images, 2),
        "conv 5, in 1-D": (
            fdl.conv(32, (5,)), lambda: nn.Conv1d(16, 32, 5, padding=2), (64, 128, 16), 1),
        "conv 3x3x3, in 3-D": (
            fdl.conv(16, (3, 3, 3)), lambda: nn.Conv3d(8, 16, 3, padding=1), (8, 16, 16, 16, 8), 3),
        "conv_transpose 2x2, stride 2": (
            fdl.conv_transpose(16, (2, 2), stride=2),
            lambda: transposed(64, 16, 2, stride=2), small, 2),
        "max_pool 2x2": (fdl.max_pool((2, 2)), lambda: nn.MaxPool2d(2), images, 2),
        "average_pool 2x2": (fdl.average_pool((2, 2)), lambda: nn.AvgPool2d(2), images, 2),
        "batch_norm": (fdl.batch_norm(), lambda: nn.BatchNorm2d(16), images, 2),
        "group_norm": (fdl.group_norm(4), lambda: nn.GroupNorm(4, 16), images, 2),
        "instance_norm": (
            fdl.instance_norm(), lambda: nn.InstanceNorm2d(16, affine=True), images, 2),
        "layer_norm": (fdl.layer_norm(), lambda: nn.LayerNorm(128), (16, 128, 128), 0),
        "rms_norm": (fdl.rms_norm(), lambda: nn.RMSNorm(128), (16, 128, 128), 0),
        "relu": (fdl.function(fdl.relu), nn.ReLU, images, 0),
        "gelu": (fdl.function(fdl.gelu), nn.GELU, images, 0),
        "silu": (fdl.function(fdl.silu), nn.SiLU, images, 0),
        "softmax": (fdl.function(fdl.softmax), lambda: nn.Softmax(-1), (16, 128, 128), 0),
        "dropout": (fdl.dropout(0.5), lambda: nn.Dropout(0.5), (128, 512), 0),
        "simple_recurrent 128": (
            fdl.simple_recurrent(128), lambda: _outputs(nn.RNN(64, 128, batch_first=True)),
            (32, 64, 64), 0),
        "lstm 128": (
            fdl.lstm(128), lambda: _outputs(nn.LSTM(64, 128, batch_first=True)), (32, 64, 64), 0),
        "gru 128": (
            fdl.gru(128), lambda: _outputs(nn.GRU(64, 128, batch_first=True)), (32, 64, 64), 0),
        "attention, 4 heads": (
            fdl.attention(4),
            lambda: _outputs(nn.MultiheadAttention(128, 4, batch_first=True)), (16, 128, 128), 0),
        "embedding, 1,000 ids": (
            fdl.embedding(1000, 128), lambda: nn.Embedding(1000, 128), (16, 128), 0),
    }  # fmt: skip


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--layers", nargs="+", metavar="WORD", help="only names with these words")
    chosen = parser.parse_args().layers
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    rows = []
    for name, (layer, make, shape, spatial) in cases(torch.nn).items():
        if chosen and not any(word in name for word in chosen):
            continue
        x = example(name, shape)
        ours, theirs = of_fdl(layer, x), of_torch(torch, make(), x, spatial)
        theirs(1)
        # As many steps in a run as torch takes in SECONDS.
        count = max(3, round(SECONDS * 3 / measure.seconds(lambda theirs=theirs: theirs(3))))
        timing = measure.paired(lambda: ours(count), lambda: theirs(count), PAIRS)
        rows.append(
            {
                "layer": name,
                "x": list(shape),
                "ratio": timing["ratio"],
                "low": timing["ratio_low"],
                "high": timing["ratio_high"],
                "ms": timing["seconds"] / count * 1e3,
                "torch_ms": timing["seconds_other"] / count * 1e3,
            }
        )
        print(f"{name}: {timing['ratio']:.2f}", flush=True)
    measure.report("layers", rows, torch=torch.__version__)


def example(name, shape):
    rng = np.random.default_rng(0)
    if name.startswith("embedding"):
        return rng.integers(0, 1000, shape).astype(np.int32)
    return rng.standard_normal(shape).astype(np.float32)


def of_fdl(layer, x):
    """A function that takes a number of steps of a layer of fdl, in one compiled program."""
    x, key = jnp.asarray(x), jax.random.key(1)
    params, state = layer.init(jax.random.key(0), x)
    y = jax.eval_shape(lambda p, x: layer.apply(p, state, x, key=key, train=True)[0], params, x)
    dy = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), jnp.float32)
    floating = jnp.issubdtype(x.dtype, jnp.floating)

    @jax.jit
    def run(count, params, state, x):
        def step(number, carry):
            params, state, x = carry

            def forward(params, x):
                y, new = layer.apply(
                    params, state, x, key=jax.random.fold_in(key, number), train=True
                )
                return (y * dy).sum(), new

            both = (0, 1) if floating else (0,)
            gradients, state = jax.grad(forward, both, has_aux=True)(params, x)
            params = jax.tree.map(lambda p, g: p - SMALL * g, params, gradients[0])
            return params, state, x - SMALL * gradients[1] if floating else x

        return jax.lax.fori_loop(0, count, step, (params, state, x))

    return lambda count: jax.block_until_ready(run(count, params, state, x))


def of_torch(torch, module, x, spatial):
    """The same of a module of torch, eager."""
    x = torch.from_numpy(x)
    if spatial:  # channels last in memory
        x = x.movedim(-1, 1)
    if spatial == 2:
        module = module.to(memory_format=torch.channels_last)
    floating = x.is_floating_point()
    if floating:
        x.requires_grad_()
    dy = torch.randn_like(module(x))
    weights = [*module.parameters(), *([x] if floating else [])]

    def run(count):
        for _ in range(count):
            module(x).backward(dy)
            with torch.no_grad():
                for weight in weights:
                    weight -= SMALL * weight.grad
                    weight.grad = None

    return run


def _outputs(module):
    """A module of torch that gives only the outputs of `module`, without states or weights."""
    import torch

    class Outputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            if isinstance(module, torch.nn.MultiheadAttention):
                return module(x, x, x, need_weights=False)[0]
            return module(x)[0]

    return Outputs()


if __name__ == "__main__":
    main()
