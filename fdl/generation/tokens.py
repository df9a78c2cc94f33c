"""Generation: a network continues prompts, either all at once or as a stream of tokens.

B is the number of sequences, T the number of positions of the prompts, N the number of new tokens,
C the number of tokens in the vocabulary.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
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
    """Continues prompts: chooses each new token from the logits at the position before it.

    The options change the logits in this order: repetition_penalty, temperature, top_k, top_p.

    Args:
      model: a network from tokens [B, T] to logits [B, T, C].
      params: the network's parameters.
      tokens: integers [B, T], T >= 1, the prompts. A prompt shorter than T is padded with any ids,
        before or after it. Pass `lengths` or `mask` to say where the padding is.
      steps: N, the number of tokens to add to each prompt, an int >= 1.
      lengths: integers [B] in [1, T], the number of tokens of each prompt, if the padding is after
        the prompts. Pass either `lengths` or `mask`, not both.
      mask: bool [B, T], True for the tokens of a prompt, which must be contiguous. The padding may
        be before or after them. A mask that does not have 2 axes is passed to the model, as in
        `decode`.
      end: an id that ends a sequence when it is chosen, or several such ids. An ended sequence
        repeats this id until it has N new tokens. Generation stops early when all sequences have
        ended. These ids have no effect inside a prompt.
      key: None takes the most likely token every time. One random key samples all sequences. An
        array of B keys samples each sequence with its own key, so that its tokens do not depend on
        the rest of the batch.
      temperature: a number > 0 that divides the logits. Below 1, likely tokens become even more
        likely; above 1, they become less likely.
      top_k: an int >= 1: samples from the top_k most likely tokens (the lowest id wins ties). None
        samples from all tokens.
      top_p: a number in (0, 1]: samples from the smallest set of most likely tokens whose
        probabilities add up to at least top_p. None samples from all tokens.
      repetition_penalty: a number > 0. For each token that the prompt or the new tokens already
        contain, a positive logit is divided by the penalty, and a negative logit is multiplied by
        the penalty. The penalty also has an effect without a key. None means no penalty.
      state: the network's state; None means `{}`.
      inputs: the model's extra inputs by name. Each step gets the same extra inputs.

    Returns:
      [B, T + N] in the dtype of `tokens`: each prompt, directly followed by its N new tokens. The
      padding of a prompt stays on the side where it was.

      The new tokens of a prompt do not depend on its padding or on the rest of the batch. (With
      sampling, this is true only if there is one key for each sequence.) The function is compiled
      once for each model, shape, steps, top_k and end.

      Under `jit` and `vmap`, wrong values cannot raise an error. Instead, if the logits of a new
      token are not finite, this token and all later tokens are -1 (or the largest value of an
      unsigned dtype). All new tokens are -1 if the prompt has an id outside the vocabulary, a wrong
      length or a wrong mask. The ranges of traced options are not checked.

    Raises:
      ValueError: an option is out of range, an id in a prompt is outside the vocabulary, a prompt
        is empty, a logit is NaN or +infinity, or all logits of a token are -infinity.
      PathError: the network cannot take the tokens or inputs (see `start_decoding`), the network
        has fewer than T + N - 1 positions (padding needs positions too), or `key` is not a random
        key.

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
    et al. 2019, arXiv 1909.05858, section 4.1. The paper divides all logits. Here negative logits
    are multiplied, as is usual, because a division would make their tokens more likely.
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
    """Yields the new tokens of `generate` one by one, as they are chosen.

    Args:
      model, params, tokens, steps, lengths, mask, end, key, temperature, top_k, top_p,
        repetition_penalty, state, inputs: as in `generate`.

    Returns:
      An iterator of arrays [B] in the dtype of `tokens`: the first new token of every sequence,
      then the second new token of every sequence, and so on. It ends after `steps` arrays, or when
      all sequences have ended. The tokens are the same as those of `generate`, and both functions
      share their compiled code.

    Raises:
      ValueError, PathError: in the same cases as `generate`, and if an array is traced. Wrong
        arguments raise when `stream_tokens` is called. Logits that are not finite raise when the
        iterator reaches their token.

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
            "stream_tokens: expected arrays, got traced arrays; a compiled function cannot yield "
            "tokens one by one, so call generate under jit and vmap"
        )
    writer = _start("stream_tokens", model, params, state, prompts, steps, inputs, options)
    return writer.stream(steps)


@dataclasses.dataclass
class _Writer:
    """A generation in progress: calls the compiled functions, and checks their results."""

    who: str
    model: Layer
    choice: Choice
    known: Known
    loop: Loop

    def write(self, count: int) -> jax.Array:
        """Chooses tokens until every sequence has `count` new ones; returns the last of them, [B].

        Raises:
          ValueError: logits are not finite.
        """
        self.loop, newest, finite = write_on(
            self.choice, self.known, self.loop, count, model=self.model
        )
        if not _traced(finite) and not np.all(finite):
            row = int(np.argmin(finite))
            number = int(self.loop["broken"][row] - self.known["lengths"][row])
            raise ValueError(
                f"{self.who}: expected finite logits, got NaN or infinity for new token {number} "
                f"of prompt {row}; check whether the params, the state and the inputs are finite"
            )
        return newest

    def stream(self, steps: int) -> Iterator[jax.Array]:
        """Yields the new tokens, arrays [B], one by one."""
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
    """Checks the arguments of `generate`, calls `read_prompts`, and returns the writer."""
    check_counts(who, steps, options["top_k"])
    if prompts["mask"] is not None and np.ndim(prompts["mask"]) != 2:
        inputs = {**inputs, "mask": prompts["mask"]}
        prompts = {**prompts, "mask": None}
    prompts = checked_prompts(who, **prompts)
    choice = checked_choice(who, prompts["tokens"].shape[0], **options)
    # stop_gradient keeps JAX from computing derivatives of the logits: tokens have no derivative.
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
