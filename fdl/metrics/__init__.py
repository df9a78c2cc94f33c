"""Metrics: numbers for people to read. (The loss is a number for the optimizer.)

There are two kinds. A per-example metric (`accuracy`, `top_k`, and every loss) is a function that
returns one value for each example; the mean of these values is reported. A `Metric` (`f1`, `auc`)
is for a value that is not a mean over examples: it accumulates a state over batches, and computes
the value from the state. `mean_of` turns a per-example metric into a `Metric`.

Both kinds are used in the same way. If they are called with predictions and targets, they return a
value. If they are called with options, such as `top_k(k=3)` or `f1("macro", classes=10)`, they
return a metric with these options. If every option has a default, the name without a call is
enough: `supervised(model, loss, accuracy=accuracy, auc=auc, f1=f1("binary"))`.
"""

from fdl.public_names import public as _public
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
