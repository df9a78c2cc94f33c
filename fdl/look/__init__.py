"""Looking into a network: its layers, the outputs of its layers, and pictures of its training."""

from fdl.public_names import public as _public
from fdl.look import draw as draw
from fdl.look.representations import capture as capture
from fdl.look.representations import layer_paths as layer_paths
from fdl.look.representations import patch as patch
from fdl.look.tree_difference import Difference as Difference
from fdl.look.tree_difference import difference as difference
from fdl.look.representations import linear_readout as linear_readout
from fdl.look.representations import principal_components as principal_components
from fdl.look.optimizer_comparison import best_curves as best_curves
from fdl.look.optimizer_comparison import comparison_table as comparison_table
from fdl.look.optimizer_comparison import rate_sensitivity as rate_sensitivity
from fdl.look.cost import Bill as Bill
from fdl.look.cost import Cost as Cost
from fdl.look.cost import bill as bill
from fdl.look.recording import record as record
from fdl.look.run_page import replay as replay
from fdl.look.structure import depth as depth
from fdl.look.structure import summary as summary
from fdl.look.draw import image_rows as image_rows
from fdl.look.events import tensorboard as tensorboard
from fdl.look.draw import precision_recall_curves as precision_recall_curves
from fdl.look.draw import roc_curves as roc_curves

__all__ = _public()
