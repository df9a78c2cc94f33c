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
from fdl.look.similarity import cka as cka
from fdl.look.similarity import cka_table as cka_table
from fdl.look.similarity import effective_rank as effective_rank
from fdl.look.similarity import nearest_readout as nearest_readout
from fdl.look.measurements import dead_and_saturated as dead_and_saturated
from fdl.look.measurements import gradient_sizes as gradient_sizes
from fdl.look.measurements import update_sizes as update_sizes
from fdl.look.attribution import attention_rollout as attention_rollout
from fdl.look.attribution import grad_cam as grad_cam
from fdl.look.attribution import integrated_gradients as integrated_gradients
from fdl.look.attribution import saliency as saliency
from fdl.look.attribution import smooth_grad as smooth_grad
from fdl.look.loss_surface import hessian_eigenvalues as hessian_eigenvalues
from fdl.look.loss_surface import loss_line as loss_line
from fdl.look.loss_surface import loss_plane as loss_plane
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
