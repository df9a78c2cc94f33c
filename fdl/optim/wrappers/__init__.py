"""Wrappers: clipping, accumulation, averages, partitions of a tree, dtypes, hyper-parameters."""

from fdl.public_names import public as _public

from fdl.optim.wrappers.accumulation import accumulate as accumulate
from fdl.optim.wrappers.averaging import averaged_params as averaged_params
from fdl.optim.wrappers.averaging import ema as ema
from fdl.optim.wrappers.averaging import params_ema as params_ema
from fdl.optim.wrappers.evaluation_params import eval_params as eval_params
from fdl.optim.wrappers.clipping import adaptive_grad_clip as adaptive_grad_clip
from fdl.optim.wrappers.clipping import centralize as centralize
from fdl.optim.wrappers.clipping import clip as clip
from fdl.optim.wrappers.clipping import clip_by_block_rms as clip_by_block_rms
from fdl.optim.wrappers.clipping import clip_by_global_norm as clip_by_global_norm
from fdl.optim.wrappers.clipping import global_norm as global_norm
from fdl.optim.wrappers.non_finite import apply_if_finite as apply_if_finite
from fdl.optim.wrappers.non_finite import skip_not_finite as skip_not_finite
from fdl.optim.wrappers.non_finite import zero_nans as zero_nans
from fdl.optim.wrappers.partitioning import freeze as freeze
from fdl.optim.wrappers.partitioning import partition as partition
from fdl.optim.wrappers.partitioning import set_to_zero as set_to_zero
from fdl.optim.wrappers.loss_scaling import LossScaleState as LossScaleState
from fdl.optim.wrappers.loss_scaling import dynamic_loss_scale as dynamic_loss_scale
from fdl.optim.wrappers.loss_scaling import loss_scale as loss_scale
from fdl.optim.wrappers.precision import MasterWeightsState as MasterWeightsState
from fdl.optim.wrappers.precision import keep_state_in as keep_state_in
from fdl.optim.wrappers.precision import master_weights as master_weights
from fdl.optim.wrappers.injection import inject_hyperparams as inject_hyperparams
from fdl.optim.wrappers.injection import set_hyperparams as set_hyperparams

__all__ = _public()
