"""Schedules: the learning rate, or another hyper-parameter, as a function of the step."""

from fdl.public_names import public as _public

from fdl.optim.schedules.piecewise import cosine_onecycle_schedule as cosine_onecycle_schedule
from fdl.optim.schedules.piecewise import linear_onecycle_schedule as linear_onecycle_schedule
from fdl.optim.schedules.piecewise import piecewise_constant_schedule as piecewise_constant_schedule
from fdl.optim.schedules.piecewise import (
    piecewise_interpolate_schedule as piecewise_interpolate_schedule,
)
from fdl.optim.schedules.decay import constant_schedule as constant_schedule
from fdl.optim.schedules.decay import cosine_decay_schedule as cosine_decay_schedule
from fdl.optim.schedules.decay import exponential_decay as exponential_decay
from fdl.optim.schedules.decay import inverse_sqrt_schedule as inverse_sqrt_schedule
from fdl.optim.schedules.decay import inverse_time_decay as inverse_time_decay
from fdl.optim.schedules.decay import linear_schedule as linear_schedule
from fdl.optim.schedules.decay import polynomial_schedule as polynomial_schedule
from fdl.optim.schedules.warmup import join_schedules as join_schedules
from fdl.optim.schedules.warmup import sgdr_schedule as sgdr_schedule
from fdl.optim.schedules.warmup import warmup_constant_schedule as warmup_constant_schedule
from fdl.optim.schedules.warmup import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from fdl.optim.schedules.warmup import (
    warmup_exponential_decay_schedule as warmup_exponential_decay_schedule,
)
from fdl.optim.schedules.warmup import warmup_stable_decay_schedule as warmup_stable_decay_schedule

__all__ = _public()
