"""The time to decode one token, with a cache and with a full pass, for several lengths L.

Both programs are compiled. With the cache, a step reads L keys and values, so its time is a
constant plus a part that grows with L. Without a cache, every token needs a full pass over L
tokens. The time of this pass grows at least with L, and the time of its attention scores grows with
L * L.
"""

import functools

import jax
import jax.numpy as jnp
import measure
import numpy as np

import fdl

KINDS = 64


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="decoded in one timed call")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=4)
    options = parser.parse_args()
    model = gpt(options.width, options.blocks)
    rows = [row(model, length, options) for length in options.lengths]
    first, last = rows[0], rows[-1]
    measure.report(
        "decoding",
        rows,
        width=options.width,
        blocks=options.blocks,
        times_as_long=last["length"] / first["length"],
        times_the_cached_step=last["us_a_token"] / first["us_a_token"],
        times_the_full_pass=last["us_full_pass"] / first["us_full_pass"],
    )


def gpt(width, blocks):
    def block():
        return fdl.chain(
            fdl.residual(fdl.rms_norm(), fdl.attention(4, causal=True, rotary=True)),
            fdl.residual(fdl.rms_norm(), fdl.dense(4 * width), fdl.gelu, fdl.dense(width)),
            name="block",
        )

    return fdl.chain(
        fdl.embedding(KINDS, width), *(block() for _ in range(blocks)), head=fdl.dense(KINDS)
    )


def row(model, length, options):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, KINDS, (1, length)), jnp.int32)
    params, _ = model.init(jax.random.key(0), tokens)
    before = tokens[:, : length - options.tokens]
    cache = fdl.start_decoding(model, params, tokens, length)
    _, cache = jax.jit(functools.partial(fdl.decode, model))(params, cache, before)
    last = tokens[:, -options.tokens :]

    @jax.jit
    def by_cache(params, cache, last):
        def step(cache, token):
            y, cache = fdl.decode(model, params, cache, token[:, None])
            return cache, y[:, 0]

        return jax.lax.scan(step, cache, last.T)[1]

    @jax.jit
    def by_full_pass(params, tokens):
        return model.apply(params, {}, tokens)[0]

    decoded, whole = by_cache(params, cache, last), by_full_pass(params, tokens)
    error = np.abs(decoded[:, 0] - whole[0, -options.tokens :]).max() / np.abs(whole).max()
    assert error <= 1e-5, error
    timing = measure.paired(
        lambda: by_cache(params, cache, last).block_until_ready(),
        lambda: by_full_pass(params, tokens).block_until_ready(),
        options.pairs,
    )
    step = timing["seconds"] / options.tokens
    return {
        "length": length,
        "us_a_token": step * 1e6,
        "us_full_pass": timing["seconds_other"] * 1e6,
        "full_pass_over_step": timing["seconds_other"] / step,
        "largest_error": float(error),
        "pairs": options.pairs,
    }


if __name__ == "__main__":
    main()
