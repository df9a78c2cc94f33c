"""Metrics: what people read, as the loss is what the optimizer reads.

Some are per example, like losses (`accuracy`, `top_k`, and the losses themselves), and reported as
means. What is no mean over examples is a `Metric`: a state that accumulates, and a value computed
from it. `supervised` takes both kinds, and `mean_of` makes the second of the first.
"""

from fdl.exports import public as _public
from fdl.metrics.classes import accuracy as accuracy
from fdl.metrics.classes import confusion as confusion
from fdl.metrics.classes import confusion_matrix as confusion_matrix
from fdl.metrics.classes import f1 as f1
from fdl.metrics.classes import precision as precision
from fdl.metrics.classes import recall as recall
from fdl.metrics.classes import top_k as top_k
from fdl.metrics.metric import Metric as Metric
from fdl.metrics.metric import Sum as Sum
from fdl.metrics.metric import mean_of as mean_of
from fdl.metrics.moments import r2 as r2
from fdl.metrics.moments import statistics_of as statistics_of
from fdl.metrics.probability import bits_per_byte as bits_per_byte
from fdl.metrics.probability import calibration_error as calibration_error
from fdl.metrics.probability import perplexity as perplexity
from fdl.metrics.ranking import auc as auc
from fdl.metrics.ranking import exact_auc as exact_auc

__all__ = _public()
