"""Checks of the options of optimizers: ranges of numbers, and arguments that are transformations.

Each check takes the name of the function that the user called. The checks of numbers take the
options as keyword arguments, under the names that the user wrote. A traced number (for example a
number under `vmap`, or an option that the optimizer keeps in its state) is not checked.
"""

from typing import Any

from optax import GradientTransformationExtraArgs, with_extra_args_support

from fdl.checks import OptionError, check_number, described, is_concrete_number

KEPT = "it is the fraction of the old value that each step keeps"


def check_fractions(who: str, **values: Any) -> None:
    """Raises unless every value is in [0, 1): a mean of squares with decay 1 would stay 0."""
    for name, value in values.items():
        check_number(who, name, value, "[0, 1)", KEPT)


def check_momenta(who: str, **values: Any) -> None:
    """Raises unless every value is in (-1, 1): a mean of gradients with decay 1 would stay 0.

    A negative momentum helps in games of two players (Gidel et al. 2019, arXiv 1807.04740).
    """
    for name, value in values.items():
        check_number(who, name, value, "(-1, 1)", KEPT)


def check_traces(who: str, **values: Any) -> None:
    """Raises unless every value is in [-1, 1]: the accumulated gradient must not explode."""
    remedy = "outside this range, the accumulated gradient can grow exponentially"
    for name, value in values.items():
        check_number(who, name, value, "[-1, 1]", remedy)


def check_least(who: str, least: float = 0, **values: Any) -> None:
    """Raises unless every value is finite and at least `least`."""
    for name, value in values.items():
        remedy = "a smaller value can flip the sign of a step or give NaN"
        check_number(who, name, value, f"[{least}, inf)", remedy)


def check_whole(who: str, remedy: str, span: str = "[1, inf)", **values: Any) -> None:
    """Raises unless every value is a whole number in `span`, an interval as for `check_number`."""
    for name, value in values.items():
        check_number(who, name, value, span, remedy)
        if is_concrete_number(value) and value % 1 > 0:
            expected = f"{name} >= {span[1]}, a whole number"
            raise OptionError(who, f"expected {expected}, got {value}; {remedy}")


def check_positive(who: str, remedy: str, **values: Any) -> None:
    """Raises unless every value is finite and above 0."""
    for name, value in values.items():
        check_number(who, name, value, "(0, inf)", remedy)


def check_rates(who: str, **values: Any) -> None:
    """Raises unless every learning rate is a schedule, or finite and at least 0."""
    _check_strengths(who, "the update is already subtracted; pass a positive rate", values)


def check_decays(who: str, **values: Any) -> None:
    """Raises unless every weight decay is a schedule, or finite and at least 0."""
    _check_strengths(who, "decay pulls weights towards 0; pass a positive strength", values)


def _check_strengths(who: str, remedy: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if not callable(value):
            check_number(who, name, value, "[0, inf)", remedy)


def as_transformation(who: str, value: Any) -> GradientTransformationExtraArgs:
    """Returns a transformation of fdl or optax in a form whose `update` takes extra arguments.

    Raises:
      OptionError: `value` does not have both an init and an update.
    """
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise OptionError(
            who,
            f"expected a transformation, got {described(value)}; pass an optimizer, such as "
            "fdl.sgd(0.1)",
        )
    return with_extra_args_support(value)
