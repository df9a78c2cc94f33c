"""The same block n times, with separate weights."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_count, kind
from fdl.core.combinators import remat
from fdl.core.compilation import weak_jit
from fdl.core.inputs import check_inputs, check_pass, missing
from fdl.core.layer import Layer, as_layer, check_key, subkey
from fdl.core.networks import wired
from fdl.ops.fence import fence
from fdl.paths import PathError, at, leaves
from fdl.typing import Params, State

FEW = 16


def repeat(
    block: Any,
    n: int,
    *,
    scan: bool | None = None,
    policy: Callable[..., bool] | None = None,
    name: str = "repeat",
) -> Layer:
    """n equal blocks one after another: y = f(...f(f(x, params["0"]), params["1"])...).

    The computation has two forms. In the unrolled form, the compiler gets n blocks, and training
    steps are fastest. In the scanned form (`jax.lax.scan`), the compiler gets one block, so the
    time to compile does not depend on n.

    Args:
      block: a layer, or a plain function of one array, that keeps the shape and dtype of x.
      n: number of blocks, >= 1.
      scan: True for the scanned form, False for the unrolled form; by default True if n > 16.
      policy: one of the functions in `jax.checkpoint_policies`. It decides which inner values the
        forward pass stores; the backward pass recomputes the others. By default, the unrolled form
        stores all inner values, and the scanned form stores the results of matrix products, which
        is fastest in that form.
      name: name of the layer in another network.

    Returns:
      A layer. In both forms params, state, random keys and paths are the same as for n layers named
      "0", "1", ...; an extra input is passed to every block. In the scanned form, the path of an
      error inside a block has `*` in place of the block's number, and `capture` of a block, or of a
      path inside it, runs the unrolled form.

    Raises:
      ValueError: n < 1.
      PathError: a block changes the shape or dtype of x; or, in the scanned form, the params or the
        states of two blocks differ in structure, shape or dtype.

    Example:
      >>> from fdl.layers import dense
      >>> from fdl.core.networks import chain
      >>> net = repeat(chain(dense(3), jnp.tanh), 2)
      >>> params, state = net.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> list(leaves(params))
      ['0/dense_0/b', '0/dense_0/w', '1/dense_0/b', '1/dense_0/w']
    """
    n = check_count(name, "n", n, "pass the number of blocks")
    inner = as_layer(block, name)
    unrolled = _unrolled(inner if policy is None else remat(inner, policy=policy), n, name)
    scanned = n > FEW if scan is None else scan
    return dataclasses.replace(
        unrolled,
        init=_Init(inner, n, name, scanned),
        apply=_scanned(inner, n, name, policy) if scanned else unrolled.apply,
    )


def _unrolled(block: Layer, n: int, name: str) -> Layer:
    children = {str(number): block for number in range(n)}

    def forward(f: Any, x: Any) -> Any:
        for child in children:
            y = f[child](fence(x))
            with at(child):
                _check_kept(x, y)
            x = y
        return x

    return wired(forward, children, name)


def _scanned(
    block: Layer, n: int, name: str, policy: Callable[..., bool] | None
) -> Callable[..., tuple[Any, State]]:
    names = tuple(str(number) for number in range(n))
    kept = policy or jax.checkpoint_policies.dots_saveable

    def apply(
        params: Params, state: State, x: Any, *, key: Any = None, train: bool = False, **given: Any
    ) -> tuple[Any, State]:
        check_inputs(name, block.inputs or (), block.required, given)
        check_pass(name, names, params, state, key, train)

        per_block = _stack(params, names), _stack(state, names), _keys(key, names, name)
        y, states = _scan(x, per_block, given, block=block, n=n, policy=kept, train=train)
        return y, _unstack(states, names)

    return apply


@weak_jit(static=["block", "n", "policy", "train"], inline=True)
def _scan(
    x: Any,
    per_block: Any,
    given: dict[str, Any],
    *,
    block: Layer,
    n: int,
    policy: Callable[..., bool],
    train: bool,
) -> tuple[Any, State]:
    """The scan over blocks. Without this jit, every eager call would compile the scan again."""

    def body(x: Any, of_block: Any) -> tuple[Any, State]:
        params, state, key = of_block
        with at("*"):
            try:
                y, new = block.apply(params, state, x, key=key, train=train, **given)
            except KeyError as error:
                raise missing(error, params, state) from error
            _check_kept(x, y)
        return y, new

    # prevent_cse is False, because inside a scan XLA cannot merge the recomputation with the
    # forward pass anyway. Preventing this with True would only cost time.
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, x, per_block, length=n)


@dataclasses.dataclass(frozen=True)
class _Init:
    """`init` of both forms. A block's key is `subkey(key, str(number))`."""

    block: Layer
    n: int
    name: str
    scanned: bool

    def __call__(self, key: Any, x: Any, **given: Any) -> tuple[Params, State]:
        check_inputs(self.name, self.block.inputs or (), self.block.required, given)
        names = tuple(str(number) for number in range(self.n))
        with at("*" if self.scanned else "0"):
            made = {"0": self.block.init(subkey(key, "0"), x, **given)}
            y, _ = jax.eval_shape(self.block.apply, *made["0"], x, **given)
            _check_kept(x, y)
        if isinstance(key, jax.core.Tracer):
            # One vmapped call makes all blocks. Under jit, n calls would be compiled n times.
            keys = _keys(key, names, self.name)
            params, state = jax.vmap(lambda key: self.block.init(key, x, **given))(keys)
            return _unstack(params, names), _unstack(state, names)
        for number in names[1:]:
            made[number] = self.block.init(subkey(key, number), x, **given)
        params = {number: pair[0] for number, pair in made.items() if pair[0]}
        state = {number: pair[1] for number, pair in made.items() if pair[1]}
        return params, state


def _keys(key: Any, names: tuple[str, ...], layer: str) -> Any:
    """The keys `subkey(key, name)` of all names, stacked into one array; None if key is None."""
    check_key(key, layer)
    if key is None:
        return None
    numbers = jnp.asarray([zlib.crc32(name.encode()) for name in names], jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def _stack(tree: dict[str, Any], names: tuple[str, ...]) -> Any:
    blocks = [tree.get(name, {}) for name in names]
    first = leaves(blocks[0])
    for name, block in zip(names, map(leaves, blocks), strict=True):
        with at(name):
            for path in [*first, *block]:
                wanted, found = (kind(of[path]) if path in of else "none" for of in (first, block))
                if found != wanted:
                    raise PathError(
                        f"expected {wanted}, the same as in block {names[0]}, got {found}; pass "
                        "the params and state that init made for this network",
                        path,
                    )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def _unstack(stacked: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not jax.tree.leaves(stacked):
        return {}
    return {
        name: jax.tree.map(lambda leaf, number=number: leaf[number], stacked)
        for number, name in enumerate(names)
    }


def _check_kept(x: Any, y: Any) -> None:
    if kind(x) != kind(y):
        raise PathError(
            f"expected a block that keeps the shape and dtype of x, {kind(x)}, got {kind(y)}; "
            "give its last layer as many features as x has, and the same dtype"
        )
