"""Prompts of different lengths in one array [B, T], and the checks of such prompts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_array, fitting, is_count
from fdl.paths import PathError


def check_counts(who: str, steps: Any, top_k: Any) -> None:
    """Raises unless `steps` is an int >= 1 and `top_k` is either None or an int >= 1."""
    if not is_count(steps) or not (top_k is None or is_count(top_k)):
        raise ValueError(
            f"{who}: expected steps >= 1 and top_k >= 1 or None, got steps {steps} and top_k "
            f"{top_k}; steps is the number of tokens to add, and top_k=None samples from all tokens"
        )


def checked_prompts(who: str, tokens: Any, lengths: Any, mask: Any) -> dict[str, Any]:
    """Checks the prompts.

    Returns:
      {"tokens": [B, T], "lengths": [B] or None, "mask": [B, T] or None}.

    Raises:
      ValueError: an argument has the wrong shape or dtype, or both lengths and mask are given.
    """
    tokens, lengths = fitting(who, "tokens", tokens), fitting(who, "lengths", lengths)
    check_array(who, tokens, "tokens")
    if tokens.ndim != 2 or not tokens.shape[1] or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"{who}: expected integer tokens [B, T] with T >= 1, got {tokens.dtype} "
            f"{list(tokens.shape)}; pass prompts of at least one token"
        )
    if lengths is not None and mask is not None:
        raise ValueError(
            f"{who}: expected either lengths or a mask [B, T] of the prompts, got both; leave one "
            "of them out"
        )
    if lengths is not None:
        lengths = jnp.asarray(lengths)
        if lengths.shape != tokens.shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise ValueError(
                f"{who}: expected integer lengths [{tokens.shape[0]}] for tokens "
                f"{list(tokens.shape)}, got {lengths.dtype} {list(lengths.shape)}; pass the number "
                "of tokens of each prompt"
            )
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.shape != tokens.shape or mask.dtype != jnp.bool_:
            raise ValueError(
                f"{who}: expected a bool mask {list(tokens.shape)} like tokens, got {mask.dtype} "
                f"{list(mask.shape)}; pass True for the tokens of each prompt; a mask for the "
                "model itself has 4 axes"
            )
    return {"tokens": jnp.asarray(tokens), "lengths": lengths, "mask": mask}


def aligned(
    tokens: jax.Array, lengths: jax.Array | None, mask: jax.Array | None
) -> tuple[jax.Array, dict[str, Any], jax.Array]:
    """Moves the padding of each prompt behind the prompt.

    Returns:
      (tokens, places, misplaced):

      - tokens [B, T]: the prompts, with all padding at the end.
      - places["lengths"]: int32 [B] in [1, T], the number of tokens of each prompt.
      - places["before"]: int32 [B], the number of padding positions that were before each prompt.
        It is None if there is no mask.
      - misplaced: bool [B]. True if the length of the prompt is outside [1, T], or if its mask is
        not True for one contiguous, non-empty run of tokens.
    """
    count, width = tokens.shape
    places = jnp.arange(width, dtype=jnp.int32)
    before, misplaced = None, jnp.zeros(count, bool)
    if mask is not None:
        before = mask.argmax(1).astype(jnp.int32)
        order = (places + before[:, None]) % width
        tokens, mask = (jnp.take_along_axis(array, order, 1) for array in (tokens, mask))
        lengths = mask.sum(1, dtype=jnp.int32)
        misplaced = (mask != (places < lengths[:, None])).any(1)
    if lengths is None:
        lengths = jnp.full(count, width, jnp.int32)
    misplaced |= (lengths < 1) | (lengths > width)
    # The lengths are clipped, because a compiled function cannot raise.
    lengths = jnp.clip(lengths.astype(jnp.int32), 1, width)
    return tokens, {"lengths": lengths, "before": before}, misplaced


def check_ids(end: tuple[int, ...], vocabulary: int, dtype: Any) -> None:
    """Raises unless all ids in `end` are in the vocabulary, and `dtype` can hold the vocabulary.

    Args:
      end: the ids that end a sequence.
      vocabulary: C, the number of ids that the network chooses from.
      dtype: the dtype of the tokens.
    """
    if any(token >= vocabulary for token in end):
        raise PathError(
            f"expected end ids from 0 to {vocabulary - 1}, the ids that the network has logits "
            f"for, got {max(end)}; correct the ids in `end`"
        )
    if vocabulary - 1 > jnp.iinfo(dtype).max:
        raise PathError(
            f"expected tokens of a dtype that holds ids from 0 to {vocabulary - 1}, got {dtype}; "
            "convert them with astype(jnp.int32)"
        )


def check_read(who: str, prompts: dict[str, Any], wrong: dict[str, np.ndarray]) -> None:
    """Raises for the first prompt that has a wrong length, a wrong mask or an unknown id.

    Args:
      who: the name of the function that the user called, for the error message.
      prompts: the result of `checked_prompts`.
      wrong: a dict. "misplaced" is bool [B], True if the length or the mask is wrong; "outside" is
        bool [B], True if an id is unknown; "ids" is the number of ids that the network accepts.
    """
    tokens = np.asarray(prompts["tokens"])
    width = tokens.shape[1]
    mask = None if prompts["mask"] is None else np.asarray(prompts["mask"])
    lengths = None if prompts["lengths"] is None else np.asarray(prompts["lengths"])
    if wrong["misplaced"].any():
        row = int(np.argmax(wrong["misplaced"]))
        if mask is not None:
            raise ValueError(
                f"{who}: expected a mask that is True for one or more contiguous tokens of each "
                f"prompt, got {mask[row].astype(int).tolist()} for prompt {row}; put all padding "
                "on one side"
            )
        assert lengths is not None
        raise ValueError(
            f"{who}: expected lengths from 1 to {width}, got {lengths[row]} for prompt {row}; each "
            "prompt needs at least one token"
        )
    if wrong["outside"].any():
        row, most = int(np.argmax(wrong["outside"])), int(wrong["ids"]) - 1
        ids = tokens[row]
        if mask is not None:
            ids = ids[mask[row]]
        elif lengths is not None:
            ids = ids[: lengths[row]]
        raise ValueError(
            f"{who}: expected ids from 0 to {most}, got {ids[(ids < 0) | (ids > most)][0]} in "
            f"prompt {row}; correct this id, for which the network has no logits or embedding"
        )
