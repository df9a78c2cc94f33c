"""weak_jit: what compiles ahead, what compiles with few optimizations, and when."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdl.core import compilation
from fdl.core.compilation import weak_jit

COMPILATIONS = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: COMPILATIONS.append(event) if "backend_compile" in event else None
)


def doubled(once=False):
    @weak_jit(static=["times"], once=once)
    def call(x, *, times):
        return {name: value * times for name, value in x.items()}

    return call


@pytest.fixture
def x():
    return {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}


def compiled_by(f):
    """(the number of programs that a call compiles, its result)."""
    before = len(COMPILATIONS)
    result = jax.block_until_ready(f())
    return len(COMPILATIONS) - before, result


def test_what_was_compiled_ahead_is_not_compiled_again(x, monkeypatch):
    compile = jax.stages.Lowered.compile
    late = lambda self, given: time.sleep(0.2) or compile(self, given)  # noqa: E731
    monkeypatch.setattr(jax.stages.Lowered, "compile", late)
    call = doubled()

    def ahead():
        call.compile_ahead(x, times=2)
        y = call(x, times=2)  # waits for the other thread
        [program] = call.programs.values()
        assert all(future.done() for future in program.compiled.values())
        return y

    programs, y = compiled_by(ahead)
    assert programs == 1
    np.testing.assert_array_equal(y["a"], [0, 2, 4])
    # The same kinds again; NumPy arrays are of the same kind.
    call.compile_ahead(x, times=2)
    [program] = call.programs.values()
    assert len(program.compiled) == 1
    assert compiled_by(lambda: call(jax.tree.map(np.asarray, x), times=2))[0] == 0


@pytest.mark.parametrize(
    "other",
    [
        {"a": jnp.arange(4.0), "b": jnp.ones((2, 2))},
        {"a": jnp.arange(3), "b": jnp.ones((2, 2))},
        {"a": jnp.arange(3.0), "c": jnp.ones((2, 2))},
    ],
    ids=["shape", "dtype", "structure"],
)
def test_other_kinds_compile_when_they_are_called(x, other):
    call = doubled()
    call.compile_ahead(x, times=2)
    programs, y = compiled_by(lambda: call(other, times=2))
    assert programs >= 1
    np.testing.assert_array_equal(y["a"], 2 * np.asarray(other["a"]))
    [program] = call.programs.values()
    assert len(program.compiled) == 1
    call.compile_ahead(other, times=2)
    assert len(program.compiled) == 2


def test_a_device_that_was_chosen_is_another_kind(x):
    call = doubled()
    call.compile_ahead(x, times=2)
    [program] = call.programs.values()
    chosen = jax.device_put(x, jax.devices()[0])
    call.compile_ahead(chosen, times=2)
    assert len(program.compiled) == 2


@pytest.mark.parametrize("once", [False, True])
def test_traced_arrays_become_part_of_the_program_around_them(x, once):
    call = doubled(once)
    call.compile_ahead(x, times=2)

    def loss(x):
        return sum(jnp.sum(value) for value in call(x, times=2).values())

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(x)["a"], [2, 2, 2])
    np.testing.assert_array_equal(
        jax.vmap(lambda a: call({"a": a}, times=2)["a"])(x["a"]), [0, 2, 4]
    )
    # Known arrays inside a traced function.
    assert float(jax.jit(lambda a: a + call(x, times=2)["a"][1])(1.0)) == 3


def test_with_once_a_program_is_kept_and_has_few_optimizations(x, monkeypatch):
    call = doubled(once=True)
    options = []
    compile = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda self, given: options.append(given) or compile(self, given),
    )
    assert [compiled_by(lambda: call(x, times=2))[0] for _ in range(3)][1:] == [0, 0]
    assert options == [{"xla_backend_optimization_level": 0}]
    plain = doubled()
    plain.compile_ahead(x, times=2)
    plain(x, times=2)
    assert options[1:] == [None]


def test_an_error_in_tracing_is_raised_at_once(x):
    @weak_jit(static=["shape"])
    def reshaped(x, *, shape):
        return x["a"].reshape(shape)

    with pytest.raises(TypeError, match="reshape"):
        reshaped.compile_ahead(x, shape=(2, 2))


def test_what_compiles_ahead_gives_memory_back(x, monkeypatch):
    calls = []
    monkeypatch.setattr(compilation, "return_freed_memory", lambda: calls.append(len(COMPILATIONS)))
    before = len(COMPILATIONS)
    call = doubled()
    call.compile_ahead(x, times=2)
    call(x, times=2)
    assert calls == [before + 1]


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps what is freed")
def test_freed_memory_goes_back_to_the_system():
    """Freed blocks between others that are in use, which glibc alone keeps."""
    done = subprocess.run([sys.executable, "-c", FREEING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before - after > 100e6


FREEING = """
import numpy as np
from fdl.core.compilation import return_freed_memory

def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

blocks = [np.ones(50_000, np.uint8) for _ in range(4000)]
kept = blocks[::50]
del blocks
before = resident()
return_freed_memory()
print(before, resident())
"""

SEEDED_BUGS = {
    "fdl/core/compilation.py": (
        "core/test_compilation.py train/test_loop.py -k compile_or_kind_or_trace_or_once_or_memor",
        [
            ("    return_freed_memory()\n    return compiled", "    return compiled"),
            ("            trim(0)", "            pass"),
            ("if key not in self.compiled:", "if True:"),
            ("self.pending.append(self.started(args, given))", "self.started(args, given)"),
            ("if self.once and not _any_traced((args, given)):", "if self.once:"),
            ("(jax.typeof(leaf), _devices(leaf))", "jax.typeof(leaf)"),
            ("(jax.typeof(leaf), _devices(leaf))", "_devices(leaf)"),
            ("key = structure, tuple", "key = tuple"),
            ("self.once and jax.default_backend()", "jax.default_backend()"),
            ("FEW_OPTIMIZATIONS if self.once", "None if self.once"),
        ],
    )
}
