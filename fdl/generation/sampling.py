"""Chooses a token from logits: the most likely one, or a sample.

B is the number of sequences, C the number of tokens in the vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_key, check_number, is_count
from fdl.ops.numerics import widened


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "temperature", "top_p", "repetition_penalty"],
    meta_fields=["top_k", "end"],
)
@dataclasses.dataclass(frozen=True)
class Choice:
    """The options of `generate` as one pytree; top_k and end are static.

    Args:
      key: None (take the most likely token), one random key, or [B] keys, one for each sequence.
      temperature: a float32 scalar.
      top_p: a float32 scalar, or None.
      repetition_penalty: a float32 scalar, or None.
      top_k: an int, or None.
      end: the ids that end a sequence; empty if no id does.
    """

    key: Any
    temperature: Any
    top_p: Any
    repetition_penalty: Any
    top_k: int | None
    end: tuple[int, ...]

    @property
    def one_key(self) -> bool:
        """Whether there is one key for the whole batch."""
        return jnp.ndim(self.key) == (0 if _typed(self.key) else 1)


def checked_choice(
    who: str,
    count: int,
    *,
    key: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    repetition_penalty: Any,
    end: Any,
) -> Choice:
    """The options of `generate` as a `Choice`; the range of a traced option is not checked.

    Args:
      who: the name of the function that the user called, for the error message.
      count: B, the number of sequences.
      key, temperature, top_k, top_p, repetition_penalty, end: as in `generate`.

    Raises:
      ValueError: an option is out of range.
    """
    _check_keys(who, count, key)
    greedy = "to take the most likely token every time, pass key=None"
    check_number(who, "temperature", temperature, "(0, inf]", greedy)
    if top_p is not None:
        whole = "None samples from all tokens"
        check_number(who, "top_p", top_p, "(0, 1]", whole)
    if repetition_penalty is not None:
        rarer = "1 means no penalty, and 1.2 makes earlier tokens less likely"
        check_number(who, "repetition_penalty", repetition_penalty, "(0, inf)", rarer)
    scalars = {"temperature": temperature, "top_p": top_p, "repetition_penalty": repetition_penalty}
    for what, value in scalars.items():
        if np.ndim(value):
            raise ValueError(
                f"{who}: expected one {what} for all sequences, got an array of shape "
                f"{list(np.shape(value))}; for one value per sequence, apply jax.vmap to {who}"
            )
        scalars[what] = None if value is None else jnp.asarray(value, jnp.float32)
    return Choice(key, top_k=top_k and int(top_k), end=_ids(who, end), **scalars)


def choose(
    choice: Choice, logits: jax.Array, seen: jax.Array | None, numbers: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Chooses a token for each sequence.

    Args:
      choice: the options.
      logits: [B, C].
      seen: bool [B, C], True for the tokens that are penalized; None if there is no repetition
        penalty.
      numbers: int32 [B], the position of the token among the new tokens of its sequence: 0 for the
        first new token. It is negative while the network still reads the prompt.

    Returns:
      (ids int32 [B], finite bool [B]). finite is False for a sequence with a logit that is NaN or
      +infinity, and for a sequence whose logits are all -infinity.
    """
    if choice.repetition_penalty is not None:
        logits = _penalized(logits, seen, choice.repetition_penalty)
    highest = logits.max(-1)
    finite = jnp.isfinite(highest)
    if choice.key is None:
        return logits.argmax(-1).astype(jnp.int32), finite
    # The temperature is raised to `bound` if it is lower, so that highest / temperature is finite.
    bound = 1e-37 * (1 + jnp.abs(highest.astype(jnp.float32)))
    heat = jnp.maximum(choice.temperature, bound)[:, None]
    logits = cut(logits.astype(jnp.float32) / heat, choice.top_k, choice.top_p)
    if choice.one_key:
        # All sequences share one key, which is derived from the largest of their token numbers.
        key = jax.random.fold_in(choice.key, numbers.max(initial=0))
        return jax.random.categorical(key, logits), finite
    keys = jax.vmap(jax.random.fold_in)(choice.key, jnp.maximum(numbers, 0))
    return jax.vmap(jax.random.categorical)(keys, logits), finite


def cut(logits: jax.Array, top_k: int | None, top_p: jax.Array | None) -> jax.Array:
    """The logits [B, C], with -infinity for each token that top_k or top_p excludes.

    Args:
      logits: [B, C].
      top_k: keeps the top_k largest logits (the lowest id wins ties); None keeps all logits.
      top_p: of the tokens that top_k leaves, keeps the smallest set of most likely tokens whose
        probabilities add up to at least top_p; None keeps all tokens that top_k leaves.
    """
    vocabulary = logits.shape[-1]
    kept = min(top_k or vocabulary, vocabulary)
    if top_p is None and kept == vocabulary:
        return logits
    values, ids = jax.lax.top_k(logits, kept)
    if top_p is not None:
        mass = jnp.cumsum(jax.nn.softmax(values, -1), -1)
        # Column i of `before` is the probability of all tokens before token i. Column 0 is
        # -infinity, so that the most likely token is never cut off.
        before = jnp.pad(mass[:, :-1], ((0, 0), (1, 0)), constant_values=-jnp.inf)
        # With top_p = 1, all tokens are kept, even if a rounded sum reaches 1 before the last
        # token.
        values = jnp.where((before < top_p) | (top_p >= 1), values, -jnp.inf)
    nothing = jnp.full_like(logits, -jnp.inf)
    return jnp.put_along_axis(nothing, ids, values, axis=-1, inplace=False)


def _penalized(logits: jax.Array, seen: Any, penalty: jax.Array) -> jax.Array:
    """The logits after the repetition penalty, in float32 or float64."""
    logits = widened(logits)
    penalty = penalty.astype(logits.dtype)
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def _check_keys(who: str, count: int, key: Any) -> None:
    """Raises unless `key` is None, one random key, or `count` keys, one for each sequence."""
    shape, typed = jnp.shape(key) if hasattr(key, "shape") else (), _typed(key)
    several = len(shape) == 1 if typed else len(shape) == 2 and key.dtype == jnp.uint32
    if not several:
        check_key(key, who)
    elif shape != ((count,) if typed else (count, 2)):
        raise ValueError(
            f"{who}: expected one random key, or one for each of {count} sequences, got "
            f"{key.dtype} {list(shape)}; make them with jax.random.split(key, {count})"
        )


def _typed(key: Any) -> bool:
    return hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _ids(who: str, end: Any) -> tuple[int, ...]:
    """The ids in `end` as a tuple; `end` is None, one id, or several ids."""
    if end is None:
        return ()
    ids = [end] if isinstance(end, jax.core.Tracer) else np.ravel(end).tolist()
    if np.ndim(end) > 1 or not ids or not all(is_count(each, 0) for each in ids):
        raise ValueError(
            f"{who}: expected end to be one token id or several, got {end!r}; with None, no "
            "sequence ends early"
        )
    return tuple(ids)
