"""Initializers: functions that return the initial values of weights.

An initializer is a function `(key, shape, dtype) -> array`. For weights `[*receptive_field, in,
out]`, fan_in = in * prod(receptive_field) and fan_out = out * prod(receptive_field). In
convolutions with strides or groups, the fans are smaller, because an output or an input then uses
only some of the weights.
"""

from fdl.public_names import public as _public
from fdl.typing import Initializer as Initializer
from fdl.initializers.fan_counts import fans as fans
from fdl.initializers.distributions import glorot_normal as glorot_normal
from fdl.initializers.distributions import glorot_uniform as glorot_uniform
from fdl.initializers.distributions import he_normal as he_normal
from fdl.initializers.distributions import he_uniform as he_uniform
from fdl.initializers.distributions import lecun_normal as lecun_normal
from fdl.initializers.distributions import lecun_uniform as lecun_uniform
from fdl.initializers.distributions import normal as normal
from fdl.initializers.distributions import truncated_normal as truncated_normal
from fdl.initializers.distributions import uniform as uniform
from fdl.initializers.distributions import variance_scaling as variance_scaling
from fdl.initializers.structured import constant as constant
from fdl.initializers.structured import delta_orthogonal as delta_orthogonal
from fdl.initializers.structured import dirac as dirac
from fdl.initializers.structured import identity as identity
from fdl.initializers.structured import ones as ones
from fdl.initializers.structured import orthogonal as orthogonal
from fdl.initializers.structured import scaled as scaled
from fdl.initializers.structured import sparse as sparse
from fdl.initializers.structured import zeros as zeros

# Aliases that are common in the field.
xavier_normal, xavier_uniform = glorot_normal, glorot_uniform
kaiming_normal, kaiming_uniform = he_normal, he_uniform

__all__ = _public()
