"""The loss and gradient of a batch, all at once, or in pieces that need less memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdl.data import length
from fdl.ops.numerics import cast_like, wide, widened
from fdl.optim.wrappers.loss_scaling import loss_scale
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
      gradients: a pytree with the structure, shapes and dtypes of the params; with a loss scale,
        in float32 or wider.
      loss_of: a function `params -> loss` of the batch.
    """

    loss: jax.Array
    state: Any
    means: dict[str, Any]
    gradients: Any
    loss_of: Callable[[Any], jax.Array]


def whole(objective: Objective, run: Run, batch: Batch, key: Any) -> Pass:
    """The pass over the whole batch at once."""
    scale = loss_scale(run.opt_state)

    def loss_of(params: Any) -> Any:
        loss, state, metrics = report_of(objective, params, run.state, batch, key)
        return loss, (state, metrics)

    loss_of = loss_of if run.layout is None else run.layout.gathering(loss_of)
    (loss, (state, metrics)), gradients = _value_and_grad(loss_of, scale)(run.params)
    means = tallied(as_means(loss, metrics))
    return Pass(loss, state, means, gradients, lambda params: loss_of(params)[0])


def in_pieces(objective: Objective, run: Run, batch: Batch, key: Any, microbatch: int) -> Pass:
    """The pass over pieces of `microbatch` examples, one after the other.

    The loss and the gradient equal those of the whole batch, because they are weighted means over
    the pieces. The weight of a piece is its count: the number of its examples, or the sum of the
    weights of its examples. The state after a piece is passed to the next piece, and each piece has
    a different random key.
    """
    count, scale = length(batch) // microbatch, loss_scale(run.opt_state)
    pieces = jax.tree.map(lambda x: x.reshape(count, microbatch, *x.shape[1:]), batch)
    if run.layout is not None:
        pieces = run.layout.cut(pieces, axis=1)

    def of_piece(params: Any, state: Any, piece: Any, number: Any) -> Any:
        own = jax.random.fold_in(key, number)
        loss, state, metrics = report_of(objective, params, state, piece, own)
        means = tallied(as_means(loss, metrics, float(microbatch)))
        # This differentiates loss * count. The sum of these gradients over all pieces, divided by
        # the sum of the counts, is the gradient of the mean loss of the batch.
        count = jax.lax.stop_gradient(means["loss"].count)
        loss = widened(loss)
        return loss * count.astype(loss.dtype), (state, means)

    def step(carry: Any, numbered: Any) -> Any:
        state, means, total = carry
        number, piece = numbered
        (_, (state, new)), gradient = differentiated(run.params, state, piece, number)
        total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, gradient)
        return (state, added(means, new), total), None

    of_piece = of_piece if run.layout is None else run.layout.gathering(of_piece)
    differentiated = _value_and_grad(of_piece, scale)
    first = jax.tree.map(lambda x: x[0], pieces)
    _, (_, shapes) = jax.eval_shape(of_piece, run.params, run.state, first, 0)
    nothing = {name: mean.nothing() for name, mean in shapes.items()}
    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, wide(w.dtype)), run.params)
    numbered = jnp.arange(count), pieces
    (state, means, total), _ = jax.lax.scan(step, (run.state, nothing, zeros), numbered)
    counts = means["loss"].count + means["loss"].lost[1]
    counts = jnp.where(counts == 0, jnp.ones_like(counts), counts)
    gradients = jax.tree.map(lambda g: g / counts.astype(g.dtype), total)

    if scale is None:
        gradients = cast_like(gradients, run.params)
    loss_of = _mean_of_pieces(of_piece, run.state, numbered, counts)
    return Pass(means["loss"].value(), state, means, gradients, loss_of)


def _mean_of_pieces(
    of_piece: Callable[..., Any], state: Any, numbered: Any, counts: jax.Array
) -> Callable[[Any], jax.Array]:
    """The function `params -> loss`, where `of_piece` gives the loss of a piece times its count."""

    def loss_of(params: Any) -> jax.Array:
        def add(total: Any, numbered: Any) -> Any:
            number, piece = numbered
            return total + of_piece(params, state, piece, number)[0].astype(total.dtype), None

        start = jnp.zeros_like(counts)
        return jax.lax.scan(jax.checkpoint(add), start, numbered)[0] / counts

    return loss_of


def _value_and_grad(f: Callable[..., Any], scale: Any) -> Callable[..., Any]:
    """`jax.value_and_grad` of f, (params, ...) -> (loss, rest), for a loss multiplied by `scale`.

    The scale moves the numbers of the backward pass away from 0. Then the gradient is divided by
    the scale, in float32 or wider. None means no scale.
    """
    if scale is None:
        return jax.value_and_grad(f, has_aux=True)

    def scaled(*args: Any) -> Any:
        loss, rest = f(*args)
        return widened(loss) * scale.astype(wide(loss.dtype)), (loss, rest)

    def value_and_grad(*args: Any) -> Any:
        (_, value), gradients = jax.value_and_grad(scaled, has_aux=True)(*args)
        return value, jax.tree.map(lambda g: widened(g) / scale.astype(wide(g.dtype)), gradients)

    return value_and_grad
