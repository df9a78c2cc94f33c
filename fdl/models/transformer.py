"""Transformer blocks, and networks made of them.

B is the batch size, T the length of a sequence, D the number of features, V the number of different
tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fdl.activations import gelu, identity
from fdl.checks import OptionError, check_array, check_count, described, is_count, named_in_errors
from fdl.core.combinators import residual
from fdl.core.layer import Layer
from fdl.core.networks import chain, network
from fdl.core.repetition import repeat
from fdl.layers import attention, dense, embedding, feed_forward, layer_norm, learned_positions
from fdl.paths import PathError
from fdl.typing import Activation

Rotation = Callable[[jax.Array, Any], jax.Array]
Kernel = Callable[..., jax.Array]


@named_in_errors
def encoder_block(
    heads: int,
    features: int,
    *,
    hidden: int | None = None,
    kv_heads: int | None = None,
    causal: bool = False,
    rotary: bool | Rotation = False,
    kernel: Kernel | None = None,
    norm: Layer | None = None,
    norm_first: bool = True,
    activation: Activation = gelu,
    gate: bool = False,
    bias: bool = True,
    dropout_rate: float = 0.0,
) -> Layer:
    """A transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    With `norm_first=False` the norms come last: norm(x + attention(x)), then
    norm(x + feed_forward(x)).

    Args:
      heads: the number of attention heads. It must divide D.
      features: D, the number of features of each token.
      hidden: the hidden width of the feed-forward layer; by default 4 * D.
      kv_heads: the number of heads of keys and values, as in `attention`; by default `heads`.
      causal: True hides later tokens from each token.
      rotary: True rotates queries and keys by their positions, as in `attention`. Instead of True,
        it can be a function that rotates them.
      kernel: a function that computes the attention, as in `attention`. For example,
        `fdl.distributed.ring_attention(mesh)` splits the sequence over devices. With a kernel,
        dropout_rate must be 0.
      norm: the normalization, a layer such as `fdl.rms_norm(epsilon=1e-6)`; by default
        `fdl.layer_norm()`.
      norm_first: True puts a norm before the attention and one before the feed-forward layer. False
        puts the norms after the two sums.
      activation: the activation of the feed-forward layer.
      gate: True makes the feed-forward layer gated. With activation silu, this is SwiGLU.
      bias: True adds biases to all dense layers and projections.
      dropout_rate: the dropout rate, in training, of the attention weights and of the output of the
        feed-forward layer.

    Returns:
      A layer from x [..., T, D] to [..., T, D]. It has the extra inputs of `attention`; all are
      optional.

    Raises:
      ValueError: an option is out of range.
      PathError: x does not have D features, or an extra input does not fit x.

    Example:
      >>> import fdl
      >>> block = encoder_block(2, 8)
      >>> params, _ = block.init(jax.random.key(0), jnp.ones((1, 5, 8)))
      >>> sorted(params), sorted(params["attend"])
      (['attend', 'mix'], ['attention_0', 'layer_norm_0'])
      >>> original = encoder_block(8, 512, norm_first=False, activation=fdl.relu)
      >>> mistral = encoder_block(
      ...     32, 4096, hidden=14336, kv_heads=8, causal=True, rotary=True,
      ...     norm=fdl.rms_norm(), activation=fdl.silu, gate=True, bias=False,
      ... )

    Source: Vaswani et al. 2017, arXiv 1706.03762, figure 1; norm_first: Xiong et al. 2020, arXiv
    2002.04745, figure 1b.
    """
    attend = attention(
        heads,
        kv_heads=kv_heads,
        causal=causal,
        rotary=rotary,
        kernel=kernel,
        bias=bias,
        dropout_rate=dropout_rate,
    )
    mix = _feed_forward(features, hidden, activation, gate, bias, dropout_rate)
    return _block("encoder_block", norm, norm_first, attend=attend, mix=mix)


@named_in_errors
def decoder_block(
    heads: int,
    features: int,
    *,
    hidden: int | None = None,
    kv_heads: int | None = None,
    rotary: bool | Rotation = False,
    kernel: Kernel | None = None,
    norm: Layer | None = None,
    norm_first: bool = True,
    activation: Activation = gelu,
    gate: bool = False,
    bias: bool = True,
    dropout_rate: float = 0.0,
) -> Layer:
    """A causal `encoder_block` with a second attention, in which x attends to a context.

    Args:
      heads, features, hidden, norm, norm_first, activation, gate, bias, dropout_rate: as in
        `encoder_block`.
      kv_heads: as in `encoder_block`, for both attentions.
      rotary: as in `encoder_block`, but only for the attention of x to itself.
      kernel: as in `encoder_block`, for both attentions.

    Returns:
      A layer from x [..., T, D] to [..., T, D]. The extra input `context` [..., S, C] is required.
      The other extra inputs of `attention`, such as `mask` and `context_mask`, are optional.

    Raises:
      ValueError: an option is out of range.
      PathError: x does not have D features, or an extra input does not fit x.

    Example:
      >>> block = decoder_block(2, 8)
      >>> x, context = jnp.ones((1, 5, 8)), jnp.ones((1, 3, 6))
      >>> params, _ = block.init(jax.random.key(0), x, context=context)
      >>> block.apply(params, {}, x, context=context)[0].shape
      (1, 5, 8)

    Source: Vaswani et al. 2017, arXiv 1706.03762, figure 1; norm_first: Xiong et al. 2020, arXiv
    2002.04745, figure 1b.
    """
    both: dict[str, Any] = {"kv_heads": kv_heads, "bias": bias, "dropout_rate": dropout_rate}
    both |= {"kernel": kernel}
    attend = attention(heads, causal=True, rotary=rotary, **both)
    read = attention(heads, cross=True, **both)
    mix = _feed_forward(features, hidden, activation, gate, bias, dropout_rate)
    return _block("decoder_block", norm, norm_first, attend=attend, read=read, mix=mix)


@named_in_errors
def gpt(
    vocabulary: int,
    length: int | None,
    layers: int,
    heads: int,
    features: int,
    *,
    tied: bool = True,
    hidden: int | None = None,
    kv_heads: int | None = None,
    rotary: bool | Rotation = False,
    kernel: Kernel | None = None,
    norm: Layer | None = None,
    norm_first: bool = True,
    activation: Activation = gelu,
    gate: bool = False,
    bias: bool = True,
    dropout_rate: float = 0.0,
) -> Layer:
    """A language model: embedding, positions, causal blocks, norm, and logits of the next token.

    Args:
      vocabulary: V, the number of different tokens.
      length: the largest number of tokens of a sequence. A learned vector is added at each
        position. With None, there are no learned positions, and a sequence may have any length. Use
        None with `rotary`.
      layers: the number of blocks.
      heads: the number of attention heads of each block. It must divide `features`.
      features: D, the number of features of each token.
      tied: True computes the logits with the weights of the embedding. False computes them with a
        dense layer `head` without bias.
      hidden, kv_heads, rotary, kernel, activation, gate, bias, dropout_rate: options of each block,
        as in `encoder_block`.
      norm: the normalization in the blocks and after the last block, as in `encoder_block`.
      norm_first: as in `encoder_block`. With False, the last block ends with a norm, and no other
        norm follows.

    Returns:
      A layer from integer ids [..., T] to logits [..., T, V].

    Raises:
      ValueError: an argument is out of range.
      PathError: a sequence has more than `length` tokens.

    Example:
      >>> import fdl
      >>> model = gpt(65, 16, layers=2, heads=2, features=8)
      >>> ids = jnp.array([[3, 1, 4, 1, 5]])
      >>> params, _ = model.init(jax.random.key(0), ids)
      >>> model.apply(params, {}, ids)[0].shape
      (1, 5, 65)
      >>> gpt_2 = gpt(50257, 1024, layers=12, heads=12, features=768)
      >>> llama_2_7b = gpt(
      ...     32000, None, layers=32, heads=32, features=4096, hidden=11008, tied=False,
      ...     rotary=True, norm=fdl.rms_norm(), activation=fdl.silu, gate=True, bias=False,
      ... )
      >>> shapes, _ = jax.eval_shape(llama_2_7b.init, jax.random.key(0), ids)
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      6738415616

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3;
    Touvron et al. 2023, arXiv 2302.13971, section 2.2, and arXiv 2307.09288.
    """
    block = encoder_block(
        heads,
        features,
        hidden=hidden,
        kv_heads=kv_heads,
        causal=True,
        rotary=rotary,
        kernel=kernel,
        norm=norm,
        norm_first=norm_first,
        activation=activation,
        gate=gate,
        bias=bias,
        dropout_rate=dropout_rate,
    )
    children = {
        "embed": embedding(vocabulary, features),
        "positions": identity if length is None else learned_positions(length),
        "block": repeat(block, layers),
        "norm": _last_norm(norm, norm_first),
    }
    if not tied:
        children["head"] = dense(vocabulary, bias=False)

    def forward(f: Any, ids: jax.Array) -> jax.Array:
        h = f.norm(f.block(f.positions(f.embed(ids))))
        return f.embed(h) if tied else f.head(h)

    return network(forward, name="gpt", **children)


@named_in_errors
def encoder(
    vocabulary: int,
    length: int | None,
    layers: int,
    heads: int,
    features: int,
    *,
    token_types: int | None = None,
    embed_norm: bool = False,
    hidden: int | None = None,
    kv_heads: int | None = None,
    rotary: bool | Rotation = False,
    kernel: Kernel | None = None,
    norm: Layer | None = None,
    norm_first: bool = True,
    activation: Activation = gelu,
    gate: bool = False,
    bias: bool = True,
    dropout_rate: float = 0.0,
) -> Layer:
    """A bidirectional encoder of tokens: embedding, positions, blocks, norm.

    To label each token, add a dense layer. To label the text, add a mean over tokens and a dense
    layer.

    Args:
      vocabulary, length, layers, heads, features: as in `gpt`.
      token_types: the number of token types. BERT has 2, for the first and the second sentence.
        Each type has a learned vector, which is added to the embedding of each token of this type.
        None means no types.
      embed_norm: True puts a norm after the sum of the embeddings.
      hidden, kv_heads, rotary, kernel, norm, norm_first, activation, gate, bias, dropout_rate: as
        in `gpt`.

    Returns:
      A layer from integer ids [..., T] to [..., T, D]. Optional extra inputs: `mask`, as in
      `attention`, for example to hide padding; and, if token_types is not None, `types`, integers
      [..., T], the type of each token, by default 0.

    Raises:
      ValueError: an argument is out of range.
      PathError: a sequence has more than `length` tokens.

    Example:
      >>> import fdl
      >>> model = encoder(65, 16, layers=2, heads=2, features=8)
      >>> ids = jnp.array([[3, 1, 4, 1, 5]])
      >>> params, _ = model.init(jax.random.key(0), ids)
      >>> model.apply(params, {}, ids)[0].shape
      (1, 5, 8)
      >>> bert = encoder(
      ...     30522, 512, layers=12, heads=12, features=768, token_types=2, embed_norm=True,
      ...     norm=fdl.layer_norm(epsilon=1e-12), norm_first=False,
      ...     activation=fdl.gelu(approximate=False),
      ... )
      >>> classifier = fdl.chain(
      ...     bert, lambda h: h[..., 0, :], pool=fdl.dense(768), tanh=fdl.tanh, head=fdl.dense(2)
      ... )

    Source: Devlin et al. 2018, arXiv 1810.04805, section 3; norm_first: see `encoder_block`.
    """
    block = encoder_block(
        heads,
        features,
        hidden=hidden,
        kv_heads=kv_heads,
        rotary=rotary,
        kernel=kernel,
        norm=norm,
        norm_first=norm_first,
        activation=activation,
        gate=gate,
        bias=bias,
        dropout_rate=dropout_rate,
    )
    children = {
        "embed": embedding(vocabulary, features),
        "positions": identity if length is None else learned_positions(length),
        "embed_norm": (norm or layer_norm()) if embed_norm else identity,
        "block": repeat(block, layers),
        "norm": _last_norm(norm, norm_first),
    }

    def encoded(f: Any, h: jax.Array, mask: Any) -> jax.Array:
        h = f.embed_norm(f.positions(h))
        return f.norm(f.block(h) if mask is None else f.block(h, mask=mask))

    if token_types is None:
        return network(
            lambda f, ids, *, mask=None: encoded(f, f.embed(ids), mask), name="encoder", **children
        )

    def forward(f: Any, ids: jax.Array, *, mask: Any = None, types: Any = None) -> jax.Array:
        types = jnp.zeros_like(ids) if types is None else types
        return encoded(f, f.embed(ids) + f.types(types), mask)

    return network(forward, name="encoder", types=embedding(token_types, features), **children)


@named_in_errors
def vit(
    classes: int,
    image: int | tuple[int, int],
    patch: int,
    layers: int,
    heads: int,
    features: int,
    *,
    class_token: bool = False,
    hidden: int | None = None,
    norm: Layer | None = None,
    norm_first: bool = True,
    activation: Activation = gelu,
    gate: bool = False,
    bias: bool = True,
    dropout_rate: float = 0.0,
) -> Layer:
    """A vision transformer: its tokens are the patches of an image, and their mean is classified.

    Args:
      classes: C, the number of classes.
      image: the size of the images, (H, W), or one integer for square images.
      patch: P, the side length of a patch. It must divide H and W.
      layers, heads, features: as in `gpt`.
      class_token: True puts a learned token before the patches. The output at this token is
        classified instead of the mean.
      hidden, norm, norm_first, activation, gate, bias, dropout_rate: as in `gpt`.

    Returns:
      A layer from images [B, H, W, channels] to logits [B, C].

    Raises:
      ValueError: patch does not divide H and W, or an argument is out of range.
      PathError: the images do not have size (H, W).

    Example:
      >>> import fdl
      >>> model = vit(10, (8, 8), 4, layers=1, heads=2, features=8)
      >>> params, _ = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> params["patch"]["w"].shape, params["positions"]["w"].shape
      ((48, 8), (4, 8))
      >>> vit_b_16 = vit(
      ...     1000, (224, 224), 16, layers=12, heads=12, features=768, class_token=True,
      ...     norm=fdl.layer_norm(epsilon=1e-6),
      ...     activation=fdl.gelu(approximate=False),
      ... )

    Source: Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1. For the mean instead of a
    class token: Beyer, Zhai and Kolesnikov 2022, arXiv 2205.01580, section 2.
    """
    height, width = _image_size(image)
    if not is_count(patch) or height % patch or width % patch:
        raise ValueError(
            f"vit: expected a patch that divides the image {height} x {width}, got {patch}; pass "
            "a common divisor of height and width"
        )
    block = encoder_block(
        heads,
        features,
        hidden=hidden,
        norm=norm,
        norm_first=norm_first,
        activation=activation,
        gate=gate,
        bias=bias,
        dropout_rate=dropout_rate,
    )
    children = {
        "patch": dense(features),
        "positions": learned_positions(height * width // patch**2 + bool(class_token)),
        "block": repeat(block, layers),
        "norm": _last_norm(norm, norm_first),
        "head": dense(classes),
    }
    if class_token:
        children["class_token"] = learned_positions(1)

    def forward(f: Any, x: jax.Array) -> jax.Array:
        _check_images(x, height, width)
        h = f.patch(patches(x, patch))
        if class_token:
            h = jnp.concatenate([f.class_token(jnp.zeros_like(h[:, :1])), h], 1)
        h = f.norm(f.block(f.positions(h)))
        return f.head(h[:, 0] if class_token else h.mean(-2))

    return network(forward, name="vit", **children)


def patches(x: jax.Array, patch: int) -> jax.Array:
    """The square patches of images [B, H, W, C], row by row: [B, H * W / P^2, P^2 * C].

    Args:
      x: images [B, H, W, C].
      patch: P, which must divide H and W.
    """
    b, h, w, c = x.shape
    rows = x.reshape(b, h // patch, patch, w, c)
    squares = rows.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return jax.lax.collapse(jax.lax.collapse(squares, 3), 1, 3)


def _check_images(x: Any, height: int, width: int) -> None:
    check_array("vit", x)
    if x.shape[1:-1] != (height, width):
        raise PathError(
            f"expected x [B, {height}, {width}, C], got {list(x.shape)}; resize the images, or "
            "pass their size to vit",
            layer="vit",
        )


def _feed_forward(
    features: int,
    hidden: int | None,
    activation: Activation,
    gate: bool,
    bias: bool,
    dropout_rate: float,
) -> Layer:
    features = check_count("feed_forward", "features", features, "pass the number of features")
    return feed_forward(
        features,
        hidden=4 * features if hidden is None else hidden,
        activation=activation,
        gate=gate,
        bias=bias,
        dropout_rate=dropout_rate,
    )


def _block(name: str, norm: Layer | None, norm_first: bool, **parts: Layer) -> Layer:
    """The parts one after the other, each with a skip connection and a norm."""
    norm = norm or layer_norm()
    around = {
        part: residual(norm, layer) if norm_first else chain(residual(layer), norm)
        for part, layer in parts.items()
    }
    return chain(name=name, **around)


def _last_norm(norm: Layer | None, norm_first: bool) -> Any:
    """The norm after the last block, or `identity` if the blocks already end with a norm."""
    return (norm or layer_norm()) if norm_first else identity


def _image_size(image: Any) -> tuple[int, int]:
    """(H, W) of the argument `image` of `vit`."""
    sizes = (image, image) if is_count(image) else image
    if not isinstance(sizes, tuple | list) or len(sizes) != 2 or not all(map(is_count, sizes)):
        raise OptionError(
            "vit",
            f"expected image to be an integer >= 1, or (H, W), got {described(image)}; pass 224 "
            "for square images, or (224, 160)",
        )
    height, width = sizes
    return int(height), int(width)
