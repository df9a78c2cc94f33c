"""Programs in a file: they run without fdl, for batches of any size, and say what is wrong."""

import functools
import importlib.util
import re
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import fdl
from fdl.port import load_program, save_program
from fdl.port.batch_sizes import special_case
from fdl.port.programs import PLATFORMS
from tests.programs import array

TOKENS, IMAGES = (8,), (8, 8, 3)
# name -> (a network, the shape of one input)
NETWORKS = {
    "mlp": (lambda: fdl.mlp([8], 3), (5,)),
    "autoencoder": (lambda: fdl.autoencoder((8, 8), [5], 2), (8, 8)),
    "lenet": (lambda: fdl.lenet(10), (8, 8, 1)),
    "resnet": (lambda: fdl.resnet(10, (1, 1), width=4), IMAGES),
    "lstm": (lambda: fdl.lstm_classifier(11, 6, 3, depth=2, both_ways=True), TOKENS),
    "gpt": (lambda: fdl.gpt(11, 8, 2, 2, 8), TOKENS),
    "llama": (
        lambda: fdl.gpt(11, None, 2, 2, 8, rotary=True, kv_heads=1, norm=fdl.rms_norm(), gate=True),
        TOKENS,
    ),
    "encoder": (lambda: fdl.encoder(11, 8, 2, 2, 8), TOKENS),
    "vit": (lambda: fdl.vit(10, 8, 4, 1, 2, 8), IMAGES),
    "experts": (lambda: fdl.chain(fdl.mixture_of_experts(fdl.dense(2), 3)), (8, 3)),
    "state_space": (lambda: fdl.chain(fdl.rg_lru(3)), (8, 3)),
}


def inputs(shape, size, seed=0):
    rng = np.random.default_rng(seed)
    if shape == TOKENS:
        return array(rng.integers(0, 11, (size, *shape)), np.int32)
    return array(rng.normal(size=(size, *shape)))


@functools.cache
def made(name):
    make, shape = NETWORKS[name]
    model = make()
    params, state = model.init(jax.random.key(0), inputs(shape, 2))
    return jax.jit(lambda x: model.apply(params, state, x)[0]), shape


def test_jax_alone_runs_it_without_fdl(tmp_path):
    f, shape = made("mlp")
    save_program(tmp_path / "f", f, inputs(shape, 2))
    x = np.asarray(inputs(shape, 3))
    np.save(tmp_path / "x.npy", x)
    script = (
        "import sys, jax, numpy as np\n"
        "sys.modules['fdl'] = sys.modules['optax'] = None\n"
        "folder = sys.argv[1]\n"
        "program = jax.export.deserialize(bytearray(open(folder + '/f', 'rb').read()))\n"
        "np.save(folder + '/y.npy', program.call(np.load(folder + '/x.npy')))\n"
    )
    script = script.replace("import sys, jax,", "import sys, jax, jax.export,")
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), f(x))


def test_arguments_may_be_trees_and_several_may_have_the_batch(tmp_path):
    def f(weights, x, scale, mask):
        return {"y": (x["a"] @ weights["w"] * scale, x["b"][::-1]), "sum": mask.sum()}

    given = [{"w": jnp.ones((3, 2))}, {"a": jnp.ones((4, 3)), "b": jnp.arange(4)}, 2.0, jnp.ones(4)]
    save_program(tmp_path / "f", f, *given, batch=[1, 3])
    program = load_program(tmp_path / "f")
    x = {"a": np.arange(6.0, dtype="float32").reshape(2, 3), "b": jnp.arange(2)}
    found = program({"w": jnp.ones((3, 2))}, x, 10.0, np.ones(2, "float32"))
    np.testing.assert_array_equal(found["y"][0], [[30, 30], [120, 120]])
    assert found["y"][1].tolist() == [1, 0] and float(found["sum"]) == 2
    assert repr(program) == (
        "<Program: 0/w float32 [3, 2], 1/a float32 [b, 3], 1/b int32 [b], 2 float32 [], "
        "3 float32 [b] -> float32 [], float32 [b, 2], int32 [b]; for cpu, cuda, rocm, tpu>"
    )
    step = lambda none, x: (none, program(*given[:1], x, 1.0, x["a"][:, 0]))  # noqa: E731
    in_scan = jax.jit(lambda xs: jax.lax.scan(step, None, xs))
    xs = {"a": jnp.ones((5, 4, 3)), "b": jnp.zeros((5, 4), jnp.int32)}
    assert in_scan(xs)[1]["y"][0].shape == (5, 4, 2)


