"""Every layer, loss, activation, initializer, optimizer and schedule that a test file registers.

A test file registers what it tests in a dict of one of these names; the laws run over all of them.
"""

import importlib
import re
from pathlib import Path

TESTS = Path(__file__).parent
FAMILIES = (
    "LAYERS",
    "LOSSES",
    "ACTIVATIONS",
    "GATES",
    "INITIALIZERS",
    "OPTIMIZERS",
    "DEFAULTS",
    "SCHEDULES",
    "TRANSFORMATIONS",
)


def gathered():
    """Family -> name -> entry."""
    found = {family: {} for family in FAMILIES}
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text()
        here = [family for family in FAMILIES if re.search(rf"^{family}\b.*= ", text, re.M)]
        if here:
            parts = path.relative_to(TESTS.parent).with_suffix("").parts
            module = importlib.import_module(".".join(parts))
        for family in here:
            entries = getattr(module, family)
            twice = found[family].keys() & entries
            assert not twice, f"{path.name}: {family} has {sorted(twice)} twice; rename them here"
            found[family].update(entries)
    return found


_ALL = gathered()
LAYERS = _ALL["LAYERS"]
LOSSES = _ALL["LOSSES"]
ACTIVATIONS = _ALL["ACTIVATIONS"]
GATES = _ALL["GATES"]
INITIALIZERS = _ALL["INITIALIZERS"]
OPTIMIZERS = _ALL["OPTIMIZERS"]
DEFAULTS = _ALL["DEFAULTS"]
SCHEDULES = _ALL["SCHEDULES"]
TRANSFORMATIONS = _ALL["TRANSFORMATIONS"]
