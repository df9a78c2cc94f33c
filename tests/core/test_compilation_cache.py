"""use_compilation_cache: the second process reads its programs, and gets the same bits."""

import json
import os
import re
import subprocess
import sys

import jax
import pytest

import fdl

PROGRAM = """
import json
import sys
import jax
import numpy as np
import fdl

counts = {"read": 0, "compiled": 0}

def listen(event, *_, **__):
    counts["read"] += event == "/jax/compilation_cache/cache_hits"
    counts["compiled"] += event == "/jax/compilation_cache/cache_misses"

jax.monitoring.register_event_listener(listen)
folder = fdl.use_compilation_cache(*sys.argv[1:])
model = fdl.chain(fdl.dense(3), fdl.dropout(0.5), fdl.dense(2))
x = np.ones((8, 4), "float32")
params, _ = model.init(jax.random.key(0), x)
objective = fdl.plain(lambda params, x: (model.apply(params, {}, x, key=jax.random.key(1),
    train=True)[0] ** 2).mean())
result = fdl.fit(objective, fdl.adam(0.1), fdl.start(params, fdl.adam(0.1)), x, steps=3)
found = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(result.run.params)]
print(json.dumps([counts, found, str(folder)]))
"""


def run_program(environment, *arguments):
    """(counts, parameters, folder) of a process of its own, without the settings of this one."""
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_gets_the_same_bits(tmp_path):
    first, params, folder = run_program({"FDL_CACHE": str(tmp_path)})
    assert folder == str(tmp_path / "programs")
    assert first["compiled"] > 5 and first["read"] < first["compiled"]
    second, again, _ = run_program({}, folder)
    assert second == {"read": first["compiled"] + first["read"], "compiled": 0}
    assert again == params


@pytest.fixture
def settings():
    """JAX's settings, which come back after the test."""
    names = ["jax_compilation_cache_dir", *fdl.core.compilation_cache.KEEP_ALL]
    before = {name: getattr(jax.config, name) for name in names}
    yield before
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_folder_and_thresholds_of_the_user_stay(settings, tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "2")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", raising=False)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 2.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 7)
    assert fdl.use_compilation_cache() == tmp_path / "mine"
    assert (tmp_path / "mine").is_dir()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 2
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1


def test_a_folder_that_cannot_be_is_refused(settings, tmp_path):
    (tmp_path / "file").write_text("")
    told = "use_compilation_cache: expected a folder that can be made, got 'Not a directory' for "
    with pytest.raises(OSError, match=f"^{re.escape(told)}.*file/in it'; pass another folder$"):
        fdl.use_compilation_cache(tmp_path / "file" / "in it")
    assert jax.config.jax_compilation_cache_dir == settings["jax_compilation_cache_dir"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(settings, tmp_path):
    tmp_path.chmod(0o500)
    told = "use_compilation_cache: expected a folder that can be written to, got "
    with pytest.raises(OSError, match=f"^{told}.*; pass another folder, or change its permission"):
        fdl.use_compilation_cache(tmp_path)


SEEDED_BUGS = {
    "fdl/core/compilation_cache.py": (
        "core/test_compilation_cache.py",
        [
            ('"jax_persistent_cache_min_compile_time_secs": 0.0,', ""),
            ("if name.upper() not in os.environ:", "if True:"),
            ("jax.config.values[FOLDER] or", ""),
        ],
    ),
}
