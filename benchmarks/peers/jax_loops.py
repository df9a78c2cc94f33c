"""The loop that the guides of JAX libraries show: optax, a jitted step, called from Python."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import Block
from benchmarks.work import Work, batches

# The most losses that are kept in a block. They are read after its last step: reading a loss waits
# for its step.
SAMPLES = 32


def optimizer(work: Work) -> optax.GradientTransformation:
    return {
        "sgd": lambda: optax.sgd(work.rate),
        "momentum": lambda: optax.sgd(work.rate, momentum=0.9),
        "adam": lambda: optax.adam(work.rate),
        "adamw": lambda: optax.adamw(work.rate, weight_decay=0.01),
    }[work.optimizer]()


def loss_of(work: Work, output: Any, y: Any) -> Any:
    output = output.astype(jnp.float32)
    if work.loss == "squares":
        return jnp.mean((output - y) ** 2)
    return optax.softmax_cross_entropy_with_integer_labels(output, y).mean()


def in_dtype(work: Work, tree: Any) -> Any:
    """The tree, with its floating arrays in the dtype of the computation."""
    dtype = jnp.dtype(work.dtype)
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if floating(leaf) else leaf, tree)


class Loop:
    """A session whose `step(carry, x, y) -> (carry, loss)` is compiled.

    Args:
      score: (carry, x) -> logits.
    """

    def __init__(self, work: Work, x: Any, y: Any, step: Any, carry: Any, score: Any = None):
        self.batches, self.step, self.carry = batches(x, y, work.batch), step, carry
        self.score = score

    def steps(self, count: int) -> Block:
        losses, every = [], -(-count // SAMPLES)
        for number in range(count):
            self.carry, loss = self.step(self.carry, *next(self.batches))
            if number % every == 0:
                losses.append(loss)
        jax.block_until_ready(self.carry)
        return Block(float(np.mean(jax.device_get(losses))))

    def accuracy(self, x: Any, y: Any) -> float:
        return float((jnp.argmax(self.score(self.carry, x), -1) == y).mean())


def training(work: Work, x: Any, y: Any, params: Any, state: Any, apply: Callable[..., Any]):
    """A session of `apply(params, state, x, train) -> (output, state)`."""
    update = optimizer(work)

    @jax.jit
    def step(carry, x, y):
        params, state, opt_state = carry
        (loss, state), gradient = _gradient(work, apply, params, state, x, y)
        updates, opt_state = update.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), loss

    @jax.jit
    def score(carry, x):
        return apply(carry[0], carry[1], x, False)[0]

    return Loop(work, x, y, step, (params, state, update.init(params)), score)


def sweep(work: Work, x: Any, y: Any, init: Callable[[Any], Any], apply: Callable[..., Any]):
    """A session of all members at once by `vmap`; they see the same batches.

    Args:
      init: key -> params.
      apply: as in `training`; its state is {}.
    """
    update = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0, momentum=0.9)

    def begin(key, rate):
        params = init(key)
        opt_state = update.init(params)
        opt_state.hyperparams["learning_rate"] = rate
        return params, opt_state

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def all_steps(carry, x, y):
        params, opt_state = carry
        (loss, _), gradient = _gradient(work, apply, params, {}, x, y)
        updates, opt_state = update.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    keys = jax.random.split(jax.random.key(0), work.members)
    return Loop(work, x, y, all_steps, jax.jit(jax.vmap(begin))(keys, jnp.asarray(work.rates)))


def _gradient(work: Work, apply: Any, params: Any, state: Any, x: Any, y: Any) -> Any:
    def objective(params):
        output, new = apply(params, state, x, True)
        return loss_of(work, output, y), new

    return jax.value_and_grad(objective, has_aux=True)(params)
