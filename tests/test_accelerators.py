"""What a training chunk is on accelerators, read in the programs that are exported for them."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import fdl
from fdl.train.program import advance, one_step, zero_means

PLATFORMS = ("cuda", "tpu")
# (network, the shape of an example, convolutions in the forward pass, loops in the step)
NETWORKS = {
    "lenet": (lambda: fdl.lenet(10), (8, 8, 1), 2, 0),
    # One convolution before two blocks, two in each of them, and one in a shortcut.
    "resnet": (lambda: fdl.resnet(10, (1, 1), width=4), (8, 8, 3), 6, 0),
    "one axis": (
        lambda: fdl.chain(
            fdl.conv(4, (3,), stride=2),
            fdl.depthwise_conv((3,)),
            fdl.conv(6, (2,), groups=2),
            fdl.conv_transpose(4, (2,), stride=2),
            fdl.max_pool((2,)),
            fdl.global_average_pool(),
            fdl.dense(10),
        ),
        (16, 3),
        4,
        0,
    ),
    "vit": (lambda: fdl.vit(10, 8, 4, 1, 2, 8), (8, 8, 3), 0, 0),
    # One loop over time, and one for its gradient.
    "lstm": (lambda: fdl.chain(fdl.lstm(6, returns="last"), fdl.dense(10)), (5, 3), 0, 2),
}


@functools.cache
def chunk(name, dtype=None):
    """(the compiled chunk of steps, its arguments)."""
    make, shape, *_ = NETWORKS[name]
    model = make() if dtype is None else fdl.compute_in(make(), dtype)
    x, y = jnp.ones((8, *shape)), jnp.zeros(8, jnp.int32)
    params, state = model.init(jax.random.key(0), x)
    objective = fdl.supervised(model, fdl.softmax_cross_entropy)
    optimizer = fdl.sgd(0.1, momentum=0.9)
    run = fdl.start(params, optimizer, state=state)
    how = {"objective": objective, "optimizer": optimizer, "batch_size": 4}
    means = zero_means(run, *one_step.eval_shape(run, (x, y), **how))
    return jax.jit(functools.partial(advance, **how)), (run, means, (x, y), np.int32(3))


def exported(name, platform, dtype=None):
    program, arguments = chunk(name, dtype)
    return export.export(program, platforms=(platform,))(*arguments).mlir_module()


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_chunk_has_the_convolutions_of_xla_no_other_loops_and_no_call_of_the_host(name, platform):
    _, _, layers, loops = NETWORKS[name]
    text = exported(name, platform)
    found = Counter(re.findall(r"stablehlo\.([a-z_]+)", text))
    # Forward, and the two gradients; the first layer needs no gradient with respect to its input.
    assert found["convolution"] == max(0, 3 * layers - 1)
    # The loop over the steps is the only one that does not belong to the network.
    assert found["while"] == 1 + loops
    assert {"custom_call", "infeed", "outfeed", "send", "recv"} & found.keys() == set()


def test_a_call_of_the_host_cannot_be_exported_here():
    """So the test above sees each one, however it is called in a program."""
    shout = jax.jit(lambda x: jax.debug.print("{x}", x=x) or x)
    with pytest.raises(ValueError, match="cpu is different from the lowering platform cuda"):
        export.export(shout, platforms=("cuda",))(1.0)


def test_half_precision_stays_half_on_accelerators():
    """On CPU, convolutions of bfloat16 are computed in float32, and products have other forms."""
    text = exported("lenet", "cuda", "bfloat16")
    for operation, count in {"convolution": 5, "dot_general": 6}.items():
        kinds = re.findall(rf"stablehlo\.{operation}.*?: \((.*?)\) -> tensor<(.*?)>", text)
        assert len(kinds) == count
        for operands, result in kinds:
            assert operands.count("bf16") == 2 and result.endswith("bf16")
    assert "optimization_barrier" not in text


SEEDED_BUGS = {
    "fdl/ops/convolution.py": (
        "test_accelerators.py",
        [
            ("bilinear(name, by_xla, on_cpu", "bilinear(name, on_cpu, on_cpu"),
        ],
    ),
    "fdl/ops/primitives.py": (
        "test_accelerators.py",
        [('"default": anywhere', '"default": on_cpu')],
    ),
    "fdl/ops/bfloat16_products.py": (
        "test_accelerators.py",
        [('"product_in_bfloat16", _anywhere,', '"product_in_bfloat16", _on_cpu,')],
    ),
    "fdl/train/program.py": (
        "test_accelerators.py",
        [
            (
                "return train_step(objective, optimizer, run, data, batch_size, microbatch)",
                "jax.debug.print('{}', run.step)\n"
                "    return train_step(objective, optimizer, run, data, batch_size, microbatch)",
            ),
        ],
    ),
}
