"""Which example comes when: an endless stream of epochs, of which a batch is a window.

Position p of the stream is example `bijection(seed, p // N)(p % N)`. Nothing is stored and nothing
is drawn in advance, so the batch of any step is a function of `(seed, step)` alone, and one that
straddles two epochs is as good as any other.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

# Below this many examples an epoch's order is the order of random numbers: a Feistel network over
# so few values is uneven, and so few are ranked in a few microseconds.
RANKED_BELOW = 128
ROUNDS = 8


def stream(seed: Any, step: Any, batch_size: int, examples: int) -> jax.Array:
    """The rows of the batch drawn at a step.

    Args:
      seed: uint32 scalar; another seed is another order.
      step: uint32 scalar, from 0.
      batch_size: B >= 1, a Python number.
      examples: N in [1, 2**30], a Python number.

    Returns:
      [B], int32 in [0, N): positions step * B to step * B + B - 1 of the stream. In every N
      positions from a multiple of N each example comes exactly once, in an order of that epoch.

    Raises:
      ValueError: batch_size below 1 or examples out of range.

    Example:
      >>> two_epochs = jnp.concatenate([stream(0, step, 4, 6) for step in range(3)])
      >>> sorted(two_epochs[:6].tolist()), sorted(two_epochs[6:].tolist())
      ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    """
    if batch_size < 1 or not 1 <= examples <= 2**30:
        raise ValueError(
            f"stream: expected batch_size >= 1 and 1 to 2**30 examples, got {batch_size} and "
            f"{examples}; examples is the number of rows in the data"
        )
    seed = jnp.asarray(seed, jnp.uint32)
    epoch, offset = _window(jnp.asarray(step, jnp.uint32), batch_size, examples)
    position = offset + jnp.arange(batch_size, dtype=jnp.uint32)
    order = _rank if examples < RANKED_BELOW else bijection
    rows = order(seed, epoch + position // examples, position % examples, examples)
    return rows.astype(jnp.int32)


def bijection(seed: jax.Array, epoch: jax.Array, index: jax.Array, examples: int) -> jax.Array:
    """Where an epoch's order puts an index: a keyed one-to-one map of [0, N) to itself.

    A Feistel network on pairs (left, right) in [0, a) x [0, b) with a * b just above N; the few
    values that fall outside [0, N) walk on until they are inside.

    Args:
      seed: uint32 scalar.
      epoch: uint32 [B].
      index: uint32 [B], in [0, N).
      examples: N, a Python number; even for N of some hundreds and more.

    Returns:
      uint32 [B] in [0, N); for one seed and epoch, different for different indexes.

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 5 (generalized
    Feistel) and section 3 (cycle walking).
    """
    a = math.isqrt(examples - 1) + 1
    b = -(-examples // a)
    keys = [
        _mix(_mix(_mix(seed) + jnp.uint32(round_ * 0x9E3779B9 % 2**32)) ^ epoch)
        for round_ in range(ROUNDS)
    ]

    def once(value: jax.Array) -> jax.Array:
        left, right = value // b, value % b
        for round_ in range(0, ROUNDS, 2):
            left = (left + _mix(right ^ keys[round_]) % a) % a
            right = (right + _mix(left ^ keys[round_ + 1]) % b) % b
        return left * b + right

    def walk(value: jax.Array) -> jax.Array:
        return jnp.where(value < examples, value, once(value))

    if a * b == examples:
        return once(index)
    return jax.lax.while_loop(lambda value: (value >= examples).any(), walk, once(index))


def _window(step: jax.Array, batch_size: int, examples: int) -> tuple[jax.Array, jax.Array]:
    """(epoch, offset) of position step * batch_size, which itself may need more than 32 bits.

    The step is taken in digits of so few bits that a digit times an offset fits 32 bits.
    """
    bits = 32 - examples.bit_length()
    epoch = offset = jnp.zeros((), jnp.uint32)
    for shift in range(0, 32, bits):
        digit = (step >> shift) & (2**bits - 1)
        epochs_of_digit, offset_of_digit = divmod(batch_size << shift, examples)
        offset = offset + digit * offset_of_digit % examples
        epoch = epoch + digit * jnp.uint32(epochs_of_digit % 2**32)
        epoch = epoch + digit * offset_of_digit // examples + offset // examples
        offset = offset % examples
    return epoch, offset


def _rank(seed: jax.Array, epoch: jax.Array, index: jax.Array, examples: int) -> jax.Array:
    """Where an epoch's order puts an index: the rank of its hash among the hashes of all."""
    key = _mix(_mix(seed) ^ epoch)
    everyone = jnp.arange(examples, dtype=jnp.uint32)
    hashes = _mix(key[:, None] ^ _mix(key[:, None] + everyone))
    mine = jnp.take_along_axis(hashes, index[:, None].astype(jnp.int32), axis=1)
    return (hashes < mine).sum(1, dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A one-to-one scramble of 32 bits, each output bit depending on every input bit.

    Source: Wellons 2018, "Prospecting for hash functions", the constants of `triple32`.
    """
    x = (x ^ (x >> 17)) * jnp.uint32(0xED5AD4BB)
    x = (x ^ (x >> 11)) * jnp.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * jnp.uint32(0x31848BAB)
    return x ^ (x >> 14)
