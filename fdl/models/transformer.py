"""Transformer blocks, and the ready networks made of them."""

from typing import Any

import jax

from fdl.arguments import check_array, is_count
from fdl.combinators import residual
from fdl.layer import Layer
from fdl.layers import attention, dense, embedding, feed_forward, layer_norm, learned_positions
from fdl.network import chain, network
from fdl.paths import PathError
from fdl.repeat import repeat


def encoder_block(
    heads: int,
    features: int,
    *,
    hidden: int | None = None,
    causal: bool = False,
    dropout_rate: float = 0.0,
) -> Layer:
    """A transformer's block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    Args:
      heads: of the attention; they divide D.
      features: D.
      hidden: how wide the feed-forward layer is inside; by default 4 * D.
      causal: no token sees a later one.
      dropout_rate: of the attention weights and of the feed-forward layer's result, in training.

    Returns:
      A layer from x [..., T, D] to [..., T, D]; the extra inputs of `attention`, none of which must
      be given.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> block = encoder_block(2, 8)
      >>> params, _ = block.init(jax.random.key(0), jnp.ones((1, 5, 8)))
      >>> sorted(params), sorted(params["attend"])
      (['attend', 'mix'], ['attention_0', 'layer_norm_0'])

    Source: Vaswani et al. 2017, arXiv 1706.03762, figure 1; the norms before: Xiong et al. 2020,
    arXiv 2002.04745, figure 1b.
    """
    mix = feed_forward(features, hidden=hidden or 4 * features, dropout_rate=dropout_rate)
    return chain(
        attend=residual(layer_norm(), attention(heads, causal=causal, dropout_rate=dropout_rate)),
        mix=residual(layer_norm(), mix),
        name="encoder_block",
    )


def decoder_block(
    heads: int, features: int, *, hidden: int | None = None, dropout_rate: float = 0.0
) -> Layer:
    """An encoder block, causal, that also attends to a context between its two parts.

    Args:
      heads, features, hidden, dropout_rate: as in `encoder_block`.

    Returns:
      A layer from x [..., T, D] and the extra input `context` [..., S, C] to [..., T, D].

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> block = decoder_block(2, 8)
      >>> x, context = jnp.ones((1, 5, 8)), jnp.ones((1, 3, 6))
      >>> params, _ = block.init(jax.random.key(0), x, context=context)
      >>> block.apply(params, {}, x, context=context)[0].shape
      (1, 5, 8)

    Source: Vaswani et al. 2017, arXiv 1706.03762, figure 1; the norms before: Xiong et al. 2020,
    arXiv 2002.04745, figure 1b.
    """
    mix = feed_forward(features, hidden=hidden or 4 * features, dropout_rate=dropout_rate)
    return chain(
        attend=residual(layer_norm(), attention(heads, causal=True, dropout_rate=dropout_rate)),
        read=residual(layer_norm(), attention(heads, cross=True, dropout_rate=dropout_rate)),
        mix=residual(layer_norm(), mix),
        name="decoder_block",
    )


def gpt(
    vocabulary: int,
    length: int,
    layers: int,
    heads: int,
    features: int,
    *,
    tied: bool = True,
    dropout_rate: float = 0.0,
) -> Layer:
    """A language model: embedding and positions, causal blocks, norm, a score for each next token.

    Args:
      vocabulary: V, how many tokens there are.
      length: the most tokens that it takes at once.
      layers: how many blocks.
      heads: of each block; they divide `features`.
      features: D, how wide it is; the feed-forward layers are four times that inside.
      tied: whether the scores come from the embedding's own weights.
      dropout_rate: in every block, in training.

    Returns:
      A layer from integer ids [..., T] to logits [..., T, V].

    Raises:
      ValueError: a number out of range.
      PathError: more than `length` tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> model = gpt(65, 16, layers=2, heads=2, features=8)
      >>> ids = jnp.array([[3, 1, 4, 1, 5]])
      >>> params, _ = model.init(jax.random.key(0), ids)
      >>> model.apply(params, {}, ids)[0].shape
      (1, 5, 65)

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
    """
    block = encoder_block(heads, features, causal=True, dropout_rate=dropout_rate)
    children = {
        "embed": embedding(vocabulary, features),
        "positions": learned_positions(length),
        "block": repeat(block, layers),
        "norm": layer_norm(),
    }
    if not tied:
        children["head"] = dense(vocabulary, bias=False)

    def forward(f: Any, ids: jax.Array) -> jax.Array:
        h = f.norm(f.block(f.positions(f.embed(ids))))
        return f.embed(h) if tied else f.head(h)

    return network(forward, name="gpt", **children)


