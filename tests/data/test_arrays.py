"""NumPy's arrays as JAX's: what would change on the way is refused, and nothing else."""

import re
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fdl
from fdl import checks
from fdl.data import arrays
from fdl.data.arrays import to_jax

ENDING = "; use smaller numbers, or enable 64 bits with jax.config.update('jax_enable_x64', True)"
SAME = ["bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32"]
SAME += ["complex64", *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4)]
HALFWAY = 2.0**128 * (1 - 2.0**-25)  # from the largest float32 to the first that there is not
LAST = float(np.nextafter(HALFWAY, 0))


def assert_refused(message, call, *args):
    with pytest.raises(fdl.PathError, match=f"^{re.escape(message)}$"):
        call(*args)


@pytest.mark.parametrize("dtype", SAME, ids=lambda dtype: np.dtype(dtype).name)
def test_a_dtype_that_jax_has_comes_as_it_is(dtype):
    given = np.array([1, 0, 1]).astype(dtype)
    got = to_jax({"x": given}, "fit")["x"]
    assert isinstance(got, jax.Array) and got.dtype == given.dtype
    assert np.asarray(got).tobytes() == given.tobytes()


@pytest.mark.parametrize(
    ("wide", "narrow", "fits", "overflows"),
    [
        ("int64", "int32", [2**31 - 1, -(2**31), 0], [2**31, -(2**31) - 1, 2**32 + 5, 2**40 + 7]),
        ("uint64", "uint32", [2**32 - 1, 0], [2**32, 2**32 + 5, 2**64 - 1]),
        (
            "float64",
            "float32",
            [LAST, -LAST, 1 / 3, 1e-310, np.inf, -np.inf, np.nan],
            [HALFWAY, -1e39, 1e300],
        ),
        (
            "complex128",
            "complex64",
            [1j / 3, complex(np.inf, np.nan), complex(0, -LAST)],
            [1e300, 1e300j, complex(np.inf, 1e39), complex(np.nan, -1e39)],
        ),
    ],
)
def test_what_does_not_fit_32_bits_is_refused_and_rounding_is_not(wide, narrow, fits, overflows):
    """The oracle is NumPy's own cast, one number at a time."""
    fits = np.array(fits, wide)
    got = to_jax(fits, "predict")
    assert got.dtype == narrow
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, [value.astype(narrow) for value in fits])
    for value in np.array(overflows, wide):
        given = {"ids": np.stack([fits, np.where(np.arange(len(fits)) == 1, value, fits)])}
        said = f"{narrow} can hold, got {value} at [1, 1] of {wide} [2, {len(fits)}]{ENDING}"
        assert_refused(f"predict: expected x at 'ids' that {said}", to_jax, given, "predict", "x")
        assert_refused(
            f"fit: expected data that {narrow} can hold, got {value} at [] of {wide} []{ENDING}",
            *(to_jax, value, "fit"),
        )
    with jax.enable_x64(True):
        whole = np.array([*fits, *overflows], wide)
        assert to_jax(whole, "fit").dtype == wide
        np.testing.assert_array_equal(to_jax(whole, "fit"), whole)


