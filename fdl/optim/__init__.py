"""Optimizers: hand-written, in optax's protocol; either side's pieces chain with the other's.

Names, arguments, defaults and states are optax's, and where both compute in float32 or float64, so
are the bits. fdl leaves optax in two things, for every optimizer:

- Half precision. Moments, sums and norms are kept and computed in float32 or wider, whatever the
  dtype of parameters and gradients; updates have the dtype of the gradients, rounded once. optax
  takes the parameters' dtype, in which 0.999 may round to 1 and eps to 0. A state that is given in
  narrower dtypes keeps them: `keep_state_in(optimizer, jnp.bfloat16)` makes optax's. Steps too
  small for the parameters' dtype need `master_weights(optimizer)`.
- Squares out of range. Lengths are right for every finite gradient. A second moment of float32 is
  of gradients held within 1.3e19 in size, so that it stays finite; after a larger one the weight
  rests until the moment has decayed, in adam 80,000 steps, and does not rest for ever.

A number that cannot be meant is refused where optax takes it: a decay of 1 or more in a mean, whose
zeros would stay; a negative one in a mean of squares, which would be none; a weight decay below 0,
which would have weights grow without bound; an exponential decay by a factor of 0.
"""

from fdl.exports import public as _public

# Optimizers.
from fdl.optim.sgd import sgd as sgd
from fdl.optim.sgd import sign_sgd as sign_sgd
from fdl.optim.sgd import lion as lion
from fdl.optim.sgd import rprop as rprop
from fdl.optim.rms import adagrad as adagrad
from fdl.optim.rms import adadelta as adadelta
from fdl.optim.rms import rmsprop as rmsprop
from fdl.optim.adam import adam as adam
from fdl.optim.adam import adamw as adamw
from fdl.optim.nadam import nadam as nadam
from fdl.optim.nadam import nadamw as nadamw
from fdl.optim.adafactor import adafactor as adafactor
from fdl.optim.adam_variants import adabelief as adabelief
from fdl.optim.adam_variants import adamax as adamax
from fdl.optim.adam_variants import amsgrad as amsgrad
from fdl.optim.lbfgs import lbfgs as lbfgs
from fdl.optim.muon import muon as muon
from fdl.optim.radam import radam as radam
from fdl.optim.sam import sam as sam
from fdl.optim.soap import soap as soap
from fdl.optim.layerwise import lamb as lamb
from fdl.optim.layerwise import lars as lars
from fdl.optim.lookahead import lookahead as lookahead
from fdl.optim.schedule_free import schedule_free as schedule_free
from fdl.optim.schedule_free import schedule_free_adamw as schedule_free_adamw
from fdl.optim.schedule_free import schedule_free_eval_params as schedule_free_eval_params
from fdl.optim.schedule_free import schedule_free_sgd as schedule_free_sgd

# The pieces that they are made of: directions, rates, and what joins them.
from fdl.optim.adafactor import scale_by_factored_rms as scale_by_factored_rms
from fdl.optim.adafactor import scale_by_param_block_rms as scale_by_param_block_rms
from fdl.optim.adam import scale_by_adam as scale_by_adam
from fdl.optim.adam_variants import scale_by_adamax as scale_by_adamax
from fdl.optim.adam_variants import scale_by_amsgrad as scale_by_amsgrad
from fdl.optim.adam_variants import scale_by_belief as scale_by_belief
from fdl.optim.combine import apply_updates as apply_updates
from fdl.optim.combine import chain as chain
from fdl.optim.layerwise import scale_by_trust_ratio as scale_by_trust_ratio
from fdl.optim.leafwise import leafwise as leafwise
from fdl.optim.mask import masked as masked
from fdl.optim.lbfgs import scale_by_lbfgs as scale_by_lbfgs
from fdl.optim.linesearch import scale_by_zoom_linesearch as scale_by_zoom_linesearch
from fdl.optim.muon import scale_by_muon as scale_by_muon
from fdl.optim.muon import scale_by_shape as scale_by_shape
from fdl.optim.newton_schulz import orthogonalize as orthogonalize
from fdl.optim.radam import scale_by_radam as scale_by_radam
from fdl.optim.rate import add_decayed_weights as add_decayed_weights
from fdl.optim.rate import scale_by_learning_rate as scale_by_learning_rate
from fdl.optim.rms import scale_by_adadelta as scale_by_adadelta
from fdl.optim.rms import scale_by_rms as scale_by_rms
from fdl.optim.rms import scale_by_rss as scale_by_rss
from fdl.optim.rms import scale_by_stddev as scale_by_stddev
from fdl.optim.sam import normalize as normalize
from fdl.optim.soap import ScaleBySoapState as ScaleBySoapState
from fdl.optim.soap import scale_by_soap as scale_by_soap
from fdl.optim.sgd import scale_by_lion as scale_by_lion
from fdl.optim.sgd import scale_by_rprop as scale_by_rprop
from fdl.optim.sgd import scale_by_sign as scale_by_sign
from fdl.optim.sgd import trace as trace

