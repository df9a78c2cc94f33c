"""Losses: how far a prediction is from its target, for each example.

A loss returns one value for each example. `supervised` takes the weighted mean of these values;
evaluation adds them up over batches. Losses compute and return float32, or float64 if an argument
is float64. A gradient has the dtype of its argument.
"""

from fdl.public_names import public as _public
from fdl.losses.targets import check_targets as check_targets
from fdl.losses.classification import hinge as hinge
from fdl.losses.classification import multiclass_hinge as multiclass_hinge
from fdl.losses.classification import sigmoid_focal as sigmoid_focal
from fdl.losses.classification import softmax_focal as softmax_focal
from fdl.losses.metric_learning import contrastive as contrastive
from fdl.losses.metric_learning import cosine_distance as cosine_distance
from fdl.losses.metric_learning import info_nce as info_nce
from fdl.losses.metric_learning import sigmoid_contrastive as sigmoid_contrastive
from fdl.losses.metric_learning import triplet as triplet
from fdl.losses.cross_entropy import categorical_nll as categorical_nll
from fdl.losses.cross_entropy import kl_divergence as kl_divergence
from fdl.losses.cross_entropy import sigmoid_cross_entropy as sigmoid_cross_entropy
from fdl.losses.cross_entropy import soft_cross_entropy as soft_cross_entropy
from fdl.losses.cross_entropy import softmax_cross_entropy as softmax_cross_entropy
from fdl.losses.regression import absolute_error as absolute_error
from fdl.losses.regression import gaussian_nll as gaussian_nll
from fdl.losses.regression import huber as huber
from fdl.losses.regression import log_cosh as log_cosh
from fdl.losses.regression import poisson_nll as poisson_nll
from fdl.losses.regression import quantile as quantile
from fdl.losses.regression import squared_error as squared_error
from fdl.losses.segmentation import dice as dice
from fdl.losses.sequence import ctc as ctc
from fdl.typing import Loss as Loss
from fdl.losses.vocabulary import linear_cross_entropy as linear_cross_entropy
from fdl.losses.vocabulary import z_loss as z_loss

__all__ = _public()