def encoder(
    vocabulary: int,
    length: int,
    layers: int,
    heads: int,
    features: int,
    *,
    dropout_rate: float = 0.0,
) -> Layer:
    """Tokens that see each other in both directions: embedding, positions, blocks, norm.

    Put a layer on top: a dense one for a label of each token, a mean and a dense one for a label of
    the text.

    Args:
      vocabulary, length, layers, heads, features, dropout_rate: as in `gpt`.

    Returns:
      A layer from integer ids [..., T] to [..., T, D]. Its extra input `mask`, as in `attention`,
      may leave out what is only filling.

    Raises:
      ValueError: a number out of range.
      PathError: more than `length` tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> model = encoder(65, 16, layers=2, heads=2, features=8)
      >>> ids = jnp.array([[3, 1, 4, 1, 5]])
      >>> params, _ = model.init(jax.random.key(0), ids)
      >>> model.apply(params, {}, ids)[0].shape
      (1, 5, 8)

    Source: Devlin et al. 2018, arXiv 1810.04805, section 3; the norms before, as `encoder_block`.
    """
    block = encoder_block(heads, features, dropout_rate=dropout_rate)

    def forward(f: Any, ids: jax.Array, *, mask: Any = None) -> jax.Array:
        h = f.positions(f.embed(ids))
        return f.norm(f.block(h) if mask is None else f.block(h, mask=mask))

    return network(
        forward,
        name="encoder",
        embed=embedding(vocabulary, features),
        positions=learned_positions(length),
        block=repeat(block, layers),
        norm=layer_norm(),
    )


def vit(
    classes: int, image: tuple[int, int], patch: int, layers: int, heads: int, features: int
) -> Layer:
    """A vision transformer: an image's patches are tokens; their mean is classified.

    Args:
      classes: C.
      image: (H, W) of the images.
      patch: P, the side of a patch; it divides H and W.
      layers, heads, features: as in `gpt`.

    Returns:
      A layer from images [B, H, W, channels] to logits [B, C].

    Raises:
      ValueError: a patch that does not divide the image, or a number out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> model = vit(10, (8, 8), 4, layers=1, heads=2, features=8)
      >>> params, _ = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> params["patch"]["w"].shape, params["positions"]["w"].shape
      ((48, 8), (4, 8))

    Source: Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1; the mean in place of a token for
    the class: Beyer, Zhai and Kolesnikov 2022, arXiv 2205.01580, section 2.
    """
    height, width = image
    if not is_count(patch) or height % patch or width % patch:
        raise ValueError(
            f"vit: expected a patch that divides the image {height} x {width}, got {patch}; choose "
            "a common divisor"
        )

    def forward(f: Any, x: jax.Array) -> jax.Array:
        check_array("vit", x)
        if x.shape[1:-1] != (height, width):
            raise PathError(
                f"expected x [B, {height}, {width}, C], got {list(x.shape)}; resize the images, or "
                "make the model for theirs",
                layer="vit",
            )
        h = f.positions(f.patch(patches(x, patch)))
        return f.head(f.norm(f.block(h)).mean(-2))

    return network(
        forward,
        name="vit",
        patch=dense(features),
        positions=learned_positions(height * width // patch**2),
        block=repeat(encoder_block(heads, features), layers),
        norm=layer_norm(),
        head=dense(classes),
    )


def patches(x: jax.Array, patch: int) -> jax.Array:
    """Images [B, H, W, C] as squares side by side, row by row: [B, H * W / P^2, P^2 * C].

    Args:
      x: images.
      patch: P, which divides H and W.

    Example:
      >>> import jax.numpy as jnp
      >>> patches(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0, 1]
      Array([2, 3, 6, 7], dtype=int32)
    """
    b, h, w, c = x.shape
    rows = x.reshape(b, h // patch, patch, w, c)
    squares = rows.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return jax.lax.collapse(jax.lax.collapse(squares, 3), 1, 3)
