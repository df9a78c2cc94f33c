"""Generation: a network writes on from prompts, all at once or as a stream of tokens.

The letters: B sequences, T places for prompts, N new tokens, C kinds of tokens.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fdl.core.layer import Layer
from fdl.generation.prompts import check_counts, check_read, checked_prompts
from fdl.generation.sampling import Choice, checked_choice
from fdl.generation.token_loop import Known, Loop, read_prompts, whole_text, write_on
from fdl.paths import PathError
from fdl.typing import Params, State


def generate(
    model: Layer,
    params: Params,
    tokens: jax.Array,
    steps: int,
    *,
    lengths: Any = None,
    mask: Any = None,
    end: Any = None,
    key: Any = None,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    top_p: float | jax.Array | None = None,
    repetition_penalty: float | jax.Array | None = None,
    state: State | None = None,
    **inputs: Any,
) -> jax.Array:
    """Goes on from prompts: each new token is chosen from the network's answer to all before it.

    The options change the logits in this order: repetition_penalty, temperature, top_k, top_p.

    Args:
      model: a network from tokens [B, T] to logits [B, T, C].
      params: its parameters.
      tokens: integers [B, T], T >= 1, the prompts. Shorter ones are padded, at either side, with
        any ids; say where by `lengths` or `mask`.
      steps: N, how many tokens to add to each prompt, >= 1.
      lengths: integers [B] from 1 to T, for padding at the end: how long each prompt is.
      mask: bool [B, T], for padding at either side: True for the tokens of a prompt, which stand
        side by side. A mask with another number of axes is the model's own, as in `decode`.
      end: the id that ends a sequence, or several. The sequence repeats it, up to `steps` tokens;
        generation stops when all have ended. One in the prompt ends nothing.
      key: None takes the likeliest token every time; a random key draws; [B] keys draw for each
        sequence alone, so that it is what generate gives for this prompt and key alone.
      temperature: > 0, divides the logits: below 1 keeps to likely tokens, above 1 is freer.
      top_k: draws among the top_k likeliest tokens (lowest id wins ties); None among all.
      top_p: draws among the likeliest tokens whose probabilities together first reach this, in
        (0, 1]; None among all.
      repetition_penalty: > 0, divides the positive logits, and multiplies the negative ones, of
        the tokens in the prompt and in the answer so far; also without a key.
      state: the model's own state, if it has any.
      inputs: the model's extra inputs, the same at every step.

    Returns:
      [B, T + N] in the dtype of `tokens`: each prompt, its N new tokens right behind it, and its
      padding on the side where it was. Padded or not, a prompt gives the tokens that it gives alone
      (with a key: if it has its own). Programs are compiled once for each model, shape, steps,
      top_k and end. Under `jit` and `vmap`, which cannot raise, new tokens are -1 (of an unsigned
      dtype the largest value) from where the logits are not finite, and for a prompt with an id
      outside the vocabulary or a wrong length or mask; traced numbers are not checked.

    Raises:
      ValueError: an option out of range; ids outside the vocabulary; no token to go on from; logits
        that are NaN or infinite (-infinity is allowed beside finite ones).
      PathError: what the network cannot take, see `start_decoding`: it needs T + N - 1 positions, T
        with the padding; a key that is not a random key.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl import attention, chain, dense
      >>> model = chain(lambda t: jax.nn.one_hot(t, 8), attention(2, causal=True), dense(8))
      >>> params, _ = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
      >>> prompts = jnp.array([[0, 1, 2], [3, 0, 0]])
      >>> both = generate(model, params, prompts, 4, lengths=jnp.array([3, 1]))
      >>> both.shape
      (2, 7)
      >>> bool((both[1, :5] == generate(model, params, prompts[1:, :1], 4)[0]).all())
      True

    Source: top_p: Holtzman et al. 2019, arXiv 1904.09751, section 3.1; repetition_penalty: Keskar
    et al. 2019, arXiv 1909.05858, section 4.1, which divides only; a negative logit is multiplied,
    as everywhere else, since to divide it would make its token likelier.
    """
    options = {"end": end, "key": key, "temperature": temperature, "top_k": top_k}
    options |= {"top_p": top_p, "repetition_penalty": repetition_penalty}
    prompts = {"tokens": tokens, "lengths": lengths, "mask": mask}
    writer = _begun("generate", model, params, state, prompts, steps, inputs, options)
    writer.write(steps)
    return whole_text(writer.known, writer.loop)


def stream_tokens(
    model: Layer,
    params: Params,
    tokens: jax.Array,
    steps: int,
    *,
    lengths: Any = None,
    mask: Any = None,
    end: Any = None,
    key: Any = None,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    top_p: float | jax.Array | None = None,
    repetition_penalty: float | jax.Array | None = None,
    state: State | None = None,
    **inputs: Any,
) -> Iterator[jax.Array]:
    """The new tokens of `generate`, each as soon as there is one.

    Args:
      model, params, tokens, steps, lengths, mask, end, key, temperature, top_k, top_p,
        repetition_penalty, state, inputs: as in `generate`.

    Returns:
      An iterator of arrays [B] in the dtype of `tokens`: the first new token of every sequence,
      then the second, and so on, until there are `steps` or all sequences have ended. They are
      those of `generate`, and come from the same compiled programs.

    Raises:
      ValueError, PathError: as `generate`; also for traced arrays, as under `jit`. Wrong arguments
      are refused by the call, logits that are not finite when their token is due.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl import attention, chain, dense
      >>> model = chain(lambda t: jax.nn.one_hot(t, 8), attention(2, causal=True), dense(8))
      >>> params, _ = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
      >>> new = [int(t[0]) for t in stream_tokens(model, params, jnp.array([[0, 1]]), 4)]
      >>> new == generate(model, params, jnp.array([[0, 1]]), 4)[0, 2:].tolist()
      True
    """
    options = {"end": end, "key": key, "temperature": temperature, "top_k": top_k}
    options |= {"top_p": top_p, "repetition_penalty": repetition_penalty}
    prompts = {"tokens": tokens, "lengths": lengths, "mask": mask}
    given = (params, state, prompts, inputs, options)
    if _traced(given):
        raise ValueError(
            "stream_tokens: expected arrays, got traced ones; a compiled program cannot stream: "
            "call generate under jit and vmap"
        )
    writer = _begun("stream_tokens", model, params, state, prompts, steps, inputs, options)
    return writer.stream(steps)


@dataclasses.dataclass
class _Writer:
    """A generation under way, seen from outside of the compiled programs."""

    who: str
    model: Layer
    choice: Choice
    known: Known
    loop: Loop

    def write(self, count: int) -> jax.Array:
        """Goes on until every sequence has `count` new tokens; gives the last of them, [B]."""
        given = (self.choice, self.known, self.loop, count)
        self.loop, newest, sound = write_on(*given, model=self.model)
        if not _traced(sound) and not np.all(sound):
            row = int(np.argmin(sound))
            number = int(self.loop["broken"][row] - self.known["lengths"][row])
            raise ValueError(
                f"{self.who}: expected finite logits, got NaN or infinity for new token {number} "
                f"of prompt {row}; look for what is not finite in the params, the state and the "
                "inputs"
            )
        return newest

    def stream(self, steps: int) -> Iterator[jax.Array]:
        for count in range(1, steps + 1):
            newest = self.write(count)
            yield newest
            if self.choice.end and np.isin(newest, self.choice.end).all():
                return


def _begun(
    who: str,
    model: Layer,
    params: Params,
    state: State | None,
    prompts: dict[str, Any],
    steps: int,
    inputs: dict[str, Any],
    options: dict[str, Any],
) -> _Writer:
    """Checks what was given, and reads as much of the prompts as all of them have."""
    check_counts(who, steps, options["top_k"])
    if prompts["mask"] is not None and np.ndim(prompts["mask"]) != 2:
        inputs = {**inputs, "mask": prompts["mask"]}
        prompts = {**prompts, "mask": None}
    prompts = checked_prompts(who, **prompts)
    choice = checked_choice(who, prompts["tokens"].shape[0], **options)
    # Tokens have no derivative, so none is computed.
    known = jax.lax.stop_gradient({"params": params, "state": state or {}, "inputs": inputs})
    try:
        known, loop, wrong = read_prompts(choice, known, prompts, model=model, steps=int(steps))
    except PathError as error:
        error.layer = error.layer or who
        raise
    if not _traced((wrong, prompts)):
        check_read(who, prompts, {what: np.asarray(each) for what, each in wrong.items()})
    return _Writer(who, model, choice, known, loop)


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
