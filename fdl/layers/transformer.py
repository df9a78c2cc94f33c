"""The parts of a transformer block: attention, gated units, feed-forward layers.

B is the number of sequences, T the length of a sequence, S the length of a context, D the number of
features, H the number of heads, K the number of features of a head.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.activations import gelu, silu
from fdl.checks import check_array, check_count, check_number, described, is_zero, named_in_errors
from fdl.core.decoding_cache import key_value_cache, position
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
from fdl.typing import Activation, Array, Initializer, Params, State

DROPOUT = "pass 0.1 to drop 10 %"

Rotation = Callable[[Array, Any], Array]
Kernel = Callable[..., Array]


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
    kernel: Kernel | None = None,
    bias: bool = True,
    w_init: Initializer = lecun_normal,
    b_init: Initializer = zeros,
    out_init: Initializer | None = None,
    name: str = "attention",
) -> Layer:
    """y = out(concat over heads of softmax(q k^T / sqrt(K)) v); q, k and v are dense layers of x.

    Args:
      heads: H, >= 1.
      features: F, the number of features of y; by default D.
      head_features: K, the number of features of a query, key or value; by default D / H.
      kv_heads: G, the number of heads of keys and values, a divisor of H; by default H. Each of
        these heads is shared by H / G query heads. 1 is multi-query attention.
      cross: whether keys and values are computed from the extra input `context` [..., S, C] instead
        of x.
      causal: whether later tokens are hidden from a token.
      window: an integer >= 1. A token sees only tokens at a distance below this number (the
        distance of a token to itself is 0). None means no limit.
      rotary: True rotates queries and keys by `fdl.rotary`. A function (x, positions) -> x rotates
        them instead, such as `fdl.rotary(base=5e5, interleaved=True)`.
      alibi: whether scores decrease in proportion to the distance of query and key (ALiBi).
      qk_norm: whether queries and keys are divided by their root mean square, then multiplied by
        learned scales [K].
      scale: the number by which q k^T is multiplied; may be traced. None means 1 / sqrt(K).
      soft_cap: c > 0; may be traced. Scores become c * tanh(scores / c). None means no cap.
      dropout_rate: the dropout rate of the attention weights, in [0, 1]; may be traced.
      chunk: the number of tokens in a block. To save memory, scores are computed block by block;
        see `dot_product_attention`. None computes all scores at once.
      kernel: a function that is called in place of `dot_product_attention`, with the same arguments
        except chunk and on_weights. For example, `fdl.distributed.ring_attention(mesh)` splits the
        sequence over devices. Decoding does not use the kernel. None means `dot_product_attention`.
      bias: whether q, k, v and out have biases.
      w_init: initializer of q/w, k/w, v/w and, if `out_init` is None, of out/w.
      b_init: initializer of the biases.
      out_init: initializer of out/w; by default w_init. With smaller weights, the residual branches
        of a deep network start smaller.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., T, D] to y [..., T, F]. Its params are {"q", "k", "v", "out"}, each
      {"w", "b"} with all heads side by side: q/w [D, H * K], k/w and v/w [D, G * K], out/w
      [H * K, F]; with qk_norm also {"q_norm", "k_norm"}, each {"scale": [K]}.
      Without cross, it has these optional extra inputs. `mask`, bool [..., H, T, T], where any axis
      may have size 1, is True where a query sees a key. `bias`, floating, with the shape of a mask,
      is added to the scores; minus infinity hides a key. With `segments`, integers [..., T], tokens
      see only tokens of the same segment. With rotary, there is also `positions` [..., T], by
      default 0 to T - 1.
      With cross, the extra input `context` is required. `context_mask` and `context_bias` are
      optional, and like `mask` and `bias`.
      For a token that sees no key, y is out(0). Without chunk and kernel, `capture` finds the
      attention weights [..., H, T, S] at the path `weights`.

    Raises:
      TypeError: kernel is not a function.
      ValueError: an option is out of range, or two options exclude each other.
      PathError: x or an extra input has the wrong shape or dtype.

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
    needs_order = causal or window is not None or bool(rotary) or alibi
    _check_options(heads, sizes, dropout_rate, kernel, cross=cross, needs_order=needs_order)
    check_scores("attention", soft_cap, scale)

    def width(heads_side_by_side: int) -> Callable[[int], int]:
        return lambda d: heads_side_by_side * (head_features or d // heads)

    projection = functools.partial(_projection, bias=bias, b_init=b_init)
    parts = {
        "q": projection("q", width(heads), w_init=w_init),
        "k": projection("k", width(kv_heads or heads), w_init=w_init),
        "v": projection("v", width(kv_heads or heads), w_init=w_init),
        "out": projection("out", lambda d: features or d, w_init=out_init or w_init),
    }
    if qk_norm:
        parts |= {"q_norm": rms_norm(name="q_norm"), "k_norm": rms_norm(name="k_norm")}
    if chunk is None and kernel is None:
        parts["weights"] = dropout(dropout_rate, name="weights")
    options: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "slopes": alibi_slopes(heads) if alibi else None,
        "scale": scale,
        "soft_cap": soft_cap,
    }
    score = functools.partial(dot_product_attention, chunk=chunk, **options)
    return _Attention(
        name,
        parts,
        heads=heads,
        kv_heads=kv_heads or heads,
        head_features=head_features,
        cross=cross,
        causal=causal,
        rotate=rotary_positions if rotary is True else rotary or None,
        score=score if kernel is None else functools.partial(kernel, **options),
        decoding_score=score,
    ).layer()