# Schedules: what a rate is at which step.
from fdl.optim.piecewise import cosine_onecycle_schedule as cosine_onecycle_schedule
from fdl.optim.piecewise import linear_onecycle_schedule as linear_onecycle_schedule
from fdl.optim.piecewise import piecewise_constant_schedule as piecewise_constant_schedule
from fdl.optim.piecewise import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from fdl.optim.schedules import constant_schedule as constant_schedule
from fdl.optim.schedules import cosine_decay_schedule as cosine_decay_schedule
from fdl.optim.schedules import exponential_decay as exponential_decay
from fdl.optim.schedules import inverse_sqrt_schedule as inverse_sqrt_schedule
from fdl.optim.schedules import inverse_time_decay as inverse_time_decay
from fdl.optim.schedules import linear_schedule as linear_schedule
from fdl.optim.schedules import polynomial_schedule as polynomial_schedule
from fdl.optim.warmup import join_schedules as join_schedules
from fdl.optim.warmup import sgdr_schedule as sgdr_schedule
from fdl.optim.warmup import warmup_constant_schedule as warmup_constant_schedule
from fdl.optim.warmup import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from fdl.optim.warmup import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule
from fdl.optim.warmup import warmup_stable_decay_schedule as warmup_stable_decay_schedule

# Around an optimizer, and before it: bounds, averages, parts of a tree.
from fdl.optim.accumulate import accumulate as accumulate
from fdl.optim.average import averaged_params as averaged_params
from fdl.optim.average import ema as ema
from fdl.optim.average import params_ema as params_ema
from fdl.optim.evaluation import eval_params as eval_params
from fdl.optim.clipping import adaptive_grad_clip as adaptive_grad_clip
from fdl.optim.clipping import centralize as centralize
from fdl.optim.clipping import clip as clip
from fdl.optim.clipping import clip_by_block_rms as clip_by_block_rms
from fdl.optim.clipping import clip_by_global_norm as clip_by_global_norm
from fdl.optim.clipping import global_norm as global_norm
from fdl.optim.finite import apply_if_finite as apply_if_finite
from fdl.optim.finite import skip_not_finite as skip_not_finite
from fdl.optim.finite import zero_nans as zero_nans
from fdl.optim.partition import freeze as freeze
from fdl.optim.partition import partition as partition
from fdl.optim.partition import set_to_zero as set_to_zero
from fdl.optim.precision import MasterWeightsState as MasterWeightsState
from fdl.optim.precision import keep_state_in as keep_state_in
from fdl.optim.precision import master_weights as master_weights

# Hyper-parameters in the state.
from fdl.optim.hyperparameter import Hyperparameter as Hyperparameter
from fdl.optim.hyperparameter import hyperparameter as hyperparameter
from fdl.optim.hyperparams import inject_hyperparams as inject_hyperparams
from fdl.optim.hyperparams import set_hyperparams as set_hyperparams

__all__ = _public()
