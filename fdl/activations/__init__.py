"""Activations: functions of one array. The result has the shape of x; gates halve the last axis.

A call with options only, such as `gelu(approximate=False)`, returns the activation with these
options set. Losses and `rotary` can be called in the same way.
"""

from fdl.public_names import public as _public
from fdl.activations.rectifiers import relu as relu
from fdl.activations.rectifiers import relu6 as relu6
from fdl.activations.rectifiers import squared_relu as squared_relu
from fdl.activations.rectifiers import leaky_relu as leaky_relu
from fdl.activations.rectifiers import elu as elu
from fdl.activations.rectifiers import celu as celu
from fdl.activations.rectifiers import selu as selu
from fdl.activations.rectifiers import threshold as threshold
from fdl.activations.rectifiers import hard_shrink as hard_shrink
from fdl.activations.rectifiers import soft_shrink as soft_shrink
from fdl.activations.sigmoids import sigmoid as sigmoid
from fdl.activations.sigmoids import tanh as tanh
from fdl.activations.sigmoids import log_sigmoid as log_sigmoid
from fdl.activations.sigmoids import hard_sigmoid as hard_sigmoid
from fdl.activations.sigmoids import sparse_sigmoid as sparse_sigmoid
from fdl.activations.sigmoids import hard_tanh as hard_tanh
from fdl.activations.sigmoids import soft_sign as soft_sign
from fdl.activations.sigmoids import tanh_shrink as tanh_shrink
from fdl.activations.smooth import gelu as gelu
from fdl.activations.smooth import silu as silu
from fdl.activations.smooth import hard_silu as hard_silu
from fdl.activations.smooth import mish as mish
from fdl.activations.smooth import softplus as softplus
from fdl.activations.smooth import squareplus as squareplus
from fdl.activations.smooth import sparse_plus as sparse_plus
from fdl.activations.smooth import identity as identity
from fdl.activations.softmax_and_gates import softmax as softmax
from fdl.activations.softmax_and_gates import log_softmax as log_softmax
from fdl.activations.softmax_and_gates import softmin as softmin
from fdl.activations.softmax_and_gates import sparsemax as sparsemax
from fdl.activations.softmax_and_gates import standardize as standardize
from fdl.activations.softmax_and_gates import glu as glu
from fdl.activations.softmax_and_gates import swiglu as swiglu
from fdl.activations.softmax_and_gates import geglu as geglu

# Aliases that are common in the field.
swish = silu
hard_swish = hard_silu

__all__ = _public()