@named_in_errors
def gated(
    features: int,
    *,
    activation: Activation = silu,
    bias: bool = True,
    name: str = "gated",
) -> Layer:
    """y = activation(gate(x)) * value(x), where gate and value are dense layers.

    With the activation `sigmoid` this is GLU, with `silu` SwiGLU, with `gelu` GEGLU, with `relu`
    ReGLU, and with `identity` the bilinear unit.

    Args:
      features: F, the number of outputs, >= 1.
      activation: the activation of the gate.
      bias: whether both dense layers have biases.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., D] to y [..., F]; params {"gate": {"w", "b"}, "value": {"w", "b"}}.

    Raises:
      ValueError: features < 1.
      PathError: as in `dense`.

    Example:
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


@named_in_errors
def feed_forward(
    features: int,
    *,
    hidden: int,
    activation: Activation = gelu,
    gate: bool = False,
    bias: bool = True,
    dropout_rate: float = 0.0,
    name: str = "feed_forward",
) -> Layer:
    """y = down(activation(up(x))) at each position: the second part of a transformer block.

    Args:
      features: D, the number of features of y, >= 1. Inside a `residual`, x must have D features.
      hidden: the number of features of up(x), >= 1; the papers use 4 D, or 8 D / 3 with a gate.
      activation: a function from an array to an array of the same shape.
      gate: if True, the layer `up` is a `gated` layer with the activation inside; with silu it is
        the SwiGLU of Llama.
      bias: whether the dense layers have biases.
      dropout_rate: the dropout rate of y, in [0, 1]; may be traced. 0 adds no dropout layer.
      name: what the layer is called in a network.

    Returns:
      A layer from x [..., C], for any C, to y [..., D]; params {"up": ..., "down": {"w", "b"}}.

    Raises:
      ValueError: features, hidden or dropout_rate is out of range.
      PathError: as in `dense`.

    Example:
      >>> layer = feed_forward(8, hidden=32)
      >>> params, _ = layer.init(jax.random.key(0), jnp.ones((2, 5, 8)))
      >>> params["up"]["w"].shape, params["down"]["w"].shape
      ((8, 32), (32, 8))

    Source: Vaswani et al. 2017, arXiv 1706.03762, equation 2; Shazeer 2020, arXiv 2002.05202,
    equation 6.
    """
    check_number("feed_forward", "dropout_rate", dropout_rate, "[0, 1]", DROPOUT)
    down = dense(features, bias=bias)
    last = {"drop": dropout(dropout_rate)} if not is_zero(dropout_rate) else {}
    if gate:
        up = gated(hidden, activation=activation, bias=bias)
        return chain(name=name, up=up, down=down, **last)
    return chain(name=name, up=dense(hidden, bias=bias), activation=activation, down=down, **last)


def _check_options(
    heads: int,
    sizes: dict[str, int | None],
    dropout_rate: Any,
    kernel: Any,
    *,
    cross: bool,
    needs_order: bool,
) -> None:
    check_count("attention", "heads", heads, "pass the number of heads, such as 8")
    for what, value in sizes.items():
        if value is not None:
            check_count("attention", what, value, f"leave {what} out for the default")
    check_number("attention", "dropout_rate", dropout_rate, "[0, 1]", DROPOUT)
    kv_heads, chunk = sizes["kv_heads"], sizes["chunk"]
    if kv_heads is not None and heads % kv_heads:
        raise ValueError(
            f"attention: expected kv_heads to divide heads, got heads {heads} and "
            f"kv_heads {kv_heads}; leave kv_heads out to give each head separate keys and values"
        )
    if cross and needs_order:
        raise ValueError(
            "attention: expected cross without causal, window, rotary and alibi, got one of them; "
            "leave it out, because tokens of x and of context have no common order"
        )
    if kernel is not None and not callable(kernel):
        raise TypeError(
            "attention: expected kernel as a function like dot_product_attention, got "
            f"{described(kernel)}; leave it out, or pass fdl.distributed.ring_attention(mesh)"
        )
    if chunk is not None and kernel is not None:
        raise ValueError(
            f"attention: expected either chunk or kernel, got both, with chunk {chunk}; leave "
            "kernel out, or pass chunk to the kernel instead, as in ring_attention(mesh, chunk=512)"
        )
    if not (chunk is None and kernel is None) and not is_zero(dropout_rate):
        what, got = ("chunk", f"chunk {chunk}") if kernel is None else ("kernel", "a kernel")
        raise ValueError(
            f"attention: expected dropout_rate 0 with a {what}, got {got} and dropout_rate "
            f"{described(dropout_rate)}; leave one of them out, because dropout needs all "
            f"attention weights at once, and a {what} does not store them"
        )


def _projection(name: str, width: Callable[[int], int], **options: Any) -> Layer:
    """A dense layer of width(D) features, where D is the width of the extra input `like`."""

    def init(key: Any, x: Any, *, like: Any) -> tuple[Params, State]:
        return dense(width(like.shape[-1]), name=name, **options).init(key, x)

    # Only `init` uses the number of features, so any number, such as 1, is right for `apply`.
    of_any_width = dense(1, name=name, **options)

    def apply(
        params: Params, state: State, x: Any, *, like: Any, key: Any = None, train: bool = False
    ) -> tuple[Array, State]:
        return of_any_width.apply(params, state, x)

    return Layer(name, init, apply)


@dataclasses.dataclass(frozen=True)
class _Attention:
    """The parts and options of an attention layer; with `incremental` it has a cache."""

    name: str
    parts: dict[str, Layer]
    heads: int
    kv_heads: int
    head_features: int | None
    cross: bool
    causal: bool
    rotate: Rotation | None
    score: Callable[..., Array]
    decoding_score: Callable[..., Array]
    incremental: bool = False

    def layer(self) -> Layer:
        if self.cross:
            return network(self.look_across, name=self.name, **self.parts)
        inputs = ["mask", "bias"]
        inputs += [] if self.incremental else ["segments"]
        inputs += ["positions"] if self.rotate else []
        whole = network(self.look_within, name=self.name, inputs=tuple(inputs), **self.parts)
        return dataclasses.replace(whole, decoding=self.decoding)

    def decoding(self, length: int) -> Layer:
        if not self.causal:
            raise PathError(
                "expected causal=True in decoding, got attention that sees later tokens; pass "
                "causal=True, because an output must not depend on later tokens",
                layer=self.name,
            )
        cache = {"position": position(), "cache": key_value_cache(length)}
        parts, score = {**self.parts, **cache}, self.decoding_score
        return dataclasses.replace(self, parts=parts, score=score, incremental=True).layer()

    def look_within(self, f: Any, x: Array, **given: Any) -> Array:
        return self.attend(f, x, x, **given)

    def look_across(
        self, f: Any, x: Array, *, context: Any, context_mask: Any = None, context_bias: Any = None
    ) -> Array:
        return self.attend(f, x, context, mask=context_mask, bias=context_bias)

    def attend(
        self,
        f: Any,
        x: Array,
        context: Array,
        positions: Any = None,
        mask: Any = None,
        bias: Any = None,
        segments: Any = None,
    ) -> Array:
        self.check(x, context)
        x, context, broken = self.finite_where_unseen(x, context, Pairs(mask, bias).seen())
        q = _by_head(f.q(x, like=x), self.heads)
        k = _by_head(f.k(context, like=x), self.kv_heads)
        v = _by_head(f.v(context, like=x), self.kv_heads)
        if "q_norm" in self.parts:
            q, k = f.q_norm(q), f.k_norm(k)
        start = f.position(x) if self.incremental else 0
        if self.rotate:
            if positions is None:
                positions = start + jnp.arange(x.shape[-2], dtype=jnp.int32)
            q, k = self.rotate(q, positions), self.rotate(k, positions)
        fits = None
        if self.incremental:
            k, v, fits = f.cache((k, v, start))
        on_weights = {"on_weights": f.weights} if "weights" in self.parts else {}
        seen = {"mask": mask, "bias": bias, "segments": segments}
        y = self.score(q, k, v, start=start, **on_weights, **seen)
        if fits is not None:
            y = jnp.where(fits, y, jnp.nan)
        y = f.out(jax.lax.collapse(y, y.ndim - 2), like=x)
        return y if broken is None else jnp.where(broken, jnp.nan, y)

    def finite_where_unseen(self, x: Any, context: Any, mask: Any) -> tuple[Any, Any, Any]:
        """x and context, with 0 for non-finite numbers in tokens that no query sees (padding).

        Without the zeros, the gradients of the projections would contain 0 * NaN or 0 * infinity,
        which is NaN.

        Returns:
          (x, context, broken). broken is bool [..., T, 1], True for tokens of x in which a number
          was replaced; the caller sets their y to NaN. It is None if x is returned unchanged.
        """
        if mask is None or self.incremental or mask.ndim < 2:
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
                    f"{what} one row of features for each token",
                    layer=self.name,
                )
        if self.head_features is None and x.shape[-1] % self.heads:
            raise PathError(
                f"expected x [..., D] with D a multiple of {self.heads} heads, got "
                f"{list(x.shape)}; pass head_features=..., or a number of heads that divides D",
                layer=self.name,
            )


def _by_head(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