@pytest.mark.parametrize("order", [">i4", ">i8", ">f8", ">u2", ">c16"])
def test_big_endian_numbers_become_native(order):
    got = to_jax(np.array([1, 2, 300], order), "fit")
    assert np.asarray(got).tolist() == [1, 2, 300]
    if order == ">i8":
        assert_refused(
            f"fit: expected data that int32 can hold, got 4294967301 at [0] of int64 [1]{ENDING}",
            *(to_jax, np.array([2**32 + 5], order), "fit"),
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.array(["a", "b"]), "<U1 [2]"),
        (np.array([b"a"]), "|S1 [1]"),
        (np.array([1, "a", None], object), "object [3]"),
        (np.array([2**70]), "object [1]"),
        (np.zeros(2, "M8[D]"), "datetime64[D] [2]"),
        (np.zeros((2, 1), [("a", "<i4")]), "[('a', '<i4')] [2, 1]"),
        (np.zeros(3, np.longdouble), f"{np.dtype(np.longdouble)} [3]"),
        (np.ma.array([1, 2], mask=[0, 1]), "masked int64 [2]"),
        ("text", "<U4 []"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_numbers_is_named(given, said):
    assert_refused(
        f"evaluate: expected data at '1/y' as numbers of a dtype that JAX has, got {said}; encode "
        "text and categories as integers, and replace masked values by numbers",
        *(to_jax, (np.ones(2), {"y": given}), "evaluate"),
    )


def test_arrays_of_jax_and_traced_ones_pass_untouched():
    given = {"x": jnp.ones(3), "key": jax.random.key(0), "none": None}
    got = to_jax(given, "fit")
    assert got["x"] is given["x"] and got["key"] is given["key"] and got["none"] is None
    assert jax.jit(lambda x: to_jax((x, x), "fit")[1] is x)(jnp.ones(3))


def test_any_layout_is_looked_through_a_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(checks, "_CHECKED_AT_ONCE", 8)
    given = np.arange(210).reshape(5, 6, 7)[::2, ::-1].T
    np.testing.assert_array_equal(to_jax(given, "fit"), given)
    bad = given.copy(order="K")
    bad[6, 1, 2] = bad[3, 5, 0] = 2**33
    said = f"got 8589934592 at [3, 5, 0] of int64 [7, 6, 3]{ENDING}"
    assert_refused(f"fit: expected data that int32 can hold, {said}", to_jax, bad, "fit")
    for empty in np.zeros((0, 3)), np.zeros((2, 0), int):
        assert to_jax(empty, "fit").shape == empty.shape


def test_looking_takes_little_memory():
    given = np.zeros((2, 2_000_000), np.int64).T  # 32 MB, not contiguous
    tracemalloc.start()
    try:
        assert checks._first_changed(given, np.dtype("int32")) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e6


BIG = 2**32 + 5
SAID = f"that int32 can hold, got 4294967301 at [1] of int64 [2]{ENDING}"


def test_layers_refuse_the_integers_of_numpy_that_do_not_fit():
    key, ids = jax.random.key(0), np.array([3, BIG])
    embedding = fdl.embedding(9, 4)
    params, _ = embedding.init(key, jnp.zeros(2, int))
    assert_refused(f"embedding: expected x {SAID}", embedding.apply, params, {}, ids)
    np.testing.assert_array_equal(
        embedding.apply(params, {}, np.array([3, 5]))[0], np.asarray(params["w"])[[3, 5]]
    )
    net = fdl.network(lambda f, x: f.words(x), words=embedding)
    assert_refused(f"words: expected x {SAID}", net.apply, {"words": params}, {}, ids)
    x = jnp.ones((2, 4))
    for layer in fdl.learned_positions(9), fdl.sinusoidal_positions():
        params, _ = layer.init(key, x)
        with pytest.raises(fdl.PathError, match=f"^{layer.name}: expected positions that int32"):
            layer.apply(params, {}, x, positions=ids)
    with pytest.raises(fdl.PathError, match=r"^rotary: expected positions that int32 can hold"):
        fdl.rotary(x[:, None], ids)
    rnn = fdl.gru(2)
    params, _ = rnn.init(key, jnp.ones((2, 3, 4)))
    with pytest.raises(fdl.PathError, match=r"^gru: expected lengths that int32 can hold"):
        rnn.apply(params, {}, jnp.ones((2, 3, 4)), lengths=ids)


OF_LABELS = [fdl.softmax_cross_entropy, fdl.multiclass_hinge, fdl.softmax_focal, fdl.accuracy]
OF_NUMBERS = [fdl.squared_error, fdl.huber, fdl.log_cosh, fdl.cosine_distance, fdl.hinge]


@pytest.mark.parametrize("loss", OF_LABELS, ids=lambda loss: loss.__name__)
def test_losses_and_metrics_refuse_labels_that_do_not_fit(loss):
    """2**32 + 1 was read as class 1."""
    logits, labels = jnp.zeros((2, 3)), np.array([1, 2**32 + 1])
    name, said = loss.__name__, f"got 4294967297 at [1] of int64 [2]{ENDING}"
    message = f"{name}: expected labels that int32 can hold, {said}"
    assert_refused(message, loss, logits, labels)
    with pytest.raises(fdl.PathError, match=re.escape(message)):
        loss(logits, labels=labels, ignore_index=-100)
    with pytest.raises(fdl.PathError, match=re.escape(message)):
        jax.jit(lambda logits: loss(logits, labels))(logits)
    fine = np.array([1, 2])
    np.testing.assert_array_equal(loss(logits, fine), loss(logits, jnp.asarray(fine)))


@pytest.mark.parametrize("loss", OF_NUMBERS, ids=lambda loss: loss.__name__)
def test_losses_refuse_numbers_that_do_not_fit(loss):
    fine, wrong = np.ones((2, 3)), np.array([[1.0, 1.0, 1.0], [1.0, -1e300, 1.0]])
    with pytest.raises(fdl.PathError, match=r"that float32 can hold, got -1e\+300 at \[1, 1\] of "):
        loss(fine, wrong)
    with pytest.raises(
        fdl.PathError, match=rf"^{loss.__name__}: expected (predictions|scores) that"
    ):
        loss(wrong, fine)


@pytest.mark.parametrize(
    ("metric", "predictions"),
    [
        (fdl.metrics.f1("macro", classes=3), jnp.zeros((2, 3))),
        (fdl.metrics.confusion(3), jnp.zeros((2, 3))),
        (fdl.metrics.mean_of(fdl.accuracy), jnp.zeros((2, 3))),
        (fdl.metrics.r2(), jnp.zeros(2)),
        (fdl.metrics.auc(), jnp.zeros(2)),
    ],
)
def test_metrics_refuse_targets_that_do_not_fit(metric, predictions):
    with pytest.raises(
        fdl.PathError, match=r"^update: expected targets that int32 can hold, got 4"
    ):
        metric(predictions, np.array([1, BIG]))


def test_ctc_and_segments_and_prompts_refuse_what_does_not_fit():
    with pytest.raises(
        fdl.PathError, match=r"^ctc: expected labels that int32 can hold, got 42949"
    ):
        fdl.ctc(jnp.zeros((1, 4, 3)), np.array([[BIG]]))
    q = jnp.ones((1, 2, 1, 4))
    with pytest.raises(
        fdl.PathError, match=r"^dot_product_attention: expected segments that int32"
    ):
        fdl.dot_product_attention(q, q, q, segments=np.array([[5, BIG]]))
    with pytest.raises(fdl.PathError, match=r"^dot_product_attention: expected v that float32 can"):
        fdl.dot_product_attention(q, q, np.full(q.shape, 1e300))
    model = fdl.chain(fdl.embedding(9, 4), fdl.lstm(4), fdl.dense(9))
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 2), int))
    for who in fdl.generate, fdl.stream_tokens:
        with pytest.raises(
            fdl.PathError, match=rf"^{who.__name__}: expected tokens that int32 can hold, got {BIG}"
        ):
            who(model, params, np.array([[1, BIG]]), 2)
        with pytest.raises(
            fdl.PathError,
            match=rf"^{who.__name__}: expected lengths that int32 can hold, got {BIG}",
        ):
            who(model, params, np.array([[1, 2]]), 2, lengths=np.array([BIG]))


