"""Generation: a network continues prompts, all at once or as a stream of tokens.

B sequences, T positions of prompts, N new tokens, C tokens in the vocabulary.
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
    """Continues prompts: chooses each new token from the logits that follow the tokens before it.

    The options change the logits in this order: repetition_penalty, temperature, top_k, top_p.

    Args:
      model: a network from tokens [B, T] to logits [B, T, C].
      params: the network's parameters.
      tokens: integers [B, T], T >= 1, the prompts. Shorter prompts are padded at either side with
        any ids; pass `lengths` or `mask` to say where.
      steps: N, the number of tokens to add to each prompt, an int >= 1.
      lengths: integers [B] in [1, T], the length of each prompt, for padding at the end.
      mask: bool [B, T], True for the tokens of a prompt, which must be contiguous, for padding at
        either side. A mask with another number of axes is passed to the model, as in `decode`.
      end: an id that ends a sequence, or several. An ended sequence repeats the id up to `steps`
        tokens; generation stops when all sequences have ended. Ids in the prompt end nothing.
      key: None takes the most likely token every time; a random key samples; [B] keys sample each
        sequence with a key, so that its tokens do not depend on the other sequences.
      temperature: a number > 0 that divides the logits: below 1 likely tokens become more likely,
        above 1 less.
      top_k: samples from the top_k most likely tokens (lowest id wins ties), an int >= 1; None
        samples from all.
      top_p: samples from the smallest set of most likely tokens whose probabilities add up to at
        least top_p, in (0, 1]; None samples from all.
      repetition_penalty: a number > 0 that divides the positive logits and multiplies the negative
        logits of the tokens in the prompt and among the new tokens; also without a key.
      state: the network's state; None is `{}`.
      inputs: the model's extra inputs by name, the same at every step.

    Returns:
      [B, T + N] in the dtype of `tokens`: each prompt, directly followed by its N new tokens, with
      its padding on the side where it was. A prompt gives the same tokens with and without padding
      and other prompts (with a key: if each sequence has one). Programs are compiled once for each
      model, shape, steps, top_k and end. `jit` and `vmap` cannot raise: there, new tokens are -1
      (the largest value of an unsigned dtype) from the first logits that are not finite, and for a
      prompt with an id outside the vocabulary or a wrong length or mask; the ranges of traced
      options are not checked.

    Raises:
      ValueError: an option out of range; ids outside the vocabulary; an empty prompt; logits that
        are NaN or +infinity, or all -infinity.
      PathError: tokens or inputs that the network cannot take, see `start_decoding`; it needs
        T + N - 1 positions, padding included; a key that is not a random key.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl import attention, chain, dense
      >>> model = chain(lambda t: jax.nn.one_hot(t, 8), attention(2, causal=True), dense(8))
      >>> params, _ = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
      >>> prompts = jnp.array([[0, 1, 2], [3, 0, 0]])
      >>> both = generate(model, params, prompts, steps=4, lengths=jnp.array([3, 1]))
      >>> both.shape
      (2, 7)
      >>> alone = generate(model, params, prompts[1:, :1], steps=4)
      >>> bool((both[1, :5] == alone[0]).all())
      True

    Source: top_p: Holtzman et al. 2019, arXiv 1904.09751, section 3.1; repetition_penalty: Keskar
    et al. 2019, arXiv 1909.05858, section 4.1. The paper divides all logits; here negative ones are
    multiplied, as is usual, because dividing them would make their tokens more likely.
    """
    options = {"end": end, "key": key, "temperature": temperature, "top_k": top_k}
    options |= {"top_p": top_p, "repetition_penalty": repetition_penalty}
    prompts = {"tokens": tokens, "lengths": lengths, "mask": mask}
    writer = _start("generate", model, params, state, prompts, steps, inputs, options)
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
    """The new tokens of `generate`, one after the other as they are made.

    Args:
      model, params, tokens, steps, lengths, mask, end, key, temperature, top_k, top_p,
        repetition_penalty, state, inputs: as in `generate`.

    Returns:
      An iterator of arrays [B] in the dtype of `tokens`: the first new token of every sequence,
      then the second, and so on, until there are `steps` or all sequences have ended. The tokens
      and the compiled programs are those of `generate`.

    Raises:
      ValueError, PathError: as `generate`, and for traced arrays. Wrong arguments raise at the
        call, logits that are not finite when their token is due.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl import attention, chain, dense
      >>> model = chain(lambda t: jax.nn.one_hot(t, 8), attention(2, causal=True), dense(8))
      >>> params, _ = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
      >>> prompts = jnp.array([[0, 1]])
      >>> new = [int(token[0]) for token in stream_tokens(model, params, prompts, steps=4)]
      >>> new == generate(model, params, prompts, steps=4)[0, 2:].tolist()
      True
    """
    options = {"end": end, "key": key, "temperature": temperature, "top_k": top_k}
    options |= {"top_p": top_p, "repetition_penalty": repetition_penalty}
    prompts = {"tokens": tokens, "lengths": lengths, "mask": mask}
    if _traced((params, state, prompts, inputs, options)):
        raise ValueError(
            "stream_tokens: expected arrays, got traced ones; a compiled program cannot stream: "
            "call generate under jit and vmap"
        )
    writer = _start("stream_tokens", model, params, state, prompts, steps, inputs, options)
    return writer.stream(steps)


@dataclasses.dataclass
class _Writer:
    """A generation in progress: calls the compiled programs, and checks what they report."""

    who: str
    model: Layer
    choice: Choice
    known: Known
    loop: Loop

    def write(self, count: int) -> jax.Array:
        """Goes on until every sequence has `count` new tokens; gives the last ones, [B]."""
        self.loop, newest, finite = write_on(
            self.choice, self.known, self.loop, count, model=self.model
        )
        if not _traced(finite) and not np.all(finite):
            row = int(np.argmin(finite))
            number = int(self.loop["broken"][row] - self.known["lengths"][row])
            raise ValueError(
                f"{self.who}: expected finite logits, got NaN or infinity for new token {number} "
                f"of prompt {row}; look for what is not finite in the params, the state and the "
                "inputs"
            )
        return newest

    def stream(self, steps: int) -> Iterator[jax.Array]:
        """The new tokens [B], one after the other."""
        for count in range(1, steps + 1):
            newest = self.write(count)
            yield newest
            if self.choice.end and np.isin(newest, self.choice.end).all():
                return


def _start(
    who: str,
    model: Layer,
    params: Params,
    state: State | None,
    prompts: dict[str, Any],
    steps: int,
    inputs: dict[str, Any],
    options: dict[str, Any],
) -> _Writer:
    """Checks the arguments of `generate`, and calls `read_prompts`."""
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
        check_read(who, prompts, {name: np.asarray(value) for name, value in wrong.items()})
    return _Writer(who, model, choice, known, loop)


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
