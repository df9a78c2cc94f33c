"""Metrics: what people read, as the loss is what the optimizer reads.

A metric is a function of single examples, like losses (`accuracy`, `top_k`, and the losses
themselves), which is reported as its mean; or, where it is no mean over examples, a `Metric`: a
state that accumulates, and a value computed from it. Both are used alike. Called with predictions
and targets, they give their value. Called with options, they give themselves with these set:
`top_k(k=3)`, `f1("macro", classes=10)`. The plain name stands for the defaults, wherever there is
one for each option: `supervised(model, loss, accuracy=accuracy, auc=auc, f1=f1("binary"))`.
`mean_of` makes a `Metric` of a function.
"""

from fdl.exports import public as _public
from fdl.metrics.classification import accuracy as accuracy
from fdl.metrics.classification import binary_accuracy as binary_accuracy
from fdl.metrics.classification import confusion as confusion
from fdl.metrics.classification import confusion_matrix as confusion_matrix
from fdl.metrics.classification import f1 as f1
from fdl.metrics.classification import precision as precision
from fdl.metrics.classification import recall as recall
from fdl.metrics.classification import specificity as specificity
from fdl.metrics.classification import top_k as top_k
from fdl.metrics.metric import Metric as Metric
from fdl.metrics.metric import Sum as Sum
from fdl.metrics.metric import mean_of as mean_of
from fdl.metrics.regression import r2 as r2
from fdl.metrics.regression import statistics_of as statistics_of
from fdl.metrics.probability import bits_per_byte as bits_per_byte
from fdl.metrics.probability import calibration_error as calibration_error
from fdl.metrics.probability import perplexity as perplexity
from fdl.metrics.ranking import auc as auc
from fdl.metrics.ranking import average_precision as average_precision
from fdl.metrics.ranking import exact_auc as exact_auc
from fdl.metrics.ranking import exact_average_precision as exact_average_precision
from fdl.metrics.ranking import precision_recall_curve as precision_recall_curve
from fdl.metrics.ranking import roc_curve as roc_curve
from fdl.metrics.ranking import PrecisionRecallCurve as PrecisionRecallCurve
from fdl.metrics.ranking import RocCurve as RocCurve

__all__ = _public()
