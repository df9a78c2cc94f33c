"""The arguments of a sweep, and their checks: settings, seeds, rungs, and the function `init`."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from fdl.checks import as_int, described, is_count, is_number
from fdl.optim.lifting import check_params
from fdl.paths import shortened
from fdl.typing import Batch, Hook

KEEP = 1 / 3  # the share of the settings that go past a rung


class Options(NamedTuple):
    """The arguments of `sweep` that have defaults."""

    seeds: Sequence[int]
    batch_size: int
    epochs: float | None
    steps: int | None
    validation: Batch | None
    record_every: int | None
    monitor: str
    mode: Literal["min", "max"]
    target: float | None
    rungs: Sequence[int] = ()
    keep: float = KEEP
    watch: Sequence[Hook] = ()


def listed_settings(who: str, settings: Any) -> list[dict[str, float]]:
    """The settings as a list of dicts; raises unless they are dicts of numbers with equal names."""
    given = settings
    if isinstance(settings, Mapping):
        grid = {name: list(np.ravel(values)) for name, values in settings.items()}
        settings = [
            dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
        ]
        settings = settings if grid else []
    listed = isinstance(settings, Sequence) and not isinstance(settings, str)
    fine = listed and all(isinstance(each, Mapping) and each for each in settings)
    if not fine or not settings:
        raise ValueError(
            f"{who}: expected settings as name -> list of values, or as a list of dicts, got "
            f"{shortened(repr(given), 200)}; pass {{'learning_rate': [0.01, 0.1]}}, for example"
        )
    for each in settings:
        if list(each) != list(settings[0]):
            raise ValueError(
                f"{who}: expected settings with the same names, got [{', '.join(map(str, each))}] "
                f"and [{', '.join(map(str, settings[0]))}]; give every setting a value for each "
                "name"
            )
        for name, value in each.items():
            if not is_number(value) or np.ndim(value):
                raise ValueError(
                    f"{who}: expected a number for {name}, got {described(value)}; to compare "
                    "values that are not numbers, run a sweep for each of them"
                )
    return [{name: np.asarray(value).item() for name, value in each.items()} for each in settings]


def checked_seeds(who: str, seeds: Any) -> list[int]:
    """The seeds as a list; raises unless they are different integers in [0, 2**32)."""
    listed = isinstance(seeds, Iterable) and not isinstance(seeds, str)
    whole = [as_int(seed) for seed in seeds] if listed else []
    whole_fine = all(is_count(seed, least=0) and seed < 2**32 for seed in whole)
    if not whole or not whole_fine or len(set(whole)) < len(whole):
        raise ValueError(
            f"{who}: expected different seeds in [0, 2**32), got {described(seeds)}; "
            "pass range(3), for example"
        )
    return [int(seed) for seed in whole]


def checked_rungs(who: str, rungs: Any, last: int) -> list[int]:
    """The rungs as a list; raises unless they increase, and are in [1, last - 1]."""
    listed = isinstance(rungs, Iterable) and not isinstance(rungs, str)
    whole: list[Any] = [as_int(rung) for rung in rungs] if listed else [None]
    fine = all(is_count(rung) for rung in whole)
    if not fine or not all(a < b for a, b in itertools.pairwise([0, *whole, last])):
        raise ValueError(
            f"{who}: expected rungs as increasing steps in [1, {last - 1}], got "
            f"{described(rungs)}; leave them out to train every setting to the end"
        )
    return whole


def params_and_state_of(
    who: str, init: Callable[[int], tuple[Any, Any]], seed: int
) -> tuple[Any, Any]:
    """Calls `init(seed)`, and checks that it returns (params, state)."""
    if not callable(init):
        raise ValueError(
            f"{who}: expected init to be a function seed -> (params, state), got "
            f"{type(init).__name__}; to start from given params: lambda seed: (params, {{}})"
        )
    pair = init(seed)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(
            f"{who}: expected init to return (params, state), got "
            f"{type(pair).__name__}; for a network without state, return (params, {{}})"
        )
    check_params(who, pair[0])
    return pair
