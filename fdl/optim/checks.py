"""What optimizers refuse among their options: numbers out of range, and what is no transformation.

Only numbers that can be looked at are: a traced one passes, under `vmap` or as a leaf of the state.
"""

from typing import Any

from optax import GradientTransformationExtraArgs, with_extra_args_support

from fdl.checks import check_number

KEPT = "it is the share of the past that each step keeps"


def check_fractions(who: str, **values: Any) -> None:
    """Raises unless each is in [0, 1): with 1 a mean of squares would keep its zeros for ever."""
    for name, value in values.items():
        check_number(who, name, value, "[0, 1)", KEPT)


def check_momenta(who: str, **values: Any) -> None:
    """Raises unless each is in (-1, 1): 1 would keep the zeros that the mean began with.

    A negative momentum helps two players (Gidel et al. 2019, arXiv 1807.04740).
    """
    for name, value in values.items():
        check_number(who, name, value, "(-1, 1)", KEPT)


def check_least(who: str, least: float = 0, **values: Any) -> None:
    """Raises unless each is finite and at least `least`."""
    for name, value in values.items():
        remedy = "a smaller value can flip the sign of a step or give NaN"
        check_number(who, name, value, f"[{least}, inf)", remedy)


def check_positive(who: str, remedy: str, **values: Any) -> None:
    """Raises unless each is finite and above 0."""
    for name, value in values.items():
        check_number(who, name, value, "(0, inf)", remedy)


def check_strength(who: str, remedy: str, **values: Any) -> None:
    """Raises unless each is a schedule, or finite and at least 0."""
    for name, value in values.items():
        if not callable(value):
            check_number(who, name, value, "[0, inf)", remedy)


def check_rate(who: str, learning_rate: Any) -> None:
    """Raises unless the learning rate is a schedule, or finite and at least 0."""
    remedy = "the update is already subtracted; pass a positive rate"
    check_strength(who, remedy, learning_rate=learning_rate)


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
