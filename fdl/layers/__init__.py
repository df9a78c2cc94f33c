"""Layers, one file per family."""

from fdl.layers.batch_norm import batch_norm as batch_norm
from fdl.layers.attention import attention as attention
from fdl.layers.dense import dense as dense
from fdl.layers.dropout import alpha_dropout as alpha_dropout
from fdl.layers.dropout import drop_path as drop_path
from fdl.layers.dot_product import dot_product_attention as dot_product_attention
from fdl.layers.dropout import dropout as dropout
from fdl.layers.dropout import gaussian_dropout as gaussian_dropout
from fdl.layers.dropout import spatial_dropout as spatial_dropout
from fdl.layers.embed import embedding as embedding
from fdl.layers.embed import learned_positions as learned_positions
from fdl.layers.embed import sinusoidal_positions as sinusoidal_positions
from fdl.layers.gated import feed_forward as feed_forward
from fdl.layers.gated import gated as gated
from fdl.layers.input import flatten as flatten
from fdl.layers.input import rescale as rescale
from fdl.layers.norm import group_norm as group_norm
from fdl.layers.norm import instance_norm as instance_norm
from fdl.layers.norm import layer_norm as layer_norm
from fdl.layers.norm import rms_norm as rms_norm
from fdl.layers.positions import rotary as rotary
from fdl.layers.conv import conv as conv
from fdl.layers.conv import depthwise_conv as depthwise_conv
from fdl.layers.conv import separable_conv as separable_conv
from fdl.layers.conv_transpose import conv_transpose as conv_transpose
