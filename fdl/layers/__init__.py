"""Layers, one file per family."""

from fdl.layers.batch_norm import batch_norm as batch_norm
from fdl.layers.dense import dense as dense
from fdl.layers.dropout import dropout as dropout
from fdl.layers.input import flatten as flatten
from fdl.layers.input import rescale as rescale
from fdl.layers.norm import group_norm as group_norm
from fdl.layers.norm import instance_norm as instance_norm
from fdl.layers.norm import layer_norm as layer_norm
from fdl.layers.norm import rms_norm as rms_norm