def test_params_and_state_that_do_not_fit_are_refused():
    with pytest.raises(
        fdl.PathError, match=r"^start: expected params at 'w' that float32 can hold"
    ):
        fdl.start({"w": np.array([1e300])}, fdl.sgd(0.1))
    with pytest.raises(
        fdl.PathError, match=r"^start: expected state at 'n' that int32 can hold, go"
    ):
        fdl.start({"w": jnp.ones(1)}, fdl.sgd(0.1), state={"n": np.array(2**40)})
    with pytest.raises(
        fdl.PathError, match=r"^predict: expected params that float32 can hold, got "
    ):
        fdl.predict(lambda w, x: w * x, np.array(1e300), jnp.ones(3))


def test_a_representation_that_does_not_fit_is_refused():
    h = np.array([[1.0], [1e300]])
    with pytest.raises(fdl.PathError, match=r"^principal_components: expected h that float32 can"):
        fdl.look.principal_components(h, 1)


# Data in other clothes: what NumPy can read as an array is one, and the rest is named.


class Wrapped:
    """A stand-in for the arrays of other libraries."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


class Column(Wrapped):
    """A stand-in for a column of pandas' nullable numbers: NumPy sees objects."""

    class dtype:
        kind = "i"
        numpy_dtype = np.dtype("int64")

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype or object)


class Table:
    """A stand-in for a data frame."""

    def __init__(self, **columns):
        self.columns, self.parts = list(columns), columns
        self.shape = (len(next(iter(columns.values())).array), len(columns))

    def __getitem__(self, name):
        return self.parts[name]

    def __array__(self, dtype=None, copy=None):
        return np.array([each.array for each in self.parts.values()], object).T


