"""Optimizers. Each file holds a family, and is named after the best known member of the family."""

from fdl.public_names import public as _public

from fdl.optim.optimizers.sgd_family import sgd as sgd
from fdl.optim.optimizers.sgd_family import sign_sgd as sign_sgd
from fdl.optim.optimizers.sgd_family import lion as lion
from fdl.optim.optimizers.sgd_family import rprop as rprop
from fdl.optim.optimizers.adagrad_family import adagrad as adagrad
from fdl.optim.optimizers.adagrad_family import adadelta as adadelta
from fdl.optim.optimizers.adagrad_family import rmsprop as rmsprop
from fdl.optim.optimizers.adam_family import adam as adam
from fdl.optim.optimizers.adam_family import adamw as adamw
from fdl.optim.optimizers.adam_family import nadam as nadam
from fdl.optim.optimizers.adam_family import nadamw as nadamw
from fdl.optim.optimizers.adafactor_family import adafactor as adafactor
from fdl.optim.optimizers.adam_family import adabelief as adabelief
from fdl.optim.optimizers.adam_family import adamax as adamax
from fdl.optim.optimizers.adam_family import amsgrad as amsgrad
from fdl.optim.optimizers.lbfgs_family import lbfgs as lbfgs
from fdl.optim.optimizers.muon_family import muon as muon
from fdl.optim.optimizers.adam_family import radam as radam
from fdl.optim.optimizers.sam_family import sam as sam
from fdl.optim.optimizers.soap_family import soap as soap
from fdl.optim.optimizers.layerwise import lamb as lamb
from fdl.optim.optimizers.layerwise import lars as lars
from fdl.optim.optimizers.lookahead_family import lookahead as lookahead
from fdl.optim.optimizers.schedule_free_family import schedule_free as schedule_free
from fdl.optim.optimizers.schedule_free_family import schedule_free_adamw as schedule_free_adamw
from fdl.optim.optimizers.schedule_free_family import (
    schedule_free_eval_params as schedule_free_eval_params,
)
from fdl.optim.optimizers.schedule_free_family import schedule_free_sgd as schedule_free_sgd

__all__ = _public()
