"""Finding what went wrong in training: the step at which it happened, and what it looked like."""

from fdl.public_names import public as _public
from fdl.debug.bisection import Found as Found
from fdl.debug.bisection import bisect as bisect
from fdl.debug.predicates import loss_above as loss_above
from fdl.debug.predicates import not_finite as not_finite

__all__ = _public()
