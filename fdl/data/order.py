"""The order of the examples: an endless stream of shuffled epochs, split into batches.

The example at position p of the stream is `bijection(seed, epoch=p // N, index=p % N, examples=N)`,
or `_rank` of the same arguments if N is small. Nothing is stored: the batch of a step depends only
on `(seed, step)`. A batch may begin in one epoch and end in the next.
"""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import as_int, check_uint32, described, is_count

# If N is smaller than this, an epoch is ordered by the ranks of N hashes (`_rank`), because a
# Feistel network on few values does not make all orders equally likely. Ranking fewer than 128
# hashes takes only microseconds.
RANKED_BELOW = 128
ROUNDS = 8

ArrayOfAnyKind = TypeVar("ArrayOfAnyKind", jax.Array, np.ndarray)


def stream(seed: Any, step: Any, batch_size: int, examples: int) -> jax.Array:
    """The indices of the examples in the batch of a step.

    Args:
      seed: an int in [0, 2**32), or a scalar integer array; it determines the order.
      step: an int in [0, 2**32), or a scalar integer array; the first step is 0.
      batch_size: B, an int >= 1.
      examples: N, the number of examples, an int in [1, 2**30].

    Returns:
      int32 [B], indices in [0, N): the examples at the positions step * B to step * B + B - 1 of
      the stream. An epoch is N consecutive positions, starting at a multiple of N, and contains
      each example exactly once.

    Raises:
      ValueError: an argument is not an integer, or is out of range.

    Example:
      >>> two_epochs = jnp.concatenate([stream(0, step, 4, 6) for step in range(3)])
      >>> sorted(two_epochs[:6].tolist()), sorted(two_epochs[6:].tolist())
      ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    """
    batch_size, examples = as_int(batch_size), as_int(examples)
    if not (is_count(batch_size) and is_count(examples) and examples <= 2**30):
        raise ValueError(
            "stream: expected batch_size >= 1 and 1 to 2**30 examples, got "
            f"{described(batch_size)} and {described(examples)}; examples is the number of rows in "
            "the data"
        )
    seed = check_uint32("stream", "a seed", seed, "take it modulo 2**32")
    step = check_uint32("stream", "a step", step, "the first step is 0")
    epoch, offset = _window(step, int(batch_size), int(examples))
    position = offset + jnp.arange(batch_size, dtype=jnp.uint32)
    if batch_size <= examples:
        more, position = _carried(position, examples)
    else:
        more, position = position // examples, position % examples
    order = _rank if examples < RANKED_BELOW else bijection
    return order(seed, epoch + more, position, examples).astype(jnp.int32)


def bijection(seed: jax.Array, epoch: jax.Array, index: jax.Array, examples: int) -> jax.Array:
    """Maps positions in an epoch to examples: one-to-one on [0, N), for each seed and epoch.

    The map is a Feistel network on pairs (left, right) in [0, a) x [0, b), where a * b is equal to
    N or slightly larger. A result outside [0, N) is mapped again until it is inside.

    Args:
      seed: uint32 scalar.
      epoch: uint32 [B].
      index: uint32 [B], positions in the epoch, in [0, N).
      examples: N, an int. For N < `RANKED_BELOW`, not all orders are equally likely.

    Returns:
      uint32 [B], in [0, N).

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 5 (generalized
    Feistel) and section 3 (cycle walking).
    """
    a = math.isqrt(examples - 1) + 1
    b = -(-examples // a)
    # The keys of all rounds are computed together, and the program contains `once` only once. This
    # keeps the program small: a longer program took a third of the time that a training step of a
    # small network takes to compile.
    rounds = np.arange(ROUNDS, dtype=np.uint32)[:, None] * np.uint32(0x9E3779B9)
    keys = _mix(_mix(_mix(seed) + rounds) ^ epoch)

    def once(value: jax.Array) -> jax.Array:
        left, right = value // b, value % b
        for round_ in range(0, ROUNDS, 2):
            left = (left + _mix(right ^ keys[round_]) % a) % a
            right = (right + _mix(left ^ keys[round_ + 1]) % b) % b
        return left * b + right

    if a * b == examples:
        return once(index)

    def walk(found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        value, inside = found
        value = jnp.where(inside, value, once(value))
        return value, value < examples

    start = index, jnp.zeros_like(index, bool)
    return jax.lax.while_loop(lambda found: ~found[1].all(), walk, start)[0]


def _window(step: jax.Array, batch_size: int, examples: int) -> tuple[jax.Array, jax.Array]:
    """(epoch, offset) = divmod(step * batch_size, examples), without overflow.

    The product step * batch_size may need more than 32 bits. So the step is split into digits with
    so few bits that digit * examples fits in 32 bits, and the results of all digits are added.
    """
    bits = 32 - examples.bit_length()
    epoch = offset = jnp.zeros((), jnp.uint32)
    for shift in range(0, 32, bits):
        digit = (step >> shift) & (2**bits - 1)
        epochs_of_digit, offset_of_digit = divmod(batch_size << shift, examples)
        product = digit * offset_of_digit
        epochs = product // examples
        more, offset = _carried(offset + (product - epochs * examples), examples)
        epoch = epoch + digit * jnp.uint32(epochs_of_digit % 2**32) + epochs + more
    return epoch, offset


def _carried(position: jax.Array, examples: int) -> tuple[jax.Array, jax.Array]:
    """divmod(position, examples) for position < 2 * examples.

    A comparison costs less than a division: XLA compiles and runs each division by itself.
    """
    more = (position >= examples).astype(jnp.uint32)
    return more, position - more * examples


def _rank(seed: jax.Array, epoch: jax.Array, index: jax.Array, examples: int) -> jax.Array:
    """`bijection` for few examples: it gives the rank of the hash of an index among all hashes."""
    key = _mix(_mix(seed) ^ epoch)
    indexes = jnp.arange(examples, dtype=jnp.uint32)
    hashes = _mix(key[:, None] ^ _mix(key[:, None] + indexes))
    own = jnp.take_along_axis(hashes, index[:, None].astype(jnp.int32), axis=1)
    return (hashes < own).sum(1, dtype=jnp.uint32)


def permutation(size: int, *keys: int) -> np.ndarray:
    """A random order of `size` indices, int [size]; it depends only on the keys.

    It needs memory for all indices, but JAX compiles nothing. `stream` needs memory only for a
    batch, but JAX compiles a program for each size.
    """
    key = np.array([len(keys)], np.uint32)
    for each in keys:
        key = _mix(_mix(key) + np.array([each % 2**32], np.uint32))
    # Different indices have different hashes, so an order is well defined.
    return np.argsort(_mix(key ^ _mix(key + np.arange(size, dtype=np.uint32))))


def _mix(x: ArrayOfAnyKind) -> ArrayOfAnyKind:
    """A one-to-one hash of 32-bit integers; each output bit depends on all input bits.

    Source: Wellons 2018, "Prospecting for hash functions", the constants of `triple32`.
    """
    x = (x ^ (x >> 17)) * np.uint32(0xED5AD4BB)
    x = (x ^ (x >> 11)) * np.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * np.uint32(0x31848BAB)
    return x ^ (x >> 14)
