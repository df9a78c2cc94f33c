"""The loss and gradient of a batch, all at once, or in pieces that need less memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.data import length
from fdl.ops.numerics import cast_like, wide, widened
from fdl.train.accumulators import added, as_means, tallied
from fdl.train.objective import report_of
from fdl.train.run import Run
from fdl.typing import Batch, Objective


class Pass(NamedTuple):
    """A forward and a backward pass over a batch.

    Args:
      loss: scalar.
      state: the network's state after the batch.
      means: a dict, name -> `Mean` or `Tally`, of the loss and metrics of the batch.
      gradients: a pytree with the structure, shapes and dtypes of the params.
      loss_of: a function `params -> loss` of the batch.
    """

    loss: jax.Array
    state: Any
    means: dict[str, Any]
    gradients: Any
    loss_of: Callable[[Any], jax.Array]


def whole(objective: Objective, run: Run, batch: Batch, key: Any) -> Pass:
    """The pass over the whole batch at once."""

    def loss_of(params: Any) -> Any:
        loss, state, metrics = report_of(objective, params, run.state, batch, key)
        return loss, (state, metrics)

    (loss, (state, metrics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(run.params)
    means = tallied(as_means(loss, metrics))
    return Pass(loss, state, means, gradients, lambda params: loss_of(params)[0])


def in_pieces(objective: Objective, run: Run, batch: Batch, key: Any, microbatch: int) -> Pass:
    """The pass over pieces of `microbatch` examples, one after the other.

    The loss and the gradient are means over the pieces, weighted by their counts: the number of
    examples, or the sum of their weights. So they are those of the whole batch. The state goes from
    piece to piece, and each piece has a key of its own.
    """
    count = length(batch) // microbatch
    pieces = jax.tree.map(lambda x: x.reshape(count, microbatch, *x.shape[1:]), batch)

    def of_piece(params: Any, state: Any, piece: Any, number: Any) -> Any:
        own = jax.random.fold_in(key, number)
        loss, state, metrics = report_of(objective, params, state, piece, own)
        means = tallied(as_means(loss, metrics, float(microbatch)))
        # The gradient of the mean over all pieces, times the sum of the counts.
        count = jax.lax.stop_gradient(means["loss"].count)
        loss = widened(loss)
        return loss * count.astype(loss.dtype), (state, means)

    def step(carry: Any, numbered: Any) -> Any:
        state, means, total = carry
        number, piece = numbered
        gradient, (state, new) = jax.grad(of_piece, has_aux=True)(run.params, state, piece, number)
        total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, gradient)
        return (state, added(means, new), total), None

    first = jax.tree.map(lambda x: x[0], pieces)
    _, (_, shapes) = jax.eval_shape(of_piece, run.params, run.state, first, 0)
    nothing = {name: mean.nothing() for name, mean in shapes.items()}
    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, wide(w.dtype)), run.params)
    numbered = jnp.arange(count), pieces
    (state, means, total), _ = jax.lax.scan(step, (run.state, nothing, zeros), numbered)
    counts = means["loss"].count + means["loss"].lost[1]
    counts = jnp.where(counts == 0, jnp.ones_like(counts), counts)
    gradients = jax.tree.map(lambda g: g / counts.astype(g.dtype), total)

    def loss_of(params: Any) -> jax.Array:
        def add(total: Any, numbered: Any) -> Any:
            number, piece = numbered
            return total + of_piece(params, run.state, piece, number)[0].astype(total.dtype), None

        start = jnp.zeros_like(counts)
        return jax.lax.scan(jax.checkpoint(add), start, numbered)[0] / counts

    gradients = cast_like(gradients, run.params)
    return Pass(means["loss"].value(), state, means, gradients, loss_of)
