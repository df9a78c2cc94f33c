"""Attention as a pure function of queries, keys and values.

T is the number of queries and S the number of keys (T = S if a sequence attends to itself). H is
the number of query heads, G the number of heads of keys and values. K is the number of features of
a query or key, V the number of features of a value.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fdl.checks import check_array, check_number, fitting, is_count
from fdl.ops.attention_blocks import in_blocks, softmax
from fdl.ops.attention_ring import Ring, in_ring
from fdl.ops.attention_scores import Keys, Pairs, Queries, Scoring, exponentials
from fdl.ops.rank_promotion import free_ranks
from fdl.paths import PathError

# Remedies in the error for a mask or a bias with the wrong axes.
PAIRS = {
    "mask": "if the mask is [B, S], pass (mask > 0)[:, None, None, :]",
    "bias": "if the bias is [H], pass bias[None, :, None, None], or bias[:, None, None] if q has "
    "no batch axis; if it is bool, pass it as mask",
}


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    segments: jax.Array | None = None,
    start: Any = 0,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    slopes: Sequence[float] | None = None,
    soft_cap: float | None = None,
    on_weights: Callable[[jax.Array], jax.Array] | None = None,
    chunk: int | Ring | None = None,
) -> jax.Array:
    """y = softmax(q k^T / sqrt(K) + bias) v, for every head.

    Scores, softmax and sums are computed in float32 or wider. The output of a query that sees no
    key is 0, with gradient 0. A key or value that a query does not see has no effect on the query's
    output or gradient, even if it is NaN or infinite. With a mask, bias, segments, causal or
    window, the output of a query is NaN if the query is not finite or sees a key that is not
    finite. Where the query sees a value that is not finite, its output is NaN or infinite. No
    gradient flows back from these outputs. Without any of these options, non-finite numbers spread
    as in plain arithmetic.

    Args:
      q: queries [..., T, H, K].
      k: keys [..., S, G, K], where G divides H; H / G neighbouring query heads share a head of
        keys.
      v: values [..., S, G, V].
      mask: bool [..., H, T, S] or [T, S], where any axis may have size 1; True where a query sees a
        key.
      bias: floating [..., H, T, S] or [T, S], where any axis may have size 1; added to the scores
        after all other changes. Minus infinity hides a key, like a mask. The gradient with respect
        to bias is 0 where a key is hidden.
      segments: integers [..., T], only if T = S; a token sees only tokens with the same integer
        (packed sequences).
      start: the index of the first query in the sequence of keys; an integer or a scalar array.
        It is 0 unless the keys of earlier tokens are in a cache.
      causal: True hides keys with a larger index than the query's.
      window: a query sees only keys whose index differs from the index of the query by less than
        this number; None means no limit.
      scale: a finite number by which q k^T is multiplied; None means 1 / sqrt(K).
      slopes: H numbers. A head's scores are reduced by its slope times the distance between query
        and key (see `alibi_slopes`). None means no reduction.
      soft_cap: c > 0; scores become c * tanh(scores / c), before slopes, bias and masks. None means
        no cap. Scale, slopes and soft_cap may be traced.
      on_weights: a function that is applied to the weights [..., H, T, S], such as dropout; not
        allowed with `chunk`.
      chunk: the number of queries, and of keys, in a block. Scores are computed block by block, so
        that no array [T, S] is ever in memory. The backward pass computes the scores again. The
        result is the same except for rounding. None computes all scores at once, which is faster
        for short sequences.

    Returns:
      y [..., T, H, V], in v's dtype.

    Raises:
      ValueError: scale or soft_cap is out of range.
      PathError: the shapes do not fit together; mask is not bool, bias not floating or segments not
        integers; window, chunk or slopes is not as above; or both on_weights and chunk are passed.

    Example:
      >>> q = k = jnp.zeros((2, 1, 4))
      >>> v = jnp.array([1.0, 3.0]).reshape(2, 1, 1)
      >>> dot_product_attention(q, k, v).ravel()
      Array([2., 2.], dtype=float32)
      >>> dot_product_attention(q, k, v, causal=True).ravel()
      Array([1., 2.], dtype=float32)

    Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1; shared keys: Ainslie et al. 2023,
    arXiv 2305.13245; in blocks: Rabe and Staats 2021, arXiv 2112.05682; the soft cap: Gemma Team
    2024, arXiv 2408.00118, section 2.
    """
    who = "dot_product_attention"
    q, k, v = (fitting(who, what, x) for what, x in {"q": q, "k": k, "v": v}.items())
    bias, segments = fitting(who, "bias", bias), fitting(who, "segments", segments)
    _check(q, k, v, Pairs(mask, bias), segments)
    _check_options(q.shape[-2], window, slopes, soft_cap, scale, on_weights, chunk)
    falls = None if slopes is None else jnp.asarray(slopes)
    scoring = Scoring(causal, window, k.shape[-3], falls, soft_cap, scale)
    first = jnp.asarray(start, jnp.int32)
    queries = Queries(q, first + jnp.arange(q.shape[-3], dtype=jnp.int32), segments)
    keys = Keys(k, v, jnp.arange(k.shape[-3], dtype=jnp.int32), segments)
    with free_ranks():
        return _answered(queries, keys, Pairs(mask, bias), scoring, on_weights, chunk)


def _answered(
    queries: Queries,
    keys: Keys,
    pairs: Pairs,
    scoring: Scoring,
    on_weights: Callable[[jax.Array], jax.Array] | None,
    chunk: int | Ring | None,
) -> jax.Array:
    q, (k, v) = queries.q, keys[:2]
    if not (q.shape[-3] and k.shape[-3]):
        return _nothing(q, k, v)
    rules = (*pairs, queries.segments, scoring.window)
    if not scoring.causal and all(rule is None for rule in rules):
        return _attended(queries, keys, pairs, scoring, on_weights, chunk).astype(v.dtype)
    # A weight of 0 times NaN is NaN, in the forward and in the backward pass. So non-finite numbers
    # in q, k and v are replaced by 0 here. `_spoiled` then adds the effect of those in k and v, and
    # the last line that of those in q.
    finite_queries = queries._replace(q=_finite(q))
    finite_keys = keys._replace(k=_finite(k), v=_finite(v))
    y = _attended(finite_queries, finite_keys, pairs, scoring, on_weights, chunk)
    y = _spoiled(y, queries, keys, pairs, scoring, chunk)
    good = jnp.isfinite(q).all(-1, keepdims=True)
    return jnp.where(good, y, jnp.nan).astype(v.dtype)


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def _attended(
    queries: Queries,
    keys: Keys,
    pairs: Pairs,
    scoring: Scoring,
    on_weights: Callable[[jax.Array], jax.Array] | None,
    chunk: int | Ring | None,
) -> jax.Array:
    if isinstance(chunk, Ring):
        return in_ring(queries, keys, pairs, scoring, chunk)
    if chunk is not None:
        return in_blocks(queries, keys, pairs, scoring, chunk)
    # Without blocks, there is no padding.
    scoring = dataclasses.replace(scoring, count=None)
    if on_weights is None:
        # The sums are divided, not the weights: they are smaller, and so are their gradients.
        return _softmax_of_all(queries, keys, pairs, scoring).answer()
    return keys.mixed(on_weights(_weights(queries, keys, pairs, scoring)))


def _nothing(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The output if there are no queries or no keys: zeros."""
    lead = jnp.broadcast_shapes(q.shape[:-3], k.shape[:-3])
    return jnp.zeros((*lead, *q.shape[-3:-1], v.shape[-1]), v.dtype)


