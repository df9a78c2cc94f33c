"""Every layer, loss, activation, initializer and optimizer, once; the laws run over each entry."""

from registry import (
    adapt,
    attention,
    combinators,
    convolutions,
    dropout,
    embed,
    gated,
    models,
    networks,
    norm,
    pooling,
    products,
    recurrent,
    reweight,
    slope,
)
from registry.activations import ACTIVATIONS as ACTIVATIONS
from registry.activations import GATES as GATES
from registry.cases import LayerCase as LayerCase
from registry.initializers import INITIALIZERS as INITIALIZERS
from registry.losses import LOSSES as LOSSES
from registry.networks import masked as masked
from registry.networks import running_mean as running_mean
from registry.optimizers import OPTIMIZERS as OPTIMIZERS
from registry.optimizers import halving as halving
from registry.options import NOT_TRACED as NOT_TRACED
from registry.options import OPTIONS as OPTIONS
from registry.schedules import SCHEDULES as SCHEDULES
from registry.transformations import TRANSFORMATIONS as TRANSFORMATIONS

# A family of layers keeps its entries in a file of its name.
LAYERS: dict[str, LayerCase] = {
    **attention.LAYERS,
    **networks.LAYERS,
    **models.LAYERS,
    **adapt.LAYERS,
    **dropout.LAYERS,
    **embed.LAYERS,
    **gated.LAYERS,
    **slope.LAYERS,
    **norm.LAYERS,
    **reweight.LAYERS,
    **recurrent.LAYERS,
    **products.LAYERS,
    **combinators.LAYERS,
    **convolutions.LAYERS,
    **pooling.LAYERS,
}
