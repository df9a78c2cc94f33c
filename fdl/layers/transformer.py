"""The parts of a transformer's block: attention, gated units, feed-forward layers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.activations import gelu, silu
from fdl.checks import check_array, check_count, is_zero, said
from fdl.core.cache import key_value_cache, position
from fdl.core.layer import Layer
from fdl.core.networks import chain, network
from fdl.initializers import lecun_normal, zeros
from fdl.layers.embeddings import alibi_slopes
from fdl.layers.embeddings import rotary as rotary_positions
from fdl.layers.linear import dense
from fdl.layers.normalization import rms_norm
from fdl.layers.stochastic import dropout
from fdl.ops.attention import check_scores, dot_product_attention
from fdl.ops.attention_scores import Pairs
from fdl.paths import PathError
from fdl.typing import Initializer, Params, State

Rotation = Callable[[jax.Array, Any], jax.Array]


def attention(
    heads: int,
    *,
    features: int | None = None,
    head_features: int | None = None,
    kv_heads: int | None = None,
    cross: bool = False,
    causal: bool = False,
    window: int | None = None,
    rotary: bool | Rotation = False,
    alibi: bool = False,
    qk_norm: bool = False,
    scale: float | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    chunk: int | None = None,
    bias: bool = True,
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    out_init: Initializer | None = None,
    name: str = "attention",
) -> Layer:
    """y = out(concat over heads of softmax(q k^T / sqrt(K)) v), with q, k and v dense in x.

    Args:
      heads: H, >= 1.
      features: F, how many y has; by default D.
      head_features: K, of each query, key and value; by default D / H.
      kv_heads: G, heads of keys and values, each shared by H / G query heads; by default H.
        1 is multi-query attention.
      cross: keys and values are made from the extra input `context` [..., S, C] instead of x.
      causal: no token sees a later one.
      window: a token sees only those less than this far away (itself is 0 away).
      rotary: True turns queries and keys by `fdl.rotary`; or a function (x, positions) -> x, as
        `functools.partial(fdl.rotary, base=5e5, interleaved=True)`.
      alibi: scores fall with distance, by `alibi_slopes`.
      qk_norm: each query and key is divided by its root mean square, then scaled by weights [K].
      scale: what the products of queries and keys are multiplied by; None for 1 / sqrt(K).
      soft_cap: c, scores become c * tanh(scores / c).
      dropout_rate: of the attention weights, in training, in [0, 1]. Scale, soft_cap and
        dropout_rate may be traced.
      chunk: the memory-efficient form in blocks of so many tokens, see `dot_product_attention`.
      bias: whether q, k, v and out add one.
      w_init: initializer of q/w, k/w, v/w and, without `out_init`, of out/w.
      b_init: initializer of the biases.
      out_init: initializer of out/w, where deep networks begin smaller.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to y [..., T, F]; params {"q", "k", "v", "out"}, each {"w", "b"},
      heads side by side: q/w [D, H * K], k/w and v/w [D, G * K], out/w [H * K, F]; with qk_norm
      also {"q_norm", "k_norm"}, each {"scale": [K]}. Extra inputs, none of which must be given:
      `mask`, bool [..., H, T, T], any axis of which may be 1, True where a query sees a key;
      `bias`, floating and of such a shape, what is added to the scores, where minus infinity hides;
      `segments`, integers [..., T], of which only equal ones see each other; with rotary
      `positions` [..., T], by default 0, 1, ... With cross: `context`, which must be given, and
      `context_mask` and `context_bias` as `mask`
      and `bias`. A token that sees none gives what `out` makes of zeros. Without
      chunk, `capture` finds the attention maps [..., H, T, S] at the path `weights`.

    Raises:
      ValueError: options out of range, or that exclude each other.
      PathError: an x or another input of the wrong shape or dtype.

    Example:
      >>> layer = attention(4, causal=True, kv_heads=2, rotary=True)
      >>> params, state = layer.init(jax.random.key(0), jnp.ones((2, 6, 16)))
      >>> jax.tree.map(jnp.shape, params["k"])
      {'b': (8,), 'w': (16, 8)}
      >>> y, state = layer.apply(params, state, jnp.ones((2, 6, 16)))
      >>> y.shape
      (2, 6, 16)

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.2; grouped: Ainslie et al. 2023, arXiv
    2305.13245; window: Beltagy et al. 2020, arXiv 2004.05150; rotary: Su et al. 2021, arXiv
    2104.09864; ALiBi: Press et al. 2021, arXiv 2108.12409; normalized queries and keys: Dehghani et
    al. 2023, arXiv 2302.05442, section 2.1, with the root mean square in place of layer norm.
    """
    sizes = {"features": features, "head_features": head_features, "kv_heads": kv_heads}
    sizes |= {"window": window, "chunk": chunk}
    ordered = causal or window is not None or bool(rotary) or alibi
    _check(heads, sizes, cross and ordered, dropout_rate)
    check_scores("attention", soft_cap, scale)
    kv = kv_heads or heads

    def width(count: int) -> Callable[[int], int]:
        return lambda d: count * (head_features or d // heads)

    projection = functools.partial(_projection, bias=bias, b_init=b_init)
    parts = {
        "q": projection("q", width(heads), w_init=w_init),
        "k": projection("k", width(kv), w_init=w_init),
        "v": projection("v", width(kv), w_init=w_init),
        "out": projection("out", lambda d: features or d, w_init=out_init or w_init),
    }
    if qk_norm:
        parts |= {"q_norm": rms_norm(name="q_norm"), "k_norm": rms_norm(name="k_norm")}
    if chunk is None:
        parts["weights"] = dropout(dropout_rate, name="weights")
    score = functools.partial(
        dot_product_attention,
        causal=causal,
        window=window,
        slopes=alibi_slopes(heads) if alibi else None,
        scale=scale,
        soft_cap=soft_cap,
        chunk=chunk,
    )
    turn = rotary_positions if rotary is True else rotary or None
    return _Attention(name, parts, heads, kv, head_features, cross, causal, turn, score).layer()


@dataclasses.dataclass(frozen=True)
class _Attention:
    """What one attention layer is made of; `twin` is its form for decoding, with a cache."""

    name: str
    parts: dict[str, Layer]
    heads: int
    kv_heads: int
    head_features: int | None
    cross: bool
    causal: bool
    turn: Rotation | None
    score: Callable[..., jax.Array]
    twin: bool = False

    def layer(self) -> Layer:
        whole = network(self.forward(), name=self.name, **self.parts)
        return whole if self.cross else dataclasses.replace(whole, decoding=self.decoding)

    def decoding(self, length: int) -> Layer:
        if not self.causal:
            raise PathError(
                "expected causal=True, got attention that sees later tokens, on which the answers "
                "for earlier ones depend; such a network cannot go on from a cache",
                layer=self.name,
            )
        cache = {"position": position(), "cache": key_value_cache(length)}
        return dataclasses.replace(self, parts={**self.parts, **cache}, twin=True).layer()

    def forward(self) -> Callable[..., jax.Array]:
        """With the extra inputs that this form takes, and no others."""
        attend = self.attend
        if self.cross:
            return lambda f, x, *, context, context_mask=None, context_bias=None: attend(
                f, x, context, mask=context_mask, bias=context_bias
            )
        if self.twin and self.turn:
            return lambda f, x, *, mask=None, bias=None, positions=None: attend(
                f, x, x, positions, mask=mask, bias=bias
            )
        if self.twin:
            return lambda f, x, *, mask=None, bias=None: attend(f, x, x, mask=mask, bias=bias)
        if self.turn:
            return lambda f, x, *, mask=None, bias=None, segments=None, positions=None: attend(
                f, x, x, positions, mask=mask, bias=bias, segments=segments
            )
        return lambda f, x, *, mask=None, bias=None, segments=None: attend(
            f, x, x, mask=mask, bias=bias, segments=segments
        )

    def attend(
        self, f: Any, x: jax.Array, context: jax.Array, positions: Any = None, **seen: Any
    ) -> jax.Array:
        self.check(x, context)
        x, context, broken = self.spared(x, context, Pairs(seen["mask"], seen["bias"]).seen())
        q = _by_head(f.q(x, like=x), self.heads)
        k = _by_head(f.k(context, like=x), self.kv_heads)
        v = _by_head(f.v(context, like=x), self.kv_heads)
        if "q_norm" in self.parts:
            q, k = f.q_norm(q), f.k_norm(k)
        start = f.position(x) if self.twin else 0
        if self.turn:
            at = start + jnp.arange(x.shape[-2], dtype=jnp.int32)
            q, k = (self.turn(each, at if positions is None else positions) for each in (q, k))
        fits = None
        if self.twin:
            k, v, fits = f.cache((k, v, start))
        on_weights = f.weights if "weights" in self.parts else None
        y = self.score(q, k, v, start=start, on_weights=on_weights, **seen)
        if fits is not None:
            y = jnp.where(fits, y, jnp.nan)
        y = f.out(jax.lax.collapse(y, y.ndim - 2), like=x)
        return y if broken is None else jnp.where(broken, jnp.nan, y)

    def spared(self, x: Any, context: Any, mask: Any) -> tuple[Any, Any, Any]:
        """x and context without what is not finite in tokens that nobody sees, as padding.

        A slope of 0 times such a number would be NaN in the gradients of the projections. The third
        says which tokens of x these are, [..., T, 1], since their own answer is NaN all the same.
        """
        if mask is None or self.twin or mask.ndim < 2:
            return x, context, None
        axes = (-2,) if mask.ndim == 2 else (-3, -2)
        broken = ~(mask.astype(bool).any(axes)[..., None] | jnp.isfinite(context))
        context = jnp.where(broken, jnp.zeros_like(context), context)
        if self.cross:
            return x, context, None
        return context, context, broken.any(-1, keepdims=True)

    def check(self, x: Any, context: Any) -> None:
        for what, array in {"x": x, "context": context}.items():
            check_array(self.name, array, what)
            if array.ndim < 2 or array.shape[:-2] != x.shape[:-2]:
                raise PathError(
                    f"expected {what} {[*x.shape[:-2], 'T', 'D']}, got {list(array.shape)}; give "
                    "one row of features for every token",
                    layer=self.name,
                )
        if self.head_features is None and x.shape[-1] % self.heads:
            raise PathError(
                f"expected x [..., D] with D a multiple of {self.heads} heads, got "
                f"{list(x.shape)}; give head_features=..., or another number of heads",
                layer=self.name,
            )


def _by_head(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def _projection(name: str, width: Callable[[int], int], **options: Any) -> Layer:
    """A dense layer of width(D) features, where D is that of the extra input `like` [..., D]."""

    def init(key: Any, x: Any, *, like: Any) -> tuple[Params, State]:
        return dense(width(like.shape[-1]), name=name, **options).init(key, x)

    same = dense(1, name=name, **options)

    def apply(
        params: Params, state: State, x: Any, *, like: Any, key: Any = None, train: bool = False
    ) -> tuple[jax.Array, State]:
        return same.apply(params, state, x)

    return Layer(name, init, apply)


def _check(
    heads: int,
    sizes: dict[str, int | None],
    ordered_across: bool,
    dropout_rate: Any,
) -> None:
    check_count("attention", "heads", heads, "say into how many parts the features fall")
    for what, value in sizes.items():
        if value is not None:
            check_count("attention", what, value, f"leave {what} out for the default")
    kv_heads, chunk = sizes["kv_heads"], sizes["chunk"]
    if kv_heads is not None and heads % kv_heads:
        raise ValueError(
            f"attention: expected kv_heads that divide the heads, got heads {heads} and "
            f"kv_heads {kv_heads}; kv_heads=None gives each head keys and values of its own"
        )
    if ordered_across:
        raise ValueError(
            "attention: expected cross without causal, window, rotary and alibi, got one of them; "
            "tokens of x and of context have no common order"
        )
    if chunk is not None and not is_zero(dropout_rate):
        raise ValueError(
            f"attention: expected dropout_rate 0 beside a chunk, got chunk {chunk} and "
            f"dropout_rate {said(dropout_rate)}; the form in chunks never holds the weights "
            "to be dropped"
        )


def gated(
    features: int,
    *,
    activation: Callable[[jax.Array], jax.Array] = silu,
    bias: bool = True,
    name: str = "gated",
) -> Layer:
    """y = activation(gate(x)) * value(x), with gate and value two dense layers.

    With `sigmoid` it is GLU, with `silu` SwiGLU, with `gelu` GEGLU, with `relu` ReGLU, with
    `identity` the bilinear unit.

    Args:
      features: F, how many outputs, >= 1.
      activation: of the gate.
      bias: whether both dense layers add one.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., F]; params {"gate": {"w", "b"}, "value": {"w", "b"}}.

    Raises:
      ValueError: features below 1.
      PathError: as `dense`.

    Example:
      >>> import jax.numpy as jnp
      >>> params, _ = gated(4, bias=False).init(jax.random.key(0), jnp.ones((2, 3)))
      >>> jax.tree.map(jnp.shape, params)
      {'gate': {'w': (3, 4)}, 'value': {'w': (3, 4)}}

    Source: Dauphin et al. 2016, arXiv 1612.08083, equation 1; Shazeer 2020, arXiv 2002.05202,
    equation 5.
    """
    return network(
        lambda f, x: activation(f.gate(x)) * f.value(x),
        gate=dense(features, bias=bias),
        value=dense(features, bias=bias),
        name=name,
    )


def feed_forward(
    features: int,
    *,
    hidden: int,
    activation: Callable[[jax.Array], jax.Array] = gelu,
    gate: bool = False,
    bias: bool = True,
    dropout_rate: float = 0.0,
    name: str = "feed_forward",
) -> Layer:
    """y = down(activation(up(x))), each position by itself: a transformer's part beside attention.

    Args:
      features: D, the width of the result, and of x where a residual goes around.
      hidden: the width between, >= 1; the papers take 4 D, or 8 D / 3 with a gate.
      activation: between the two.
      gate: whether up and activation are together `gated`: with silu that is Llama's SwiGLU.
      bias: whether the dense layers add one.
      dropout_rate: of the result, in [0, 1]; 0 leaves the layer out. May be traced.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to [..., D]; params {"up": ..., "down": {"w", "b"}}.

    Raises:
      ValueError: a width or a rate out of range.
      PathError: as `dense`.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = feed_forward(8, hidden=32)
      >>> params, _ = layer.init(jax.random.key(0), jnp.ones((2, 5, 8)))
      >>> params["up"]["w"].shape, params["down"]["w"].shape
      ((8, 32), (32, 8))

    Source: Vaswani et al. 2017, arXiv 1706.03762, equation 2; Shazeer 2020, arXiv 2002.05202,
    equation 6.
    """
    down = dense(features, bias=bias)
    last = {"drop": dropout(dropout_rate)} if not is_zero(dropout_rate) else {}
    if gate:
        up = gated(hidden, activation=activation, bias=bias)
        return chain(name=name, up=up, down=down, **last)
    return chain(name=name, up=dense(hidden, bias=bias), activation=activation, down=down, **last)