@functools.partial(jax.jit, static_argnames="chunk", inline=True)
def _spoiled(
    y: jax.Array,
    queries: Queries,
    keys: Keys,
    pairs: Pairs,
    scoring: Scoring,
    chunk: int | Ring | None,
) -> jax.Array:
    """y, with NaN or infinity for queries that see a non-finite key or value.

    To find these queries, a second product is needed. It is computed only if there is a non-finite
    number. This condition is written as a loop of at most one step, because `vmap` would compute
    both branches of a `cond`.
    """
    nothing = jnp.where(y == y, 0, 0)
    queries, keys, pairs, scoring, nothing = jax.lax.stop_gradient(
        (queries, keys, pairs, scoring, nothing)
    )
    broken = ~(jnp.isfinite(keys.k).all() & jnp.isfinite(keys.v).all())

    def found(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # Here all keys have equal scores, and the values are two sets of marks, 0 or 1. The first
        # marks inf and the second -inf; both mark NaN, and every value whose key is not finite. So
        # the output for a query is the mean of the marks that it sees, which is > 0 if it sees one.
        alike = dataclasses.replace(scoring, alike=True)
        no_key = ~jnp.isfinite(keys.k).all(-1, keepdims=True)
        kinds = [no_key | jnp.isnan(keys.v) | (keys.v == sign * jnp.inf) for sign in (1, -1)]
        marks, ones = jnp.concatenate(kinds, -1).astype(y.dtype), jnp.ones_like(keys.k[..., :1])
        # These queries are made to depend on the loop's carry. Otherwise XLA would move the
        # computation out of the loop, where it would always run.
        zeros = jnp.zeros_like(queries.q[..., :1]) + carry[0].astype(queries.q.dtype)
        equal, marked = queries._replace(q=zeros), keys._replace(k=ones, v=marks)
        up, down = jnp.split(_attended(equal, marked, pairs, alike, None, chunk) > 0, 2, -1)
        kind = jnp.where(up & down, jnp.nan, jnp.where(up, jnp.inf, jnp.where(down, -jnp.inf, 0)))
        return carry[0] & False, kind.astype(y.dtype) + carry[1]

    begin = (broken, nothing.astype(y.dtype))
    _, kind = jax.lax.while_loop(lambda carry: carry[0], found, begin)
    return jnp.where(kind == 0, y, kind)


# They are jitted so that layers with equal shapes trace them only once, and so that each is one
# compiled function even if the user calls it without jit.
_softmax_of_all = jax.jit(functools.partial(softmax, chunk=None), inline=True)


@functools.partial(jax.jit, inline=True)
def _weights(queries: Queries, keys: Keys, pairs: Pairs, scoring: Scoring) -> jax.Array:
    _, parts = exponentials(queries, keys, pairs, scoring)
    total = parts.sum(-1, keepdims=True)
    return parts / jnp.where(total == 0, 1, total)


def _check(q: Any, k: Any, v: Any, pairs: Pairs, segments: Any) -> None:
    for what, array in {"q": q, "k": k, "v": v}.items():
        check_array("dot_product_attention", array, what)
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    fit = min(q.ndim, k.ndim, v.ndim) >= 3 and q.shape[-1] == k.shape[-1]
    if not (fit and k.shape[:-1] == v.shape[:-1] and q.shape[-2] % k.shape[-2] == 0):
        _refuse(
            "q [..., T, H, K], k [..., S, G, K], v [..., S, G, V] with G a divisor of H",
            shapes,
            "split the features of q, k and v into heads with reshape",
        )
    t, s = q.shape[-3], k.shape[-3]
    kinds: dict[str, tuple[Any, Any, str]] = {
        "mask": (pairs.mask, jnp.bool_, "bool"),
        "bias": (pairs.bias, jnp.floating, "floating"),
    }
    for what, (array, kind, kind_name) in kinds.items():
        if array is None:
            continue
        check_array("dot_product_attention", array, what)
        whole = (*q.shape[:-3], q.shape[-2], t, s)
        # No other number of axes is allowed: [B, T, S] could be mistaken for [H, T, S] if B = H.
        known_axes = array.ndim in (2, len(whole))
        right = jnp.issubdtype(array.dtype, kind)
        if not right or not known_axes or not _broadcasts(array.shape, whole):
            _refuse(
                f"{what} to be {kind_name} {list(whole)} or {[t, s]}, where any axis may have "
                "size 1",
                f"{array.dtype} {list(array.shape)}",
                PAIRS[what],
            )
    if segments is not None:
        whole = (*q.shape[:-3], t)
        check_array("dot_product_attention", segments, "segments")
        integers = jnp.issubdtype(segments.dtype, jnp.integer)
        if not integers or t != s or not _broadcasts(segments.shape, whole):
            _refuse(
                f"segments to be integers {list(whole)}",
                f"{segments.dtype} {list(segments.shape)}",
                "pass one segment number for each token",
            )


def _check_options(
    heads: int,
    window: int | None,
    slopes: Any,
    soft_cap: Any,
    scale: Any,
    on_weights: Any,
    chunk: int | Ring | None,
) -> None:
    sizes = (window, None if isinstance(chunk, Ring) else chunk)
    if any(size is not None and not is_count(size) for size in sizes):
        got = f"window {window!r} and chunk {chunk!r}"
        _refuse("window and chunk to be integers >= 1 or None", got, "pass None for no limit")
    if chunk is not None and on_weights is not None:
        remedy = "leave one of them out, because the computation in chunks stores no weights"
        _refuse("either on_weights or chunk", f"both, with chunk {chunk}", remedy)
    if slopes is not None and len(slopes) != heads:
        _refuse(f"{heads} slopes, one for each head", f"{len(slopes)}", "pass one number per head")
    check_scores("dot_product_attention", soft_cap, scale)


def check_scores(who: str, soft_cap: Any, scale: Any) -> None:
    """Raises an OptionError if `soft_cap` or `scale` is out of range."""
    if soft_cap is not None:
        remedy = "pass a number such as 50, or None for no cap"
        check_number(who, "soft_cap", soft_cap, "(0, inf]", remedy)
    if scale is not None:
        remedy = "pass None for 1 / sqrt(K), where K is the number of features of a query"
        check_number(who, "scale", scale, "(-inf, inf)", remedy)


def _broadcasts(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(whole), strict=False)
    return len(shape) <= len(whole) and all(a in (1, b) for a, b in pairs)


def _refuse(expected: str, got: str, remedy: str) -> None:
    raise PathError(f"expected {expected}, got {got}; {remedy}", layer="dot_product_attention")