NUMBERS = np.arange(6, dtype=np.float32).reshape(3, 2)
OTHER_CLOTHES = {
    "anything with __array__": lambda x: Wrapped(x),
    "table": lambda x: Table(a=Wrapped(x[:, 0]), b=Column(x[:, 1].astype(int))),
    "memory": lambda x: memoryview(x),
    "torch": lambda x: pytest.importorskip("torch", reason="no tensor was read").tensor(x),
    "pandas": lambda x: frame("pandas", x),
    "polars": lambda x: frame("polars", x),
}


def frame(library, x):
    """Its columns differ in dtype, so that NumPy sees objects in that of pandas."""
    made = pytest.importorskip(library, reason=f"no table of {library} was read")
    return made.DataFrame({"a": x[:, 0], "b": x[:, 1] > 1, "c": x[:, 1].astype(int)})


@pytest.mark.parametrize("clothes", OTHER_CLOTHES)
def test_data_in_other_clothes_are_arrays(clothes):
    given = OTHER_CLOTHES[clothes](NUMBERS)
    wanted = NUMBERS
    if clothes in ("pandas", "polars"):
        wanted = np.stack([NUMBERS[:, 0], NUMBERS[:, 1] > 1, NUMBERS[:, 1]], 1)
    assert arrays.length({"x": given}) == arrays.check_data({"x": given}) == 3
    np.testing.assert_array_equal(to_jax((given,), "fit")[0], wanted)
    np.testing.assert_array_equal(arrays.as_arrays([given])[0], wanted)


def test_data_in_other_clothes_train_as_arrays_do():
    """The targets and the weights, too; and no bit is another."""
    model = fdl.dense(2)
    params, _ = model.init(jax.random.key(0), NUMBERS)
    objective = fdl.supervised(model, fdl.softmax_cross_entropy, accuracy=fdl.accuracy)
    optimizer = fdl.sgd(0.1)
    labels, weight = np.array([0, 1, 1]), np.array([1.0, 2.0, 0.0], np.float32)
    results = []
    for data in (
        (NUMBERS, labels, weight),
        (Wrapped(NUMBERS), Column(labels), Wrapped(weight)),
        (Table(a=Wrapped(NUMBERS[:, 0]), b=Wrapped(NUMBERS[:, 1])), Wrapped(labels), weight),
    ):
        run = fdl.start(params, optimizer)
        result = fdl.fit(objective, optimizer, run, data, batch_size=2, steps=3, validation=data)
        scores = fdl.evaluate(objective, result.params, data)
        outputs = fdl.predict(model, result.params, data[0])
        results.append((result.params, scores, outputs))
        assert str(fdl.summary(model, data[0])) == str(fdl.summary(model, NUMBERS))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)


LONG = [[0.5] * 64 for _ in range(256)]


