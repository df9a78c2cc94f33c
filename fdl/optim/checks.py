"""What optimizers refuse among their options: numbers out of range, and what is no transformation.

Only numbers that can be looked at are: a traced one passes, under `vmap` or as a leaf of the state.
"""

import math
from collections.abc import Callable
from typing import Any

from optax import GradientTransformationExtraArgs, with_extra_args_support

from fdl.checks import check_number, is_number, known


def check_fractions(who: str, **values: Any) -> None:
    """Refuses decays outside [0, 1): with 1 a mean of squares learns nothing, below 0 it is none.

    Raises:
      ValueError: names the argument.
    """
    for name, value in values.items():
        check_number(
            who,
            f"{name} in [0, 1)",
            value,
            lambda value: 0 <= value < 1,
            "it is the share of the past that each step keeps",
        )


def check_momenta(who: str, **values: Any) -> None:
    """Refuses decays of a mean of gradients outside (-1, 1).

    A negative one turns against the last step, as two players may need it (Gidel et al. 2019, arXiv
    1807.04740); 1 would keep the zeros that the mean began with.

    Raises:
      ValueError: names the argument.
    """
    for name, value in values.items():
        check_number(
            who,
            f"{name} in (-1, 1)",
            value,
            lambda value: -1 < value < 1,
            "it is the share of the past that each step keeps",
        )


def check_least(who: str, least: float = 0, **values: Any) -> None:
    """Refuses numbers below a least one, infinity and NaN.

    Raises:
      ValueError: names the argument.
    """
    for name, value in values.items():
        check_number(
            who,
            f"a finite {name} >= {least}",
            value,
            lambda value: least <= value < math.inf,
            "with others steps turn around, or into NaN",
        )


def check_positive(who: str, remedy: str, **values: Any) -> None:
    """Refuses 0, what is below, infinity and NaN.

    Raises:
      ValueError: names the argument.
    """
    for name, value in values.items():
        check_number(who, f"a finite {name} > 0", value, lambda value: 0 < value < math.inf, remedy)


def check_pair(
    who: str, expected: str, pair: tuple[Any, Any], fits: Callable[..., Any], remedy: str
) -> None:
    """Refuses two numbers that do not fit together.

    Raises:
      ValueError: says both.
    """
    bad = all(map(known, pair)) and not fits(*pair)
    if bad or not all(map(is_number, pair)):
        raise ValueError(f"{who}: expected {expected}, got {pair[0]!r} and {pair[1]!r}; {remedy}")


def check_strength(name: str, what: str, value: Any, remedy: str) -> None:
    """Refuses a number that is negative or not finite, and what is neither a number nor a schedule.

    Raises:
      ValueError: names the argument.
    """
    if not callable(value):
        check_number(
            name, f"a finite {what} >= 0", value, lambda value: 0 <= value < math.inf, remedy
        )


def as_transformation(who: str, value: Any) -> GradientTransformationExtraArgs:
    """A transformation whose update takes more arguments, fdl's or optax's.

    Raises:
      ValueError: what is none.
    """
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise ValueError(
            f"{who}: expected a transformation, got {value!r}; pass what a factory such as "
            "sgd(0.1) gives"
        )
    return with_extra_args_support(value)
