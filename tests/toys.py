"""Small layers and schedules that several tests use."""

import jax.numpy as jnp

import fdl


def running_mean(momentum=0.75, name="running_mean"):
    """x less its running mean: a layer with state, in six lines."""

    def init(key, x):
        return {}, {"mean": jnp.zeros(x.shape[-1:], x.dtype), "count": jnp.zeros((), jnp.int32)}

    def apply(params, state, x, *, key=None, train=False):
        if train:
            now = x.mean(range(x.ndim - 1))
            mean = momentum * state["mean"] + (1 - momentum) * now
            state = {"mean": mean, "count": state["count"] + 1}
        return x - state["mean"], state

    return fdl.Layer(name, init, apply)


def masked(name="masked"):
    """x * scale where the extra input `mask` is positive, else x."""

    def init(key, x, *, mask):
        return {"scale": jnp.full(mask.shape[-1:], 1.5, x.dtype)}, {}

    def apply(params, state, x, *, mask, key=None, train=False):
        return jnp.where(mask > 0, x * params["scale"], x), state

    return fdl.Layer(name, init, apply)


def halving(count):
    """A schedule whose every rate differs from the one before."""
    return 0.2 * 0.97 ** jnp.float32(count)
