"""Looking at representations: take them out, measure them, draw them."""

from fdl.exports import public as _public
from fdl.look import draw as draw
from fdl.look.capture import capture as capture
from fdl.look.capture import layer_paths as layer_paths
from fdl.look.compare import Difference as Difference
from fdl.look.compare import difference as difference
from fdl.look.measure import linear_readout as linear_readout
from fdl.look.measure import principal_components as principal_components
from fdl.look.optimizers import best_curves as best_curves
from fdl.look.optimizers import comparison_table as comparison_table
from fdl.look.optimizers import rate_sensitivity as rate_sensitivity
from fdl.look.summary import depth as depth
from fdl.look.summary import summary as summary
from fdl.look.images import image_rows as image_rows
from fdl.look.thresholds import precision_recall_curves as precision_recall_curves
from fdl.look.thresholds import roc_curves as roc_curves

__all__ = _public()