def test_shapes_are_enough_and_keys_are_arguments(tmp_path):
    x, key = jax.ShapeDtypeStruct((2, 3), "bfloat16"), jax.random.key(3)
    draw = lambda x, key: x + jax.random.normal(key, x.shape, x.dtype)  # noqa: E731
    save_program(tmp_path / "f", draw, x, key, batch=0)
    x = jnp.zeros((4, 3), "bfloat16")
    np.testing.assert_array_equal(load_program(tmp_path / "f")(x, key), jax.jit(draw)(x, key))


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


def printing(x):
    jax.debug.print("{x}", x=x)
    return x


def refuses_batches(x):
    return x.reshape(5, 2) if x.shape[0] > 4 else x


X = jnp.ones((5, 2))
ONE, TWO = jnp.ones(2), 2 * jnp.ones(2)
# Functions that do something else for a batch of 1, and where they do.
SPECIAL = {
    "another_operation": (
        lambda x: x * 2 if x.shape[0] == 1 else x,
        r"mul test_programs.py:\d+ \(",
    ),
    "another_number": (lambda x: x * (2 if x.shape[0] == 1 else 3), r"mul test_programs.py:\d+ \("),
    "another_array": (lambda x: x + (ONE if x.shape[0] == 1 else TWO), r"add test_programs.py:"),
    "another_axis": (lambda x: x + x.sum(-1 if x.shape[0] == 1 else 0).max(), r"reduce_sum test_"),
    "another_order": (
        lambda x: x - jnp.sin(x) if x.shape[0] == 1 else jnp.sin(x) - x,
        "sub test_programs.py:",
    ),
    "another_shape": (lambda x: x.reshape(-1) if x.shape[0] == 1 else x, "its result"),
    "another_loop": (
        lambda x: jax.lax.fori_loop(0, 3, lambda n, y: y * (2 if x.shape[0] == 1 else 3), x),
        "mul test_programs.py:",
    ),
    "more_at_the_end": (lambda x: x if x.shape[0] == 1 else jnp.sin(x), "sin test_programs.py:"),
}
# Functions of the batch that are the same for every size.
GENERAL = {
    "mean": lambda x: (x - x.mean(0)) / x.std(0) + x.shape[0] // 2,
    "products": lambda x: (x[:, None] * x[..., None]) @ jnp.ones((1, 2, 2)),
    "inverse": lambda x: jnp.linalg.inv(x[:, None] * x[..., None] + 2 * jnp.eye(2)),
    "last": lambda x: x - x[-1],
    "reverse": lambda x: jnp.cumsum(x[::-1], 0),
    "loop": lambda x: jax.lax.map(jnp.sin, x),
}
WRONG = {
    "a_layer": (
        (fdl.dense(2), X),
        {},
        "save_program: expected a function, got <Layer dense>; pass fdl.stateless(model) with the "
        "arguments params and x, or lambda x: model.apply(params, state, x)[0] with x",
    ),
    "no_such_argument": (
        (jnp.sum, X),
        {"batch": 1},
        "save_program: expected batch to be the number of one of the 1 arguments, got 1; pass the "
        "number of the argument whose axis 0 is the batch, or None",
    ),
    "a_name_of_an_argument": (
        (jnp.sum, X),
        {"batch": "x"},
        "save_program: expected batch to be the number of one of the 1 arguments, got 'x'; pass "
        "the number of the argument whose axis 0 is the batch, or None",
    ),
    "a_scalar_as_the_batch": (
        (lambda x, p: x * p["scale"], X, {"scale": jnp.float32(2)}),
        {},
        "save_program: expected arrays [B, ...] in argument 1, got float32 [] at '1/scale'; pass "
        "the number of another argument as batch, or None",
    ),
    "another_platform": (
        (jnp.sum, X),
        {"platforms": ["cpu", "gpu"]},
        "save_program: expected platforms among ['cpu', 'cuda', 'rocm', 'tpu'], got ['cpu', "
        "'gpu']; pass a list such as ['cpu', 'cuda']",
    ),
    "a_container_of_its_own": (
        (lambda pair: pair.a, Pair(X, X)),
        {},
        "save_program: expected arguments and results in dicts, lists and tuples, and operations "
        "that stay the same in later versions of JAX, got ",
    ),
    "a_size_that_is_needed": (
        (refuses_batches, X),
        {},
        "save_program: expected a function that does not depend on the size of the batch, got one "
        "that needs it (",
    ),
    "a_call_of_python": (
        (printing, X),
        {"batch": None},
        "save_program: expected a function that can be compiled for cpu, cuda, rocm, tpu, got one "
        "that cannot (",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_saved_is_said_and_leaves_no_file(tmp_path, name):
    given, how, told = WRONG[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(told)) as caught:
        save_program(tmp_path / "f", *given, **how)
    assert list(tmp_path.iterdir()) == []
    remedies = {
        "a_size_that_is_needed": "); pass batch=None, which saves the function for the shapes of "
        "its arguments only",
        "a_call_of_python": "); leave out calls of Python code such as jax.debug.print, or name "
        "fewer platforms, as in platforms=['cpu']",
        "a_container_of_its_own": "; pass a dict of arrays, and return one",
    }
    assert str(caught.value).endswith(remedies.get(name, told))


@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_case_for_a_batch_of_1_is_refused(tmp_path, name):
    f, where = SPECIAL[name]
    told = (
        r"^save_program: expected a function that does not depend on the size of the batch, got "
        rf"one that does something else for a batch of 1 \({where}.*\); pass batch=None, which "
        r"saves the function for the shapes of its arguments only$"
    )
    with pytest.raises(ValueError, match=told):
        save_program(tmp_path / "f", f, X, platforms=["cpu"])
    assert list(tmp_path.iterdir()) == []
    save_program(tmp_path / "f", f, X[:1], batch=None, platforms=["cpu"])
    np.testing.assert_array_equal(load_program(tmp_path / "f")(X[:1]), jax.jit(f)(X[:1]))


def test_a_batch_of_1_that_raises_is_refused(tmp_path):
    def picky(x):
        if x.shape[0] == 1:
            raise ValueError("two or more, please")
        return x

    told = r" on the size of the batch, got one that needs it \(two or more, please\); pass batch=N"
    with pytest.raises(ValueError, match=told):
        save_program(tmp_path / "f", picky, X, platforms=["cpu"])


@pytest.mark.parametrize("name", GENERAL)
def test_what_is_the_same_for_every_size_is_saved(tmp_path, name):
    shapes = [(jax.ShapeDtypeStruct((size, 2), X.dtype),) for size in (1, 2, 5)]
    assert special_case(GENERAL[name], shapes) == ""
    save_program(tmp_path / "f", GENERAL[name], X, platforms=["cpu"])
    for size in (1, 3):
        x = inputs((2,), size)
        found = load_program(tmp_path / "f")(x)
        np.testing.assert_allclose(found, GENERAL[name](x), rtol=1e-5, atol=1e-5)


def test_another_way_to_the_same_results_is_no_special_case(tmp_path):
    w = jnp.arange(6.0).reshape(2, 3)
    f = lambda x: x @ w if x.shape[0] == 1 else 2 * x @ w  # noqa: E731
    same = lambda x: (x[:1] + x[:1] if x.shape[0] == 1 else 2 * x) @ w  # noqa: E731
    shapes = [(jax.ShapeDtypeStruct((size, 2), X.dtype),) for size in (1, 2, 5)]
    assert special_case(same, shapes) != ""
    save_program(tmp_path / "f", same, X, platforms=["cpu"])
    np.testing.assert_allclose(load_program(tmp_path / "f")(X[:1]), same(X[:1]), rtol=1e-6)
    with pytest.raises(ValueError, match="does something else for a batch of 1"):
        save_program(tmp_path / "g", lambda x: (same(x), f(x)), X, platforms=["cpu"])


def test_without_a_batch_only_these_shapes_fit(tmp_path):
    save_program(tmp_path / "f", refuses_batches, X, batch=None)
    program = load_program(tmp_path / "f")
    assert program(X).shape == (5, 2)
    with pytest.raises(
        ValueError, match=r"different: 0, expected float32 \[5, 2\], got float32 \["
    ):
        program(X[:3])


def test_an_error_of_the_function_stays_its_error(tmp_path):
    model = fdl.chain(fdl.dense(2))
    params, _ = model.init(jax.random.key(0), X)
    told = r"^dense_0: expected x \[\.\.\., 2\], got \[5, 3\]; "
    with pytest.raises(fdl.PathError, match=told):
        save_program(tmp_path / "f", fdl.stateless(model), params, jnp.ones((5, 3)))


def test_arguments_that_do_not_fit_are_listed_by_path(tmp_path):
    f = lambda p, x, t: x @ p["w"] + t[:, None]  # noqa: E731
    save_program(tmp_path / "f", f, {"w": jnp.ones((2, 2))}, X, jnp.ones(5), batch=(1, 2))
    program = load_program(tmp_path / "f")
    told = (
        "program: expected the 3 arrays of the saved function, got arguments that differ at 4 "
        "paths; pass arrays of the shapes and dtypes below. A path begins with the number of the "
        "argument\n"
        "  missing: 0/w float32 [2, 2]\n"
        "  unexpected: 0/v float32 [2, 2]\n"
        "  different: 1, expected float32 [b, 2], got int32 [5, 2]\n"
        "  different: 2, expected float32 [b], got float32 [0]"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        program({"v": jnp.ones((2, 2))}, jnp.ones((5, 2), int), jnp.ones(0))
    told = r"\n  different: 2, expected float32 \[b\] where b = 5, got float32 \[4\]$"
    with pytest.raises(ValueError, match=told):
        program({"w": jnp.ones((2, 2))}, X, jnp.ones(4))


def test_a_program_for_another_platform_is_refused_when_it_is_called(tmp_path):
    save_program(tmp_path / "f", jnp.tanh, X, platforms=["cuda", "tpu"])
    program = load_program(tmp_path / "f")
    told = (
        r"^program: expected to run on cuda or tpu, for which it was saved, got cpu; move the "
        r"arguments with jax.device_put, or save the program for this platform too$"
    )
    with pytest.raises(ValueError, match=told):
        program(X)


def test_files_that_are_not_programs_or_not_complete_are_refused(tmp_path):
    file = tmp_path / "f"
    save_program(file, jnp.tanh, X)
    whole = file.read_bytes()
    told = f"^{file}: expected a complete file from save_program, got "
    for bytes_, got in (
        (b"", "0 bytes without the mark at their end; copy it or save it again$"),
        (whole[: len(whole) // 2], r"[\d,]+ bytes without the mark at their end; "),
        (whole[:-1], r"[\d,]+ bytes without the mark at their end; "),
        (b"x" + whole[1:], r"[\d,]+ bytes with a wrong checksum; copy it or save it again$"),
        (whole[200:], r"[\d,]+ bytes with a wrong checksum; "),
        (whole[-14:], "14 bytes with a wrong checksum; "),
    ):
        file.write_bytes(bytes_)
        with pytest.raises(ValueError, match=told + got):
            load_program(file)
    with pytest.raises(ValueError, match=r"expected a complete file from save_program, got a fol"):
        load_program(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*none"):
        load_program(tmp_path / "none")


def test_a_program_of_another_format_of_jax_is_refused(tmp_path, monkeypatch):
    save_program(tmp_path / "f", jnp.tanh, X)

    def newer(bytes_):
        raise NotImplementedError("unsupported version 99\nmore")

    monkeypatch.setattr(export, "deserialize", newer)
    told = (
        f"^{tmp_path}/f: expected a program that JAX {jax.__version__} can read, got unsupported "
        "version 99; install the version of JAX that saved it, or save it again$"
    )
    with pytest.raises(ValueError, match=told):
        load_program(tmp_path / "f")


def test_an_existing_file_stays_if_saving_fails(tmp_path):
    file = tmp_path / "f"
    save_program(file, jnp.tanh, X)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="expected a function that does not depend on the size"):
        save_program(file, refuses_batches, X)
    assert file.read_bytes() == before
    with pytest.raises(FileNotFoundError, match=r"^.*save_program: expected to write a file of "):
        save_program(tmp_path / "none" / "f", jnp.tanh, X)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    save_program(tmp_path / "f", jnp.tanh, X)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, call in (
        ("save_program", lambda: save_program(tmp_path / "g", jnp.tanh, X)),
        ("load_program", lambda: load_program(tmp_path / "f")),
    ):
        told = (
            f"^{name}: expected the package flatbuffers, which reads and writes programs, got "
            r"none; pip install 'fdl\[programs\]'$"
        )
        with pytest.raises(ImportError, match=told):
            call()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_of_a_network_takes_batches_of_any_size(tmp_path, name):
    f, shape = made(name)
    save_program(tmp_path / "f", f, inputs(shape, 2))
    program = load_program(tmp_path / "f")
    assert program.exported.platforms == ("cpu", "cuda", "rocm", "tpu") == PLATFORMS
    for size in (1, 5):
        x = inputs(shape, size, seed=size)
        np.testing.assert_allclose(program(x), f(x), rtol=1e-5, atol=1e-6)


SEEDED_BUGS = {
    "fdl/port/batch_sizes.py": (
        "port/test_programs.py -k special_or_same",
        [
            ('_MOVES = {"broadcast_in_dim", "reshape", "slice",', '_MOVES = {"reshape",'),
            ('_AXES = {"dimension", "dimension_numbers", "slice_sizes"}', "_AXES = {}"),
            ("yield from ((eqn, n, name(atom))", "yield from ((eqn, n)"),
            ("yield from _option(eqn, option, value)", "pass"),
            ('("number", repr(value))', '("number",)'),
            ('("array", id(value))', '("array",)'),
            (", _shapes(each))", ")"),
            ("all(list(each[1:]) == second for each in more)", "True"),
            ("if (one.shape, one.dtype) != (two.shape, two.dtype):", "if False:"),
            ("or not all(map(_near", "or not any(map(_near"),
        ],
    ),
    "fdl/port/programs.py": (
        "port/test_programs.py",
        [
            ("hashlib.sha256(body).digest() + _MARK", "_MARK"),
            ("!= digest", "== b''"),
            ("n % len(args) for n in numbers", "0 for n in numbers"),
            ("(b, *leaf.shape[1:])", "leaf.shape"),
            ("if aval.dtype != leaf.dtype or", "if"),
            ("length != known and (known is not None or length < 1)", "length != known and False"),
            ("sizes[str(expected)] = length", "pass"),
            ("if path not in other}", "if False}"),
            ("    jax.eval_shape(f, *args)", "    pass"),
            ('if "exported for platforms" not in str(error):', "if True:"),
            ("(*(symbolic or args))", "(*args)"),
            ("    if special and differ", "    if False and differ"),
            ("if special and differ(jitted, program.call, _sized(symbolic, 1)):", "if special:"),
            ("for n in (1, 2, 5)]", "for n in (1, 2)]"),
            ("with replacing(file, who, len(data)) as out:", 'with open(file, "wb") as out:'),
        ],
    ),
}
