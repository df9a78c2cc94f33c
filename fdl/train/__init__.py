"""Training: the step, the loop that runs many of them as one program, evaluation, and weights."""

from fdl.exports import public as _public
from fdl.train.compare import Comparison as Comparison
from fdl.train.compare import compare_optimizers as compare_optimizers
from fdl.train.evaluate import evaluate as evaluate
from fdl.train.evaluate import predict as predict
from fdl.train.host import Best as Best
from fdl.train.loop import Result as Result
from fdl.train.loop import fit as fit
from fdl.train.means import Mean as Mean
from fdl.train.means import Seen as Seen
from fdl.train.means import Tally as Tally
from fdl.train.means import weighted_mean as weighted_mean
from fdl.train.objective import Supervised as Supervised
from fdl.train.objective import plain as plain
from fdl.train.objective import supervised as supervised
from fdl.train.step import Run as Run
from fdl.train.step import draw_batch as draw_batch
from fdl.train.step import start as start
from fdl.train.step import train_step as train_step
from fdl.train.step import update_weights as update_weights
from fdl.train.weights import load_weights as load_weights
from fdl.train.weights import save_weights as save_weights

__all__ = _public()
