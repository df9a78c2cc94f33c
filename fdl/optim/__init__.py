"""Optimizers in optax's protocol: transformations of fdl and of optax can be chained.

Names, arguments, defaults and states are the same as in optax. In float32 and float64, the updates
are also the same, bit for bit. If a docstring names no other difference, the results differ
from optax only in these two cases:

- Half precision. Moments, sums and norms are kept and computed in float32 or wider, even if
  parameters and gradients are narrower. Updates are rounded once, to the dtype of the gradients.
  optax computes in the parameters' dtype, where 0.999 can round to 1 and eps to 0. If the state
  passed to `update` has narrower dtypes, the new state has these dtypes too. For bfloat16
  parameters, `keep_state_in(optimizer, jnp.bfloat16)` makes a state with the dtypes that optax
  would use. If the steps are so small that rounding to the parameters' dtype removes them, use
  `master_weights(optimizer)`.
- Squares out of range. Norms are correct for every finite gradient. Where a second moment is
  float32, the absolute value of each gradient element is limited to 1.3e19, so that the moment
  stays finite. After such a gradient, the weight hardly moves until the moment has decayed. This
  takes about 80,000 steps in `adam`. It takes two million steps in `adafactor`, where the decay
  approaches 1. In `adagrad` and `amsgrad`, the moment never falls.

fdl raises an error for these values, which optax accepts: a decay of 1 or more in a mean (the mean
would always stay 0); a negative decay in a mean of squares (the mean could become negative); a
negative weight decay (weights would grow without bound); decay_rate=0 in `exponential_decay`.
"""

from fdl.public_names import public as _public

# All optimizers, schedules and wrappers.
from fdl.optim.optimizers import *
from fdl.optim.schedules import *
from fdl.optim.wrappers import *

# Building blocks of optimizers: directions, the learning rate, and functions that combine them.
from fdl.optim.optimizers.adafactor_family import scale_by_factored_rms as scale_by_factored_rms
from fdl.optim.optimizers.adafactor_family import (
    scale_by_param_block_rms as scale_by_param_block_rms,
)
from fdl.optim.optimizers.adagrad_family import scale_by_adadelta as scale_by_adadelta
from fdl.optim.optimizers.adagrad_family import scale_by_rms as scale_by_rms
from fdl.optim.optimizers.adagrad_family import scale_by_rss as scale_by_rss
from fdl.optim.optimizers.adagrad_family import scale_by_stddev as scale_by_stddev
from fdl.optim.optimizers.adam_family import scale_by_adam as scale_by_adam
from fdl.optim.optimizers.adam_family import scale_by_adamax as scale_by_adamax
from fdl.optim.optimizers.adam_family import scale_by_amsgrad as scale_by_amsgrad
from fdl.optim.optimizers.adam_family import scale_by_belief as scale_by_belief
from fdl.optim.optimizers.adam_family import scale_by_radam as scale_by_radam
from fdl.optim.optimizers.layerwise import scale_by_trust_ratio as scale_by_trust_ratio
from fdl.optim.optimizers.lbfgs_family import scale_by_lbfgs as scale_by_lbfgs
from fdl.optim.optimizers.line_search import scale_by_zoom_linesearch as scale_by_zoom_linesearch
from fdl.optim.optimizers.muon_family import scale_by_muon as scale_by_muon
from fdl.optim.optimizers.muon_family import scale_by_shape as scale_by_shape
from fdl.optim.optimizers.sam_family import normalize as normalize
from fdl.optim.optimizers.sgd_family import scale_by_lion as scale_by_lion
from fdl.optim.optimizers.sgd_family import scale_by_rprop as scale_by_rprop
from fdl.optim.optimizers.sgd_family import scale_by_sign as scale_by_sign
from fdl.optim.optimizers.sgd_family import trace as trace
from fdl.optim.optimizers.soap_family import ScaleBySoapState as ScaleBySoapState
from fdl.optim.optimizers.soap_family import scale_by_soap as scale_by_soap
from fdl.ops.newton_schulz import orthogonalize as orthogonalize
from fdl.optim.chaining import apply_updates as apply_updates
from fdl.optim.chaining import chain as chain
from fdl.optim.description import rate_of as rate_of
from fdl.optim.learning_rate import add_decayed_weights as add_decayed_weights
from fdl.optim.learning_rate import scale_by_learning_rate as scale_by_learning_rate
from fdl.optim.lifting import leafwise as leafwise
from fdl.optim.masking import masked as masked

# Hyper-parameters that are kept in the state of an optimizer.
from fdl.ops.double_float import Hyperparameter as Hyperparameter
from fdl.ops.double_float import hyperparameter as hyperparameter

__all__ = _public()
