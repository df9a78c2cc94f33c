"""Settings for every test: strict dtype promotion for fdl's own code, and the real data if near."""

import os
from pathlib import Path

# Thousands of tiny programs: nearly all of the time is the compiler's, so it shall not optimize.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

_shared = Path(__file__).parents[2] / "shared" / "data"
if "FDL_DATA" not in os.environ and _shared.is_dir():
    os.environ["FDL_DATA"] = str(_shared)


@pytest.fixture
def standard_promotion():
    """For oracles that do not pass strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def pytest_make_parametrize_id(val):
    """A gzip file begins with the time: its bytes in a name would differ between the workers."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """All laws of one entry one after the other, so that they share what is compiled for it."""
    laws = [item for item in items if item.path.name in ("test_laws.py", "test_optimizers.py")]
    named = {item: getattr(item, "callspec", None) for item in laws}
    order = sorted(laws, key=lambda item: str(named[item] and named[item].params.get("name")))
    places = [place for place, item in enumerate(items) if item in named]
    for place, item in zip(places, order, strict=True):
        items[place] = item
