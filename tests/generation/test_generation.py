"""Generation: every prompt is continued as it would be alone, by tokens that are chosen as told."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.generation.sampling import cut
from tests.programs import array, waves

KEY = jax.random.key(0)
B, T, C, N = 3, 9, 11, 4
TOKENS = np.random.default_rng(0).integers(0, C, (B, T)).astype(np.int32)
# All have more than a piece of isqrt(T) tokens but one.
LENGTHS = np.array([9, 1, 6], np.int32)


def generate(*args, **options):
    """In NumPy, which compiles nothing to slice and to compare it."""
    return np.asarray(fdl.generate(*args, **options))


def changed(values, *changes):
    """A copy with each (place, value) of the changes."""
    values = np.array(values)
    for place, value in changes:
        values[place] = value
    return values


def blocks(*layers, **options):
    attend = fdl.attention(4, causal=True, **options)
    block = fdl.residual(fdl.rms_norm(), attend)
    return fdl.chain(
        fdl.embedding(C, 8), *layers, block, fdl.attention(1, causal=True), fdl.dense(C)
    )


MODELS = {
    "gpt": lambda: fdl.gpt(C, 12, layers=2, heads=2, features=8),
    "llama": lambda: fdl.gpt(
        vocabulary=C,
        length=None,
        layers=2,
        heads=2,
        features=8,
        kv_heads=1,
        rotary=True,
        norm=fdl.rms_norm(),
        activation=fdl.silu,
        gate=True,
        bias=False,
        tied=False,
    ),
    "grouped_rotary": lambda: blocks(kv_heads=2, rotary=True, qk_norm=True),
    "window_alibi_sinusoidal": lambda: blocks(
        fdl.sinusoidal_positions(), alibi=True, window=3, soft_cap=2.0
    ),
    "recurrent": lambda: fdl.chain(fdl.embedding(C, 8), fdl.lstm(8), fdl.rg_lru(8), fdl.dense(C)),
    "convolutions": lambda: fdl.chain(
        fdl.embedding(C, 8),
        fdl.conv(8, (3,), padding="CAUSAL"),
        fdl.tanh,
        fdl.depthwise_conv((2,), padding="CAUSAL", dilation=2),
        fdl.dense(C),
    ),
}


@functools.cache
def made(name):
    """A model, and weights large enough that each token depends on those before it."""
    model = MODELS[name]()
    params, _ = model.init(KEY, TOKENS)
    return model, jax.tree.map(lambda w: array(2 * np.asarray(w) + 0.1 * waves(w)), params)


@functools.cache
def by_full_passes(name):
    """The greedy answers to each prompt by passes over all its tokens, without a cache: [B, N]."""
    model, params = made(name)
    full = jax.jit(lambda text: model.apply(params, {}, text)[0])
    text = np.zeros((B, T + N), np.int32)
    text[:, :T] = TOKENS
    answers = []
    for step in range(N):
        # What stands behind the prompt is not seen by a causal network.
        ends = np.asarray(LENGTHS) + step
        logits = np.asarray(full(text[:, : T + N - 1]))[np.arange(B), ends - 1]
        gaps = np.diff(np.sort(logits)[:, -2:])
        assert gaps.min() > 1e-4  # so that rounding decides nothing
        answers.append(logits.argmax(-1))
        text[np.arange(B), ends] = answers[-1]
    return np.stack(answers, 1)


# A network whose logits are the row of the last token: after i comes i + 1, and 0 after 4.
TABLE = fdl.embedding(5, 5)
NEXT = 5 * np.roll(np.eye(5, dtype=np.float32), 1, 1)


def answers(text, lengths=LENGTHS):
    return np.stack([row[n : n + N] for row, n in zip(np.asarray(text), lengths, strict=True)])


def at_the_right(tokens):
    """The prompts with their padding in front, and the mask."""
    padding = T - np.asarray(LENGTHS)
    rows = [np.roll(row, n) for row, n in zip(np.asarray(tokens), padding, strict=True)]
    return np.stack(rows), np.arange(T) >= padding[:, None]


@pytest.mark.parametrize("name", MODELS)
def test_each_prompt_is_continued_as_by_full_passes_over_it_alone(name):
    model, params = made(name)
    found = generate(model, params, TOKENS, N, lengths=LENGTHS)
    np.testing.assert_array_equal(answers(found), by_full_passes(name))
    for row, n in enumerate(LENGTHS):
        np.testing.assert_array_equal(found[row, :n], TOKENS[row, :n])
        np.testing.assert_array_equal(found[row, n + N :], TOKENS[row, n:])


@pytest.mark.parametrize("key", [None, KEY])
def test_generating_is_a_loop_over_full_passes(key):
    model, params = made("grouped_rotary")

    @jax.jit
    def chosen(padded, place, step):
        last = model.apply(params, {}, padded)[0][:, place]
        if key is None:
            return last.argmax(-1)
        kept = jax.lax.top_k(last, 4)[0][:, -1:]
        last = jnp.where(last >= kept, last / 7.0, -jnp.inf)
        return jax.random.categorical(jax.random.fold_in(key, step), last)

    text = TOKENS[:, :3]
    for step in range(5):
        # Padded, so that one program serves all lengths; a causal network does not see it.
        padded = np.pad(text, [(0, 0), (0, 8 - text.shape[1])])
        new = np.asarray(chosen(padded, text.shape[1] - 1, step))
        text = np.concatenate([text, new[:, None].astype(text.dtype)], 1)
    options = {} if key is None else {"key": key, "temperature": 7.0, "top_k": 4}
    found = generate(model, params, TOKENS[:, :3], 5, **options)
    assert found.dtype == TOKENS.dtype
    np.testing.assert_array_equal(found, text)
    if key is not None:
        options["key"] = jax.random.key(1)
        assert (generate(model, params, TOKENS[:, :3], 5, **options) != found).any()


def test_of_equal_logits_top_k_keeps_the_first():
    model = fdl.Layer(
        "level", lambda key, x: ({}, {}), lambda p, s, x, **_: (jnp.zeros((*x.shape, 5)), s), ()
    )
    prompt = np.zeros((20, 1), np.int32)
    drawn = generate(model, {}, prompt, 20, key=KEY, top_k=2)[:, 1:]
    assert set(np.unique(drawn)) == {0, 1}


def test_generating_for_no_sequence_gives_none():
    none = TOKENS[:0]
    assert generate(TABLE, {"w": NEXT}, none, 3, key=KEY).shape == (0, T + 3)
    assert generate(TABLE, {"w": NEXT}, none, 3, mask=none > 0).shape == (0, T + 3)


def test_generated_tokens_come_as_often_as_the_model_says():
    """A network of one bias draws from softmax(bias / temperature) cut to the top 3."""
    bias = array([1.0, 0.0, -0.5, 2.0, 0.5])

    def init(key, x):
        return {"b": bias}, {}

    def apply(params, state, x, *, key=None, train=False):
        return jnp.zeros((*x.shape, 5)) + params["b"], state

    model = fdl.Layer("bias", init, apply)
    prompt = np.zeros((50, 1), np.uint8)
    drawn = generate(
        model, {"b": bias}, prompt, 100, key=KEY, temperature=jnp.float32(2.0), top_k=3
    )[:, 1:]
    chances = np.exp(np.asarray(bias) / 2) * np.array([1, 0, 0, 1, 1])
    chances /= chances.sum()
    often = np.bincount(np.asarray(drawn).ravel(), minlength=5) / drawn.size
    assert (np.abs(often - chances) <= 4 * np.sqrt(chances * (1 - chances) / drawn.size)).all()
    assert drawn.dtype == jnp.uint8
    # Neither steps nor sequences repeat each other's bits.
    assert 0.2 < (drawn[0] == drawn[1]).mean() < 0.7 and (drawn[:, 0] == drawn[:, 1]).mean() > 0.2


# Prompts of different lengths.


def test_padding_in_front_and_a_mask_give_the_same_and_so_does_a_stream():
    model, params = made("gpt")
    expected = by_full_passes("gpt")
    left, mask = at_the_right(TOKENS)
    found = generate(model, params, left, N, mask=mask)
    np.testing.assert_array_equal(found, np.concatenate([left, expected], 1))
    found = generate(model, params, TOKENS, N, mask=np.arange(T) < LENGTHS[:, None])
    np.testing.assert_array_equal(answers(found), expected)
    new = list(fdl.stream_tokens(model, params, left, N, mask=mask))
    np.testing.assert_array_equal(np.stack(new, 1), expected)
    assert new[0].dtype == TOKENS.dtype
    new = list(fdl.stream_tokens(model, params, TOKENS, N, lengths=LENGTHS))
    np.testing.assert_array_equal(np.stack(new, 1), expected)


def test_with_a_key_of_its_own_each_prompt_is_continued_as_alone():
    model, params = made("convolutions")
    options = {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "repetition_penalty": 1.3, "end": 2}
    keys = jax.random.split(KEY, B)
    both = generate(model, params, TOKENS, N, lengths=LENGTHS, key=keys, **options)
    for row in (1, 2):
        n = int(LENGTHS[row])
        alone = generate(model, params, TOKENS[row : row + 1, :n], N, key=keys[row], **options)
        np.testing.assert_array_equal(both[row, : n + N], alone[0])
    stream = fdl.stream_tokens(model, params, TOKENS, N, lengths=LENGTHS, key=keys, **options)
    new = np.stack(list(stream), 1)
    np.testing.assert_array_equal(new, answers(both)[:, : new.shape[1]])
    # Keys of the older kind, too.
    raw = {"lengths": LENGTHS, "key": jax.random.key_data(keys), **options}
    np.testing.assert_array_equal(generate(model, params, TOKENS, N, **raw), both)


def test_lengths_that_are_equal_change_no_draw():
    """One key samples for the batch, with and without lengths."""
    table = array(np.random.default_rng(2).standard_normal((C, C)))
    model, params = fdl.embedding(C, C), {"w": table}
    plain = generate(model, params, TOKENS[:, :5], 30, key=KEY)
    padded = generate(model, params, TOKENS, 30, lengths=[5] * B, key=KEY)
    np.testing.assert_array_equal(padded[:, :35], plain)
    whole = generate(model, params, TOKENS[:, :5], 30, lengths=[5] * B, key=KEY)
    np.testing.assert_array_equal(whole, plain)
    # Sequences of other lengths still draw apart from each other.
    one = np.zeros((2, 3), np.int32)
    first, second = answers(generate(model, params, one, 30, lengths=[3, 1], key=KEY), [3, 1])
    assert (first != second).any()


class Counted:
    """TABLE, which counts how often it is traced, and run."""

    def __init__(self):
        self.traced, self.run = 0, 0

        def apply(params, state, x, *, key=None, train=False):
            self.traced += 1
            jax.debug.callback(self.count)
            return TABLE.apply(params, state, x)

        self.model = fdl.Layer("counted", TABLE.init, apply, ())

    def count(self):
        self.run += 1


def placed(values):
    """Like jnp.asarray, which compiles a copy for each shape."""
    return values if isinstance(values, jax.Array) else jax.device_put(np.asarray(values))


def write(tokens, steps, table=NEXT, model=TABLE, **options):
    return fdl.generate(model, {"w": placed(table)}, placed(tokens), steps, **options)


def stream(tokens, steps, table=NEXT, model=TABLE, **options):
    given = placed(tokens), steps
    return fdl.stream_tokens(model, {"w": placed(table)}, *given, **options)


def test_other_lengths_keys_and_numbers_and_a_stream_are_no_other_program():
    counted = Counted()
    tokens = np.zeros((2, 6), np.int32)
    options = {"key": KEY, "temperature": 1.0, "top_p": 0.5, "repetition_penalty": 1.1}
    write(tokens, 4, model=counted.model, lengths=[6, 2], **options)
    traced = counted.traced
    other = {"key": jax.random.key(1), "temperature": 0.5, "top_p": 0.6, "repetition_penalty": 2.0}
    write(tokens, 4, model=counted.model, lengths=[1, 3], **other)
    other |= {"model": counted.model, "lengths": [5, 5]}
    assert len(list(stream(tokens, 4, **other))) == 4
    assert counted.traced == traced


# The end.


def test_an_ended_sequence_repeats_its_end():
    prompts = [[0, 1], [2, 3], [0, 4]]
    assert write(prompts, 5, end=3).tolist() == [
        [0, 1, 2, 3, 3, 3, 3],
        [2, 3, 4, 0, 1, 2, 3],  # one in the prompt ends nothing
        [0, 4, 0, 1, 2, 3, 3],
    ]
    found = np.asarray(write(prompts, 5, end=np.array([3, 0])))[:, 2:]
    assert found.tolist() == [[2, 3, 3, 3, 3], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    found = write(prompts, 3, lengths=[1, 2, 2], end=2)
    assert found.tolist() == [[0, 1, 2, 2, 1], [2, 3, 4, 0, 1], [0, 4, 0, 1, 2]]
    # Nor does a token that would have been chosen where the prompt has another.
    found = write([[0, 0, 0], [1, 0, 3]], 2, lengths=[1, 3], end=2)
    assert found.tolist() == [[0, 1, 2, 0, 0], [1, 0, 3, 4, 0]]
    # The sequence with the longer prompt ends at the place where the other does.
    new = stream([[0, 0], [0, 3]], 4, lengths=[1, 2], end=[2, 4])
    assert np.stack(list(new), 1).tolist() == [[1, 2], [4, 4]]


def test_generation_stops_when_all_have_ended():
    prompts = [[0, 1], [0, 0]]
    for options, reads in (({}, 2), ({"lengths": [1, 2]}, 3)):
        counted = Counted()
        options = {"end": [3, 2], "model": counted.model, **options}
        for count in (reads, 2 * reads):
            write(prompts, 1000, **options).block_until_ready()
            jax.effects_barrier()
            assert counted.run == count
        assert len(list(stream(prompts, 1000, **options))) == 2
        jax.effects_barrier()
        assert counted.run == 3 * reads


# Numbers that are none.


@pytest.mark.parametrize("key", [None, KEY], ids=["greedy", "drawn"])
@pytest.mark.parametrize(
    "value",
    [np.nan, -np.inf, np.array([0, np.inf, 0, 0, 0]), np.array([0, 0, 0, 9, np.nan])],
    ids=["nan", "nothing", "infinite", "one_nan"],
)
def test_logits_that_are_not_finite_raise(value, key):
    prompts = [[3, 4], [0, 1]]
    # Draws follow the table too, at this temperature.
    options = {"table": changed(NEXT, (2, value)), "key": key, "temperature": 1e-3}
    with pytest.raises(
        ValueError,
        match=r"^generate: expected finite logits, got NaN or infinity for new token 1 of prompt "
        r"1; check whether the params, the state and the inputs are finite$",
    ):
        write(prompts, 3, **options)
    # As long as no answer needs them, there is no mistake.
    assert write([[3, 4], [0, 0]], 3, **{**options, "end": 2, "key": key}).shape == (2, 5)
    assert write([[3, 0], [2, 3]], 1, lengths=[1, 2], **options).tolist() == [[3, 4, 0], [2, 3, 4]]
    new = stream(prompts, 3, **options)
    assert next(new).tolist() == [0, 2]
    with pytest.raises(
        ValueError,
        match=r"^stream_tokens: expected finite logits, got NaN or infinity for new token 1 of "
        r"prompt 1; check whether the params, the state and the inputs are finite$",
    ):
        next(new)


def test_a_compiled_program_gives_no_id_where_it_cannot_raise():
    broken = functools.partial(write, table=changed(NEXT, (2, np.nan)))
    made = jax.jit(functools.partial(broken, steps=3))
    found = made(np.array([[3, 4], [0, 1], [1, 2], [7, 0]], np.int32))
    assert found.tolist() == [
        [3, 4, 0, 1, 2],
        [0, 1, 2, -1, -1],
        [1, 2, -1, -1, -1],
        [7, 0, -1, -1, -1],
    ]
    assert made(np.array([[0, 1]], np.uint8)).tolist() == [[0, 1, 2, 255, 255]]
    each = jax.vmap(lambda row: broken(row[None], 2)[0])
    assert each(np.array([[3, 4], [1, 2]])).tolist() == [[3, 4, 0, 1], [1, 2, -1, -1]]
    padded = jax.jit(lambda tokens, lengths: broken(tokens, 2, lengths=lengths))
    assert padded(np.array([[3, 4], [3, 9], [3, 4]]), np.array([1, 1, 0])).tolist() == [
        [3, 4, 0, 4],
        [3, 4, 0, 9],
        [3, -1, -1, 4],
    ]
    masked = jax.jit(lambda tokens, mask: broken(tokens, 1, mask=mask))
    mask = np.array([[True, False, True], [False, True, True], [False, True, False]])
    tokens = np.array([[3, 3, 3], [9, 3, 3], [9, 3, 9]])
    found = np.asarray(masked(tokens, mask))
    assert found[1:].tolist() == [[9, 3, 3, 4], [9, 3, 4, 9]]
    assert -1 in found[0]


def test_tokens_that_the_model_forbids_are_never_drawn():
    table = np.where(np.eye(5), np.float32(-np.inf), np.float32(0))
    table[0] = [-np.inf, -np.inf, 0, -np.inf, -np.inf]
    found = np.asarray(write(np.full((20, 1), 0), 20, table, key=KEY, top_p=0.99))
    assert (found[:, 1] == 2).all() and (found[:, 1:] != found[:, :-1]).all()


@pytest.mark.parametrize("temperature", [1e-10, 1e-45, 1e-60])
def test_the_colder_the_likelier(temperature):
    table = NEXT + np.array([-3e8, 3e8, 0, 0, 0], np.float32)[:, None]
    table[2] *= np.float32(1e-6)
    table[[0, 1], [1, 2]] += 64
    found = np.asarray(write([[0], [1], [2]], 1, table, key=KEY, temperature=temperature))
    assert found[:, 1].tolist() == [1, 2, 3]


def test_ids_beyond_the_logits_are_known_where_the_model_looks_them_up():
    model = fdl.chain(fdl.embedding(C + 1, 8), fdl.batch_apply(fdl.dense(C)))
    params, _ = model.init(KEY, TOKENS)
    begin = np.full((1, 1), C, np.int32)
    found = generate(model, params, begin, 2, repetition_penalty=2.0)
    assert (found[0, 1:] >= 0).all() and (found[0, 1:] < C).all()
    told = (
        rf"^generate: expected ids from 0 to {C}, got {C + 1} in prompt 0; correct this id, for "
        r"which the network has no logits or embedding$"
    )
    with pytest.raises(ValueError, match=told):
        generate(model, params, begin + 1, 2)


# How a token is chosen.


def nucleus(logits, top_k, top_p):
    """Which tokens may be drawn, by a loop over them from the likeliest down, in float64."""
    order = np.argsort(-logits, kind="stable")[:top_k]
    chances = np.exp(logits[order].astype(np.float64) - logits.max())
    chances /= chances.sum()
    kept, mass = set(), 0.0
    for token, chance in zip(order, chances, strict=True):
        kept.add(int(token))
        mass += chance
        if mass >= top_p:
            break
    return kept


@pytest.mark.parametrize("top_k", [None, 1, 4, 99])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_k):
    logits = np.random.default_rng(0).normal(0, 2, (40, 9)).astype(np.float32)
    logits[3] = 0  # all equal
    logits[4, :5] = logits[4].max()  # some equal
    logits[5, 2:] = -np.inf
    cut_to = jax.jit(lambda logits, top_p: cut(logits, top_k, top_p))
    for top_p in (0.05, 0.37, 0.61, 0.9, 0.999, 1.0):
        found = np.asarray(cut_to(logits, np.float32(top_p)))
        for row, before in zip(found, logits, strict=True):
            expected = nucleus(before, top_k, top_p)
            kept = set(np.flatnonzero(row > -np.inf).tolist())
            # A probability of 0 is nothing to keep.
            assert kept == {each for each in expected if before[each] > -np.inf}
            np.testing.assert_array_equal(row[list(kept)], before[list(kept)])


def test_top_p_of_an_exact_sum_needs_no_more_and_at_1_keeps_the_tail():
    logits = jnp.log(jnp.array([[0.25, 0.125, 0.5, 0.125]]))
    assert (cut(logits, None, jnp.float32(0.75))[0] > -jnp.inf).tolist() == [
        True,
        False,
        True,
        False,
    ]
    tail = jnp.zeros((1, 50)).at[0, 0].set(40.0)
    assert (cut(tail, None, jnp.float32(1)) > -jnp.inf).all()


@pytest.mark.parametrize("penalty", [1.5, 0.5])
def test_the_repetition_penalty_is_a_loop_over_what_was_there(penalty):
    """Of each prompt its own tokens, not its padding; a negative logit grows more negative."""
    # After an odd token all logits are below 0, after an even one most are above.
    mean = np.where(np.arange(C) % 2, -1, 0.5)[:, None]
    table = np.random.default_rng(3).normal(mean, 0.3, (C, C)).astype(np.float32)
    model, params = fdl.embedding(C, C), {"w": placed(table)}
    found = answers(generate(model, params, TOKENS, N, lengths=LENGTHS, repetition_penalty=penalty))
    for row, n in enumerate(LENGTHS):
        text = TOKENS[row, :n].tolist()
        for _ in range(N):
            logits = table[text[-1]].astype(np.float64)
            for token in set(text):
                logits[token] *= penalty if logits[token] < 0 else 1 / penalty
            text.append(int(logits.argmax()))
        assert found[row].tolist() == text[n:]
    plain = answers(generate(model, params, TOKENS, N, lengths=LENGTHS))
    assert (found != plain).any()
    same = generate(model, params, TOKENS, N, lengths=LENGTHS, repetition_penalty=1.0)
    np.testing.assert_array_equal(answers(same), plain)


@pytest.mark.parametrize("one_key", [True, False], ids=["one_key", "own_keys"])
def test_all_options_together_draw_as_often_as_the_formula_says(one_key):
    """The first new token of 4000 prompts, half of them padded, against its exact distribution."""
    count = 4000
    logits = np.array([1.0, 0.5, -0.4, 2.0, 1.3, -1.0])
    table = array(np.tile(logits, (6, 1)))
    penalized = logits / np.array([1.5, 1, 1 / 1.5, 1, 1, 1])
    heated = penalized / 0.9
    top = np.exp(heated) * (heated >= np.sort(heated)[-4])
    top /= top.sum()
    kept = nucleus(np.log(np.maximum(top, 1e-30)), None, 0.85)
    chances = top * [each in kept for each in range(6)]
    chances /= chances.sum()
    assert len(kept) == 3
    prompts = np.tile(np.array([[2, 0, 2, 0]], np.int32), (count, 1))
    drawn = generate(
        fdl.embedding(6, 6),
        {"w": table},
        prompts,
        1,
        lengths=np.arange(count) % 2 * 2 + 2,
        key=KEY if one_key else jax.random.split(KEY, count),
        temperature=0.9,
        top_k=4,
        top_p=0.85,
        repetition_penalty=1.5,
    )
    for part, n in ((drawn[::2], 2), (drawn[1::2], 4)):
        often = np.bincount(part[:, n], minlength=6)
        expected = chances * len(part)
        likely = expected > 0
        assert (often[~likely] == 0).all()
        # Pearson's statistic of two degrees of freedom is above 13.8 once in 1000.
        assert ((often - expected)[likely] ** 2 / expected[likely]).sum() < 13.8


# In the hands of JAX.


def test_generating_inside_of_a_gradient_is_a_constant():
    def loss(table):
        text = write([[0]], 3, table, end=4)
        logits = TABLE.apply({"w": table}, {}, text)[0]
        return logits[0, -1, 0] * text.sum().astype(jnp.float32)

    gradient = np.asarray(jax.grad(loss)(placed(NEXT)))
    assert gradient[3, 0] == 6 and np.count_nonzero(gradient) == 1


def test_the_state_of_the_caller_is_left_alone():
    def init(key, x):
        return {}, {"scale": jnp.ones(3)}

    def apply(params, state, x, *, key=None, train=False):
        return jax.nn.one_hot((x + 1) % 3, 3) * state["scale"], state

    model = fdl.Layer("scaled", init, apply)
    _, state = model.init(KEY, TOKENS)
    for _ in range(2):
        found = generate(model, {}, np.array([[0]], np.int32), 4, state=state)
        assert found.tolist() == [[0, 1, 2, 0, 1]]
        assert (
            len(list(fdl.stream_tokens(model, {}, np.array([[0]], np.int32), 4, state=state))) == 4
        )
    assert state["scale"].tolist() == [1, 1, 1]


def test_a_mask_with_other_axes_is_the_models_own():
    model = fdl.chain(fdl.embedding(C, C), fdl.attention(1, causal=True))
    params = model.init(KEY, TOKENS)[0]
    tokens, seen = TOKENS[:, :4], np.arange(4).reshape(1, 1, 1, 4) < 1
    found = generate(model, params, tokens, 1, mask=seen)[:, 4]
    logits, _ = jax.jit(model.apply)(params, {}, tokens, mask=seen)
    np.testing.assert_array_equal(found, np.asarray(logits)[:, -1].argmax(-1))
    assert (found != generate(model, params, tokens, 1)[:, 4]).any()


# Wrong uses.

RAGGED = np.array([[1, 2, 3], [4, 0, 0]], np.int32)
COUNTS = (
    r"expected steps >= 1 and top_k >= 1 or None, got steps {} and top_k {}; steps is the number "
    r"of tokens to add, and top_k=None samples from all tokens"
)
# what is given, and what is said
REFUSED = [
    ({"steps": 0}, COUNTS.format(0, None)),
    ({"steps": 2.0}, COUNTS.format(r"2\.0", None)),
    ({"top_k": 0}, COUNTS.format(2, 0)),
    (
        {"tokens": RAGGED[:, :0]},
        r"expected integer tokens \[B, T\] with T >= 1, got int32 \[2, 0\]; pass prompts of at "
        r"least one token",
    ),
    (
        {"tokens": RAGGED.astype(np.float32)},
        r"expected integer tokens \[B, T\] with T >= 1, got float32 \[2, 3\]; pass prompts of at "
        r"least one token",
    ),
    (
        {"tokens": [[1, 2]]},
        r"expected tokens to be an array, got a list; convert it with jnp\.asarray",
    ),
    *(
        (
            {"key": KEY, "temperature": heat},
            rf"expected temperature > 0, got {heat}; to take the most likely token every time, "
            r"pass key=None",
        )
        for heat in (0.0, -1.0, np.nan)
    ),
    (
        {"key": KEY, "temperature": jnp.ones(2)},
        r"expected one temperature for all sequences, got an array of shape \[2\]; for one value "
        r"per sequence, apply jax\.vmap to {who}",
    ),
    *(
        (
            {"key": KEY, "top_p": top_p},
            rf"expected top_p in \(0, 1\], got {top_p}; None samples from all tokens",
        )
        for top_p in (0.0, -0.5, 1.5, np.nan)
    ),
    (
        {"key": KEY, "top_p": "all"},
        r"expected top_p in \(0, 1\], got 'all'; pass a number",
    ),
    *(
        (
            {"repetition_penalty": penalty},
            rf"expected {finite}repetition_penalty > 0, got {penalty}; 1 means no penalty, and "
            r"1\.2 makes earlier tokens less likely",
        )
        for penalty, finite in ((0.0, ""), (-1.0, ""), (np.inf, "a finite "), (np.nan, ""))
    ),
    (
        {"key": 0},
        r"expected one random key, got 0; make it with jax\.random\.key\(seed\)",
    ),
    (
        {"key": jax.random.split(KEY, 3)},
        r"expected one random key, or one for each of 2 sequences, got key<fry> \[3\]; make them "
        r"with jax\.random\.split\(key, 2\)",
    ),
    *(
        (
            {"end": end},
            rf"expected end to be one token id or several, got {re.escape(repr(end))}; with None, "
            r"no sequence ends early",
        )
        for end in (-1, 1.0, True, [], [1, -2], [[1]], "stop")
    ),
    (
        {"end": [1, 5]},
        r"expected end ids from 0 to 4, the ids that the network has logits for, got 5; correct "
        r"the ids in `end`",
    ),
    *(
        (
            {"lengths": [3, length]},
            rf"expected lengths from 1 to 3, got {length} for prompt 1; each prompt needs at least "
            r"one token",
        )
        for length in (0, -1, 4)
    ),
    *(
        (
            {"lengths": lengths},
            rf"expected integer lengths \[2\] for tokens \[2, 3\], got {said}; pass the number of "
            r"tokens of each prompt",
        )
        for lengths, said in {
            (3, 1, 1): r"int32 \[3\]",
            (3.0, 1.0): r"float32 \[2\]",
            3: r"int32 \[\]",
        }.items()
    ),
    (
        {"lengths": [3, 1], "mask": np.ones((2, 3), bool)},
        r"expected either lengths or a mask \[B, T\] of the prompts, got both; leave one of them "
        r"out",
    ),
    *(
        (
            {"mask": mask},
            rf"expected a bool mask \[2, 3\] like tokens, got {said}; pass True for the tokens of "
            r"each prompt; a mask for the model itself has 4 axes",
        )
        for mask, said in [
            (np.ones((2, 3), np.int32), r"int32 \[2, 3\]"),
            (np.ones((2, 4), bool), r"bool \[2, 4\]"),
        ]
    ),
    *(
        (
            {"mask": np.array([[True, True, True], row])},
            r"expected a mask that is True for one or more contiguous tokens of each prompt, got "
            rf"{re.escape(str(np.asarray(row, int).tolist()))} for prompt 1; put all padding on "
            r"one side",
        )
        for row in ([True, False, True], [False, False, False])
    ),
    *(
        (
            {"tokens": changed(RAGGED, ((1, 1), number))},
            rf"expected ids from 0 to 4, got {number} in prompt 1; correct this id, for which the "
            r"network has no logits or embedding",
        )
        for number in (5, -1, 99)
    ),
    (
        {"tokens": changed(RAGGED, (1, 7)), "lengths": [3, 1]},
        r"expected ids from 0 to 4, got 7 in prompt 1; correct this id, for which the network has "
        r"no logits or embedding",
    ),
]


@pytest.mark.parametrize("call", [fdl.generate, fdl.stream_tokens])
@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused(given, message, call):
    given = {"tokens": RAGGED, "steps": 2, **given}
    message = message.replace("{who}", call.__name__)
    with pytest.raises(ValueError, match=f"^{call.__name__}: {message}"):
        call(TABLE, {"w": NEXT}, **given)


def test_ids_of_padding_may_be_any():
    padded = changed(RAGGED, ((1, slice(1, None)), -100))
    found = write(padded, 2, lengths=[3, 1], repetition_penalty=1.1)
    assert found.tolist() == [[1, 2, 3, 4, 0], [4, 0, 1, -100, -100]]


def test_a_network_without_logits_for_each_token_is_refused():
    model = fdl.chain(fdl.embedding(5, 4), fdl.lstm(4, returns="last"), fdl.dense(5))
    params, _ = model.init(KEY, RAGGED)
    with pytest.raises(
        ValueError,
        match=r"^generate: expected a network from tokens \[B, T\] to logits \[B, T, C\], got "
        r"\[2, 5\] for tokens \[2, 1\]; end the network with a layer that gives one logit for each "
        r"token of the vocabulary",
    ):
        generate(model, params, RAGGED, 2)


def test_a_dtype_that_cannot_hold_the_ids_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^generate: expected tokens of a dtype that holds ids from 0 to 299, got uint8; "
        r"convert them with astype\(jnp\.int32\)",
    ):
        generate(
            fdl.embedding(300, 300),
            {"w": np.eye(300, dtype=np.float32)},
            np.zeros((1, 1), np.uint8),
            2,
        )


def test_a_stream_cannot_be_compiled():
    with pytest.raises(
        ValueError,
        match=r"^stream_tokens: expected arrays, got traced arrays; a compiled function cannot "
        r"yield tokens one by one, so call generate under jit and vmap",
    ):
        jax.jit(lambda tokens: list(stream(tokens, 2)))(RAGGED)


SEEDED_BUGS = {
    "fdl/generation/sampling.py": (
        "generation/test_generation.py",
        [
            ("logits.astype(jnp.float32) / heat", "logits.astype(jnp.float32) * heat"),
            ("jax.random.fold_in(choice.key, numbers.max(initial=0))", "choice.key"),
            ("jax.lax.top_k(logits, kept)", "jax.lax.top_k(-logits, kept)"),
            ("min(top_k or vocabulary, vocabulary)", "min((top_k or vocabulary) + 1, vocabulary)"),
            ('temperature, "(0, inf]"', 'temperature, "[0, inf]"'),
            ("(before < top_p)", "(mass < top_p)"),
            (" | (top_p >= 1)", ""),
            ("logits / penalty, logits * penalty", "logits / penalty, logits / penalty"),
            ("jnp.isfinite(highest)", "highest == highest"),
            (
                "jnp.maximum(choice.temperature, bound)",
                "jnp.broadcast_to(choice.temperature, bound.shape)",
            ),
        ],
    ),
    "fdl/generation/prompts.py": (
        "generation/test_generation.py",
        [
            ("(lengths < 1)", "(lengths < 0)"),
            ("(places + before[:, None])", "(places - before[:, None])"),
            ("(mask != (places < lengths[:, None])).any(1)", "lengths < 1"),
            ("token >= vocabulary", "token > vocabulary"),
        ],
    ),
    "fdl/generation/token_loop.py": (
        "generation/test_generation.py",
        [
            ("carry[0] + piece < shortest", "carry[0] < shortest"),
            ("at - lengths)", "at + 0 * lengths)"),
            ("done | fails | (~prompted & ends)", "done | fails | ends"),
            ("~prompted & ~done & ~finite", "~done & ~finite"),
            ("jnp.isin(chosen, jnp.array(choice.end, text.dtype)) | over", "over"),
            ('jnp.minimum(newest, loop["at"])', "newest"),
            ('short & ~loop["done"].all() if choice.end else short', "short"),
            ("max(logits.shape[2], *tables, 1)", "logits.shape[2]"),
            ("jnp.pad(tokens, ((0, 0), (steps, 0)))", "jnp.pad(tokens, ((0, 0), (0, steps)))"),
            ("jnp.where(places > at, ", "jnp.where(places < 0, "),
        ],
    ),
    "fdl/generation/tokens.py": (
        "generation/test_generation.py",
        [("not np.all(finite)", "False")],
    ),
}
