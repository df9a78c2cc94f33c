"""Finding what is wrong: in a setup, at a step of training, in a layer."""

from fdl.public_names import public as _public
from fdl.debug.bisection import Found as Found
from fdl.debug.bisection import bisect as bisect
from fdl.debug.divergence import Divergence as Divergence
from fdl.debug.divergence import find_divergence as find_divergence
from fdl.debug.divergence import trace as trace
from fdl.debug.layer_laws import check_layer as check_layer
from fdl.debug.optimizer_laws import check_optimizer as check_optimizer
from fdl.debug.nonfinite import Nonfinite as Nonfinite
from fdl.debug.nonfinite import find_nonfinite as find_nonfinite
from fdl.debug.predicates import loss_above as loss_above
from fdl.debug.predicates import not_finite as not_finite
from fdl.debug.sanity import Finding as Finding
from fdl.debug.sanity import Report as Report
from fdl.debug.sanity import check as check

__all__ = _public()
