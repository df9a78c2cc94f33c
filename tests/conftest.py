"""Settings for every test: strict dtype promotion for fdl's own code, and the real data if near."""

import gc
import os
from pathlib import Path

import jax
import pytest
import workers

jax.config.update("jax_numpy_dtype_promotion", "strict")

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


def pytest_collection_modifyitems(config, items):
    """All laws of one entry one after the other, so that they share what is compiled for it."""
    workers.keep_own(config, items)
    laws = [item for item in items if item.path.name in ("test_laws.py", "test_optimizers.py")]
    named = {item: getattr(item, "callspec", None) for item in laws}
    order = sorted(laws, key=lambda item: str(named[item] and named[item].params.get("name")))
    places = [place for place, item in enumerate(items) if item in named]
    for place, item in zip(places, order, strict=True):
        items[place] = item
