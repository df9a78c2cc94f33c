"""The compiled functions of generation: one reads the prompts, the other writes token by token.

All prompts are read together up to about the end of the shortest prompt. After that, the network
reads one token of each sequence at each step: the next token of its prompt if the prompt has not
ended, and otherwise the new token that was chosen last. So every sequence begins at position 0 of
the cache, and no layer needs to know about padding.

B is the number of sequences, T the number of positions of the prompts, N the number of new tokens,
C the number of tokens in the vocabulary.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from fdl.core.compilation import weak_jit
from fdl.core.decoding import decode, start_decoding
from fdl.core.layer import Layer
from fdl.generation.prompts import aligned, check_ids
from fdl.generation.sampling import Choice, choose
from fdl.paths import PathError
from fdl.typing import Params, State

Loop = dict[str, Any]
Known = dict[str, Any]


@weak_jit(static=["model", "steps"])
def read_prompts(
    choice: Choice, known: Known, prompts: dict[str, Any], *, model: Layer, steps: int
) -> tuple[Known, Loop, dict[str, Any]]:
    """Reads the prompts up to about the end of the shortest prompt.

    If there is no padding, it reads all prompts to their end and chooses the first new tokens.

    Args:
      choice: the options of `generate`.
      known: {"params", "state", "inputs"}.
      prompts: from `checked_prompts`.
      model: the network.
      steps: N, the number of tokens to add.

    Returns:
      (known, loop, wrong):

      - known: the argument `known`, with "tokens" [B, T], padded at the end, and with "lengths" and
        "before" from `aligned`.
      - loop["text"]: [B, T + N], each prompt, followed by its new tokens.
      - loop["at"]: the position of the token that the network reads next.
      - loop["cache"]: the cache of the network.
      - loop["done"]: bool [B], True for sequences that have ended or whose prompt is wrong.
      - loop["broken"]: [B], the position of the first token whose logits were not finite. It is
        T + N if all logits were finite, and the length of the prompt if the prompt is wrong.
      - loop["seen"]: bool [B, C], True for ids that the sequence contains so far. It exists only
        with a repetition penalty.
      - wrong: a dict that `check_read` takes.

    Raises:
      PathError: the network cannot take the tokens or inputs, or an id in `end` is outside the
        vocabulary.
    """
    tokens, places, misplaced = aligned(**prompts)
    lengths, width = places["lengths"], tokens.shape[1]
    params, state, inputs = known["params"], known["state"], known["inputs"]
    # The last token is chosen but not read, so it needs no position in the cache.
    cache = start_decoding(model, params, tokens, width + steps - 1, state=state, **inputs)
    vocabulary, ids = _vocabulary(model, known, cache, tokens)
    check_ids(choice.end, vocabulary, tokens.dtype)
    place = jnp.arange(width, dtype=jnp.int32)
    real = place < lengths[:, None]
    highest = min(ids - 1, int(jnp.iinfo(tokens.dtype).max))
    outside = real & ((tokens < 0) | (tokens > highest))
    known = {**known, **places, "tokens": tokens}
    bad = misplaced | outside.any(1)
    text = jnp.pad(tokens, ((0, 0), (0, steps)))
    loop = {"text": text, "done": bad, "broken": jnp.where(bad, lengths, text.shape[1])}
    padded = prompts["lengths"] is not None or prompts["mask"] is not None
    if padded:
        at, cache = _pieces(model, known, cache, tokens)
    else:
        logits, cache = decode(model, params, cache, tokens, **inputs)
        at = jnp.int32(width - 1)
    loop |= {"at": at, "cache": cache}
    if choice.repetition_penalty is not None:
        loop["seen"] = _marked(jnp.zeros((tokens.shape[0], vocabulary), bool), tokens, place < at)
    if not padded:
        loop = _added(choice, known, loop, logits)
    return known, loop, {"misplaced": misplaced, "outside": outside.any(1), "ids": ids}


@weak_jit(static=["model"], donate=["loop"])
def write_on(
    choice: Choice, known: Known, loop: Loop, count: Any, *, model: Layer
) -> tuple[Loop, jax.Array, jax.Array]:
    """Chooses tokens until each sequence has `count` new tokens, or all sequences have ended.

    Returns:
      (loop, token [B], finite [B]): token is the new token number `count` of each sequence, and
      finite is True if all logits of the sequence were finite so far.
    """
    lengths = known["lengths"]

    def more(loop: Loop) -> jax.Array:
        short = loop["at"] < lengths.max(initial=1) + count - 1
        return short & ~loop["done"].all() if choice.end else short

    def step(loop: Loop) -> Loop:
        token = jax.lax.dynamic_slice_in_dim(loop["text"], loop["at"], 1, 1)
        logits, cache = decode(model, known["params"], loop["cache"], token, **known["inputs"])
        return _added(choice, known, {**loop, "cache": cache}, logits)

    loop = jax.lax.while_loop(more, step, loop)
    newest = lengths + count - 1
    # If all sequences ended before new token number `count`, each one repeats its last token.
    place = jnp.minimum(newest, loop["at"])[:, None]
    token = jnp.take_along_axis(loop["text"], place, 1)[:, 0]
    return loop, token, loop["broken"] > newest


@jax.jit
def whole_text(known: Known, loop: Loop) -> jax.Array:
    """What `generate` returns, [B, T + N]."""
    text, at, tokens = loop["text"], loop["at"], known["tokens"]
    steps = text.shape[1] - tokens.shape[1]
    places = jnp.arange(text.shape[1], dtype=jnp.int32)
    text = jnp.where(places > at, jax.lax.dynamic_slice_in_dim(text, at, 1, 1), text)
    limits = jnp.iinfo(text.dtype)
    no_id = -1 if limits.min else limits.max
    text = jnp.where(places >= loop["broken"][:, None], jnp.array(no_id, text.dtype), text)
    behind = places >= known["lengths"][:, None] + steps
    text = jnp.where(behind, jnp.pad(tokens, ((0, 0), (steps, 0))), text)
    if known["before"] is None:
        return text
    return jnp.take_along_axis(text, (places - known["before"][:, None]) % places.shape[0], 1)


def _vocabulary(model: Layer, known: Known, cache: State, tokens: jax.Array) -> tuple[int, int]:
    """(C, the number of ids that the network accepts).

    The second number is the larger of C and the number of rows of the network's largest embedding.
    """
    tables: list[int] = []
    one = tokens[:, :1]
    logits, _ = jax.eval_shape(
        lambda known, cache, one: decode(
            _noting(model, tables), known["params"], cache, one, **known["inputs"]
        ),
        known,
        cache,
        one,
    )
    if logits.ndim != 3 or logits.shape[:2] != one.shape:
        raise PathError(
            f"expected a network from tokens [B, T] to logits [B, T, C], got {list(logits.shape)} "
            f"for tokens {list(one.shape)}; end the network with a layer that gives one logit for "
            "each token of the vocabulary"
        )
    return logits.shape[2], max(logits.shape[2], *tables, 1)


def _noting(layer: Layer, tables: list[int]) -> Layer:
    """A copy of the network that, when traced, appends each embedding's number of rows to `tables`.

    An embedding is a layer with a matrix `w` and integer inputs.
    """
    if layer.decoding is not None:
        return layer
    if layer.rebuild is not None:
        return layer.rebuild(
            {name: _noting(child, tables) for name, child in layer.children.items()}
        )

    def apply(params: Params, state: State, x: Any, **inputs: Any) -> tuple[Any, State]:
        table = params.get("w")
        if table is not None and table.ndim == 2 and jnp.issubdtype(x.dtype, jnp.integer):
            tables.append(table.shape[0])
        return layer.apply(params, state, x, **inputs)

    return dataclasses.replace(layer, apply=apply)


def _pieces(model: Layer, known: Known, cache: State, tokens: jax.Array) -> tuple[Any, State]:
    """Reads the prompts piece by piece, as long as a piece ends before the shortest prompt ends.

    Returns:
      (the number of tokens read from each prompt, the cache).
    """
    width = tokens.shape[1]
    shortest = known["lengths"].min(initial=width)
    # The loop below reads at most about `piece` pieces. It leaves at most `piece` tokens of the
    # shortest prompt, which are then read one by one. The square root makes both numbers small.
    piece = math.isqrt(width)

    def more(carry: tuple[jax.Array, State]) -> jax.Array:
        return carry[0] + piece < shortest

    def read(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        at, cache = carry
        part = jax.lax.dynamic_slice_in_dim(tokens, at, piece, 1)
        _, cache = decode(model, known["params"], cache, part, **known["inputs"])
        return at + piece, cache

    return jax.lax.while_loop(more, read, (jnp.int32(0), cache))


def _added(choice: Choice, known: Known, loop: Loop, logits: jax.Array) -> Loop:
    """The loop after one more token: each sequence gets it from its prompt or from the logits."""
    text, at, done = loop["text"], loop["at"], loop["done"]
    lengths = known["lengths"]
    last = jax.lax.dynamic_index_in_dim(text, at, 1, keepdims=False)
    if "seen" in loop:
        loop = {**loop, "seen": _marked(loop["seen"], last[:, None], jnp.ones((), bool))}
    at = at + 1
    chosen, finite = choose(choice, logits[:, -1], loop.get("seen"), at - lengths)
    chosen = jnp.where(done, last, chosen.astype(text.dtype))
    prompted = at < lengths
    token = jnp.where(prompted, jax.lax.dynamic_index_in_dim(text, at, 1, keepdims=False), chosen)
    fails = ~prompted & ~done & ~finite
    steps = text.shape[1] - known["tokens"].shape[1]
    over = at >= lengths + steps - 1
    ends = jnp.isin(chosen, jnp.array(choice.end, text.dtype)) | over
    return {
        **loop,
        "text": jax.lax.dynamic_update_slice_in_dim(text, token[:, None], at, 1),
        "at": at,
        "done": done | fails | (~prompted & ends),
        "broken": jnp.where(fails, at, loop["broken"]),
    }


def _marked(seen: jax.Array, ids: jax.Array, real: jax.Array) -> jax.Array:
    """`seen` [B, C], set to True for each id in `ids` [B, T] where `real` is True."""
    rows = jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None]
    return seen.at[rows, ids].max(jnp.broadcast_to(real, ids.shape))
