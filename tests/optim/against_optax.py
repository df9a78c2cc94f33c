"""How far an optimizer is from optax's on a real network; for the tests and for the example.

The network has a leaf of each kind that the cases of the registry know by name: a scalar, a vector,
a matrix and a cube.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fdl

STEPS = 500
# The registry's rate for LAMB grows, and this network would diverge under it.
RATES = {"lamb_0": lambda count: 0.01 / (1 + 0.07 * count)}


class Problem(NamedTuple):
    """The task.

    Args:
      loss: (params, number of the step) -> scalar.
      params: where it begins.
    """

    loss: Any
    params: Any


@functools.cache
def digits(activation=fdl.relu, dtype="float32", width=16, batch_size=32):
    """A classifier of 8 x 8 images: about 1,400 parameters in four leaves."""
    split = fdl.data.digits()
    x = jnp.asarray(split.train[0].reshape(-1, 64) / 16, dtype)
    data = (x, jnp.asarray(split.train[1]))
    keys = jax.random.split(jax.random.key(0))
    params = {
        "scalar": jnp.asarray(1.5, dtype),
        "vector": jnp.linspace(-0.1, 0.1, 10, dtype=dtype),
        "matrix": jax.random.normal(keys[0], (64, width), dtype) / 8,
        "cube": jax.random.normal(keys[1], (2, width, 10), dtype) / math.sqrt(width),
    }

    def loss(params, number):
        x, y = fdl.draw_batch(data, jnp.uint32(7), number.astype(jnp.uint32), batch_size)
        h = x @ params["matrix"]
        mixed = activation(h) @ params["cube"][0] + activation(-h) @ params["cube"][1]
        logits = params["scalar"] * mixed + params["vector"]
        return fdl.softmax_cross_entropy(logits, y).mean()

    return Problem(loss, params)


def pair_of(name, case):
    """(ours, theirs, a function from plain parameters to the optimizer's) of a registry's case."""
    rate = {"learning_rate": RATES[name]} if name in RATES else {}
    return case.ours(**rate), case.theirs(**rate), case.start


def update_distances(pairs, problem, steps=STEPS):
    """The largest distance of any update over the path of ours: name -> (ULPs, at which step).

    In ULPs of the largest value of each leaf. Both sides are given the same parameters, gradients
    and state at each step, and each is compiled by itself.

    Args:
      pairs: name -> of `pair_of`.
    """
    ours = {name: pair[0] for name, pair in pairs.items()}
    mine, other = (update_all({k: v[side] for k, v in pairs.items()}, problem) for side in (0, 1))
    params = {name: pair[2](problem.params) for name, pair in pairs.items()}
    state = jax.jit(lambda params: {k: ours[k].init(params[k]) for k in ours})(params)
    apart = []
    for number in map(jnp.int32, range(steps)):
        given = (gradients_at(problem.loss)(params, number), state, params, number)
        updates, state = mine(*given)
        apart.append(ulps_apart(updates, other(*given)[0]))
        params = apply(params, updates)
    seen = {name: [float(each[name]) for each in apart] for name in pairs}
    return {name: (max(each), each.index(max(each))) for name, each in seen.items()}


def displacements(optimizers, problem, steps=STEPS):
    """The compiled runs `{name: params} -> {name: params after some steps - params}`."""
    update, gradients = update_all(optimizers, problem), gradients_at(problem.loss)

    def step(carry, number):
        params, state = carry
        updates, state = update(gradients(params, number), state, params, number)
        return (apply(params, updates), state), None

    def run(params):
        carry = (params, {name: each.init(params[name]) for name, each in optimizers.items()})
        (end, _), _ = jax.lax.scan(step, carry, jnp.arange(steps))
        return jax.tree.map(lambda a, b: a - b, end, params)

    return jax.jit(run)


def displacement_distance(first, second):
    """|a - b| / |b|, the relative distance of two displacements."""
    apart = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), first, second)
    return length(apart) / length(second)


def length(tree):
    return math.sqrt(sum(float(np.vdot(leaf, leaf)) for leaf in jax.tree.leaves(tree)))


def nudged(params):
    """Every parameter one ULP up."""
    return jax.tree.map(lambda w: jnp.nextafter(w, jnp.full_like(w, jnp.inf)), params)


def update_all(optimizers, problem):
    """`(gradients, states, params, number) -> (updates, states)` of all by name, compiled."""
    extended = {k: optax.with_extra_args_support(each) for k, each in optimizers.items()}

    def one(name, gradients, state, params, number):
        value, gradients = gradients
        loss = lambda params: problem.loss(read(params), number)  # noqa: E731
        return extended[name].update(
            *(gradients, state, params),
            **{"value": value, "grad": gradients, "value_fn": loss},
            grad_fn=lambda params, _: jax.grad(loss)(params),
        )

    @jax.jit
    def update(gradients, states, params, number):
        both = {k: one(k, gradients[k], states[k], params[k], number) for k in optimizers}
        return {k: v[0] for k, v in both.items()}, {k: v[1] for k, v in both.items()}

    return update


@functools.cache
def gradients_at(loss):
    """`({name: params}, number) -> {name: (value, gradients)}`, compiled."""

    @jax.jit
    def gradients(params, number):
        together = jax.tree.map(lambda *each: jnp.stack(each), *map(read, params.values()))
        found = jax.vmap(jax.value_and_grad(loss), (0, None))(together, number)
        return {k: jax.tree.map(lambda leaf: leaf[i], found) for i, k in enumerate(params)}

    return gradients


def read(params):
    """The parameters at which gradients are taken."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


@jax.jit
def apply(params, updates):
    return optax.apply_updates(params, updates)


@jax.jit
def ulps_apart(a, b):
    """For each name: the largest difference over the ULP of the largest value of its leaf in b."""

    def of_leaf(a, b):
        apart, size = jnp.abs(a - b).max(), jnp.abs(b).max()
        exponent = jnp.frexp(size)[1]
        ulp = jnp.ldexp(jnp.ones_like(size), exponent - 1 - jnp.finfo(b.dtype).nmant)
        far = jnp.where(jnp.isnan(apart), jnp.inf, apart / ulp)
        return jnp.where(apart == 0, jnp.zeros_like(far), far)

    apart = jax.tree.map(of_leaf, a, b)
    return {name: jnp.stack(jax.tree.leaves(each)).max() for name, each in apart.items()}