@pytest.mark.parametrize(
    ("given", "where", "said"),
    [
        (LONG, "", "a list of 256 lists"),
        ((LONG, [0] * 256), "0", "a list of 256 lists"),
        ({"x": NUMBERS, "y": [0, 1, 1]}, "y", "a list of 3 numbers"),
        ((NUMBERS, ("a", "b", "c")), "1", "a tuple of 3 texts"),
        ([(1, 2), (3, 4)], "", "a list of 2 tuples"),
        ([[1, 2], [3]], "", "a list of 2 lists"),
        ({"a": {"b": [np.float32(1), np.float32(2)]}}, "a/b", "a list of 2 numbers"),
        ((NUMBERS, [jnp.ones(())] * 3), "1", "a list of 3 numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_of_numbers_raises_and_says_to_make_an_array(given, where, said):
    place, at = (f" at {where!r}",) * 2 if where else ("", "")
    do = "convert it with np.asarray"
    assert_refused(f"data{place}: expected an array, got {said}; {do}", arrays.length, given)
    assert_refused(f"data{place}: expected an array, got {said}; {do}", arrays.check_data, given)
    assert_refused(
        f"predict: expected x{at} as an array, got {said}; {do}", to_jax, given, "predict", "x"
    )


def test_lists_and_tuples_of_arrays_are_data():
    given = [NUMBERS, (NUMBERS, {"y": NUMBERS})]
    assert arrays.check_data(given) == 3
    assert jax.tree.structure(to_jax(given, "fit")) == jax.tree.structure(given)


def test_a_table_with_other_columns_names_them():
    texts = Wrapped(np.array(["x", "y", "z"], object))
    table = Table(a=Wrapped(NUMBERS[:, 0]), town=texts, b=Column([1, 2, 3]), street=texts)
    ending = "; encode text and categories as integers, or leave these columns out"
    said = f"got a Table with other values in columns 'town', 'street'{ending}"
    assert_refused(
        f"fit: expected data at '0' as numbers of a dtype that JAX has, {said}",
        to_jax,
        (table,),
        "fit",
    )
    assert_refused(
        f"data at '0': expected numbers of a dtype that JAX has, {said}",
        arrays.check_data,
        (table,),
    )
    one = Table(a=Wrapped(NUMBERS[:, 0]), town=texts)
    said = f"got a Table with other values in column 'town'{ending}"
    assert_refused(
        f"fit: expected data as numbers of a dtype that JAX has, {said}", to_jax, one, "fit"
    )


def test_what_is_no_array_at_all_is_named():
    class Closed:
        shape = (3,)

        def __array__(self, dtype=None, copy=None):
            raise TypeError("it is on another device\nand so on")

    said = "got a Closed (it is on another device); convert it to NumPy first"
    assert_refused(
        f"fit: expected data as an array that NumPy can read, {said}", to_jax, Closed(), "fit"
    )
    said = f"data at 'x': expected an array that NumPy can read, {said}"
    assert_refused(said, arrays.check_data, {"x": Closed()})

    class Loader:
        pass

    said = "got a Loader; pass arrays [N, ...], for example from np.asarray"
    assert_refused(f"data at 'x': expected an array, {said}", arrays.length, {"x": Loader()})
    assert_refused(f"fit: expected data as an array, {said}", to_jax, Loader(), "fit")


def test_a_tensor_that_wants_a_gradient_is_named():
    torch = pytest.importorskip("torch", reason="no tensor was refused")
    with pytest.raises(
        fdl.PathError, match=r"^fit: expected data as an array .*got a Parameter \("
    ):
        to_jax(torch.nn.Parameter(torch.ones(2)), "fit")
    with pytest.raises(fdl.PathError, match=r"^fit: expected data .*, got a Tensor \(Got unsupp"):
        to_jax(torch.ones(2, dtype=torch.bfloat16), "fit")


@pytest.mark.parametrize(
    "given",
    [
        LONG,
        [np.ones(i % 2 + 1) for i in range(500)],
        {f"a name that is rather long {i}": np.ones(i % 2 + 1) for i in range(500)},
        Table(**{f"column {i}": Wrapped(np.array(["a"], object)) for i in range(500)}),
        np.zeros(2, [(f"field {i}", "f4") for i in range(500)]),
        {f"{'a long name ' * 50}{i}": np.ones(i + 1) for i in range(10)},
        {"a long name " * 500: np.array([1, np.nan, 1e300])},
        {"a long name " * 500: np.array(["a"])},
        np.array(["a" * 5000]),
        Wrapped(np.array(["a" * 5000], object)),
    ],
    ids=[
        "lists",
        "lengths",
        "names",
        "columns",
        "fields",
        "long",
        "nan",
        "texts",
        "text",
        "objects",
    ],
)
def test_no_message_is_long(given):
    messages = []
    for call in (lambda: arrays.check_data(given), lambda: to_jax(given, "fit")):
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
    assert messages
    for message in messages:
        assert len(message) < 2000 and re.match(
            r"(fit|data).*: expected [^\n]*, got [^\n]*$", message
        )


SEEDED_BUGS = {
    "fdl/checks.py": (
        "data/test_arrays.py",
        [
            ("changed = narrow != chunk", "changed = narrow < 0"),
            ("np.isfinite(chunk.view(real)) & ", ""),
            ("seen += len(chunk)", "pass"),
        ],
    ),
    "fdl/losses/per_example.py": (
        "data/test_arrays.py",
        [
            ("functools.partial(fitting, name), arrays", "lambda what, x: x, arrays"),
        ],
    ),
    "fdl/data/arrays.py": (
        "data/test_arrays.py",
        [
            ('if column.dtype.kind not in "biuf"]', "if False]"),
            ("isinstance(node, list) and is_list", "is_list"),
            ("shapes[:MOST_NAMED]", "shapes"),
        ],
    ),
}
