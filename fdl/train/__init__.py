"""Training: one training step, a compiled loop of many steps, evaluation, and sweeps."""

from fdl.public_names import public as _public
from fdl.train.sweeps import Sweep as Sweep
from fdl.train.sweeps import sweep as sweep
from fdl.train.comparison import compare_optimizers as compare_optimizers
from fdl.train.ensembles import Ensemble as Ensemble
from fdl.train.ensembles import ensemble as ensemble
from fdl.train.evaluation import evaluate as evaluate
from fdl.train.evaluation import predict as predict
from fdl.train.hooks import Observer as Observer
from fdl.train.hooks import early_stop as early_stop
from fdl.train.hooks import keep_best as keep_best
from fdl.train.hooks import log as log
from fdl.train.progress_bar import progress as progress
from fdl.train.hypergradients import outcome as outcome
from fdl.train.result import Result as Result
from fdl.train.loop import fit as fit
from fdl.train.checkpointing import checkpoints as checkpoints
from fdl.train.accumulators import Mean as Mean
from fdl.train.accumulators import Seen as Seen
from fdl.train.accumulators import Tally as Tally
from fdl.train.accumulators import weighted_mean as weighted_mean
from fdl.train.mixing import cutmix as cutmix
from fdl.train.mixing import mixup as mixup
from fdl.train.objective import Supervised as Supervised
from fdl.train.objective import plain as plain
from fdl.train.objective import supervised as supervised
from fdl.train.run import Run as Run
from fdl.train.run import draw_batch as draw_batch
from fdl.train.run import start as start
from fdl.train.step import train_step as train_step
from fdl.train.step import update_weights as update_weights

__all__ = _public()
