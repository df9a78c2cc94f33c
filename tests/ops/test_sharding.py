"""Every layer on an explicit mesh of two devices, and inside `jax.shard_map`, is that on one."""

import os
import subprocess
import sys

import pytest

TWO = """
import dataclasses
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import fdl
from tests.registry import LAYERS

jax.config.update("jax_numpy_dtype_promotion", "strict")
EXPLICIT = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
MANUAL = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))


def of_two(case):
    '''The case with a batch of two.'''
    n = case.x[0]
    inputs = {name: (2, *s[1:]) if s[0] == n else s for name, s in case.inputs.items()}
    return dataclasses.replace(case, x=(2, *case.x[1:]), inputs=inputs)


def check(case):
    layer = case.make()
    x, inputs = jax.tree.map(jnp.asarray, of_two(case).data())
    params, state = layer.init(jax.random.key(0), x, **inputs)

    def loss(params, state, x, inputs):
        y, _ = layer.apply(params, state, x, **inputs)
        return sum(jnp.sin(each + 1).sum() for each in jax.tree.leaves(y))

    gradient = jax.jit(jax.grad(loss))
    alone = gradient(params, state, x, inputs)
    apart = {name: P("batch") if len(a) == 2 else P() for name, a in inputs.items()}
    cut = P(), P(), P("batch"), apart
    spread = jax.shard_map(jax.grad(loss), mesh=MANUAL, in_specs=cut, out_specs=P())
    for mesh, form in [(EXPLICIT, gradient), (MANUAL, jax.jit(spread))]:
        with jax.set_mesh(mesh):
            places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), cut)
            args = params, state, x, inputs
            found = form(*map(jax.device_put, args, places))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            # Sums of float32 in another order: the error goes with the largest of the numbers.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, float(abs(b).max())))


with jax.set_mesh(EXPLICIT):
    x = jax.device_put(jnp.ones((2, 4, 3)), NamedSharding(EXPLICIT, P("batch")))
    for layer in fdl.conv(4, (3,)), fdl.embedding(5, 4), fdl.lstm(4), fdl.attention(1, chunk=2):
        x = x.astype(jnp.int32)[..., 0] if layer.name == "embedding" else x.astype(jnp.float32)
        params, state = layer.init(jax.random.key(0), x)
        x, _ = layer.apply(params, state, x)
        assert jax.typeof(x).sharding.spec[0] == "batch", layer.name

for name, case in LAYERS.items():
    try:
        check(case)
    except Exception as error:
        raise AssertionError(name) from error
print(len(LAYERS))
"""


@pytest.mark.slow
def test_the_gradient_of_a_layer_on_two_devices_is_that_on_one():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", TWO],
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


SEEDED_BUGS = {
    "fdl/ops/sharding.py": (
        "ops/test_sharding.py layers/test_embeddings.py",
        [
            ("wrap_negative_indices=False", "wrap_negative_indices=True"),
            ('mode="fill",', 'mode="clip",'),
            ("out_sharding=sharding_beside(ids, ids.ndim, w.ndim - 1),", ""),
            ("tuple(axes - _varying(x))", "()"),
            (
                "jnp.full_like(jnp.sum(x, tuple(range(axes, x.ndim))), value, dtype)",
                "jnp.full(x.shape[:axes], value, dtype)",
            ),
            ("jax.typeof(x).sharding.spec[:axes]", "(None,) * axes"),
        ],
    ),
}
