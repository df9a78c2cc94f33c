"""Settings for every test: strict dtype promotion for fdl's own code, and the real data if near."""

import gc
import os
from pathlib import Path

import jax
import pytest

from tests import workers

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_traceback_in_locations_limit", 0)  # lines in programs, which nobody reads

FAST = 6  # of a file
# Fixtures that run a program on several devices, which takes about 20 seconds.
PROGRAMS = {"eight", "split", "two"}

_shared = Path(__file__).parents[2] / "shared" / "data"
if "FDL_DATA" not in os.environ and _shared.is_dir():
    os.environ["FDL_DATA"] = str(_shared)


def pytest_configure(config):
    workers.configure(config)
    # What JAX keeps of its programs is no garbage; looking through it was a tenth of the time.
    gc.set_threshold(100_000, 50, 1000)


@pytest.fixture
def standard_promotion():
    """For oracles that do not pass strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def pytest_make_parametrize_id(val):
    """A gzip file begins with the time: its bytes in a name would differ between the workers."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """All laws of one entry one after the other, so that they share what is compiled for it."""
    mark_slow(items)
    mark_fast(items)
    workers.keep_own(config, items)
    laws = [item for item in items if item.path.name in ("test_laws.py", "test_optimizers.py")]
    named = {item: getattr(item, "callspec", None) for item in laws}
    order = sorted(laws, key=lambda item: str(named[item] and named[item].params.get("name")))
    places = [place for place, item in enumerate(items) if item in named]
    for place, item in zip(places, order, strict=True):
        items[place] = item


def mark_slow(items):
    """Marks `slow` the laws of the entries that say so, and what needs one of PROGRAMS."""
    for item in items:
        if PROGRAMS & {*getattr(item, "fixturenames", ())}:
            item.add_marker("slow")
        if item.path.name == "test_laws.py" and hasattr(item, "callspec"):
            entry = item.module.LAYERS.get(item.callspec.params.get("name"))
            if entry and entry.slow:
                item.add_marker("slow")


def mark_fast(items):
    """Marks `fast` a few tests of every file: the first case of functions spread evenly over it.

    The case is the first, so that the laws of one entry share what is compiled for it.
    """
    functions = {}
    for item in items:
        if item.path.name.startswith("test_") and not item.get_closest_marker("slow"):
            functions.setdefault(item.path, {}).setdefault(item.originalname, item)
    for cases in functions.values():
        chosen = list(cases.values())
        for item in chosen[:: -(-len(chosen) // FAST)]:
            item.add_marker("fast")
