"""fdl: deep learning as pure functions, in JAX.

Data go through layers to a prediction, a loss scores it, an optimizer turns the score into a step,
and a loop repeats it.
"""

from fdl.exports import public as _public

# The rooms, in the order of the story.
from fdl import data as data
from fdl import layers as layers
from fdl import activations as activations
from fdl import initializers as initializers
from fdl import models as models
from fdl import losses as losses
from fdl import metrics as metrics
from fdl import gradients as gradients
from fdl import optim as optim
from fdl import train as train
from fdl import look as look
from fdl import paths as paths

# What a layer is, and how layers become a network.
from fdl.layer import Layer as Layer
from fdl.layer import function as function
from fdl.layer import stateless as stateless
from fdl.network import chain as chain
from fdl.network import network as network
from fdl.combinators import residual as residual
from fdl.combinators import parallel as parallel
from fdl.repeat import repeat as repeat
from fdl.combinators import remat as remat
from fdl.combinators import frozen as frozen
from fdl.combinators import batch_apply as batch_apply

# Layers.
from fdl.layers import dense as dense
from fdl.layers import einsum_dense as einsum_dense
from fdl.layers import bilinear as bilinear
from fdl.layers import gated as gated
from fdl.layers import feed_forward as feed_forward
from fdl.layers import conv as conv
from fdl.layers import depthwise_conv as depthwise_conv
from fdl.layers import separable_conv as separable_conv
from fdl.layers import conv_transpose as conv_transpose
from fdl.layers import max_pool as max_pool
from fdl.layers import average_pool as average_pool
from fdl.layers import global_max_pool as global_max_pool
from fdl.layers import global_average_pool as global_average_pool
from fdl.layers import adaptive_max_pool as adaptive_max_pool
from fdl.layers import adaptive_average_pool as adaptive_average_pool
from fdl.layers import upsample as upsample
from fdl.layers import pixel_shuffle as pixel_shuffle
from fdl.layers import pixel_unshuffle as pixel_unshuffle
from fdl.layers import batch_norm as batch_norm
from fdl.layers import layer_norm as layer_norm
from fdl.layers import rms_norm as rms_norm
from fdl.layers import group_norm as group_norm
from fdl.layers import instance_norm as instance_norm
from fdl.layers import weight_norm as weight_norm
from fdl.layers import spectral_norm as spectral_norm
from fdl.layers import dropout as dropout
from fdl.layers import spatial_dropout as spatial_dropout
from fdl.layers import alpha_dropout as alpha_dropout
from fdl.layers import gaussian_dropout as gaussian_dropout
from fdl.layers import drop_path as drop_path
from fdl.layers import embedding as embedding
from fdl.layers import learned_positions as learned_positions
from fdl.layers import sinusoidal_positions as sinusoidal_positions
from fdl.layers import rotary as rotary
from fdl.layers import rotary_by_tables as rotary_by_tables
from fdl.layers import attention as attention
from fdl.layers import dot_product_attention as dot_product_attention
from fdl.layers import recurrent as recurrent
from fdl.layers import simple_recurrent as simple_recurrent
from fdl.layers import lstm as lstm
from fdl.layers import gru as gru
from fdl.layers import simple_cell as simple_cell
from fdl.layers import lstm_cell as lstm_cell
from fdl.layers import gru_cell as gru_cell
from fdl.layers import bidirectional as bidirectional
from fdl.layers import rg_lru as rg_lru
from fdl.layers import linear_recurrence as linear_recurrence
from fdl.layers import mixture_of_experts as mixture_of_experts
from fdl.layers import load_balance as load_balance
from fdl.layers import prelu as prelu
from fdl.layers import rrelu as rrelu
from fdl.layers import flatten as flatten
from fdl.layers import rescale as rescale

# Between them.
from fdl.activations import relu as relu
from fdl.activations import leaky_relu as leaky_relu
from fdl.activations import elu as elu
from fdl.activations import gelu as gelu
from fdl.activations import silu as silu
from fdl.activations import softplus as softplus
from fdl.activations import sigmoid as sigmoid
from fdl.activations import tanh as tanh
from fdl.activations import softmax as softmax
from fdl.activations import log_softmax as log_softmax

# Ready networks, and the adaptation of any.
from fdl.models import mlp as mlp
from fdl.models import autoencoder as autoencoder
from fdl.models import lenet as lenet
from fdl.models import resnet as resnet
from fdl.models import lstm_classifier as lstm_classifier
from fdl.models import encoder_block as encoder_block
from fdl.models import decoder_block as decoder_block
from fdl.models import gpt as gpt
from fdl.models import encoder as encoder
from fdl.models import vit as vit
from fdl.adapt import low_rank as low_rank
from fdl.adapt import merge_low_rank as merge_low_rank

# The feedback signal.
from fdl.losses import squared_error as squared_error
from fdl.losses import absolute_error as absolute_error
from fdl.losses import huber as huber
from fdl.losses import log_cosh as log_cosh
from fdl.losses import quantile as quantile
from fdl.losses import softmax_cross_entropy as softmax_cross_entropy
from fdl.losses import soft_cross_entropy as soft_cross_entropy
from fdl.losses import sigmoid_cross_entropy as sigmoid_cross_entropy
from fdl.losses import linear_cross_entropy as linear_cross_entropy
from fdl.losses import z_loss as z_loss
from fdl.losses import softmax_focal as softmax_focal
from fdl.losses import sigmoid_focal as sigmoid_focal
from fdl.losses import hinge as hinge
from fdl.losses import multiclass_hinge as multiclass_hinge
from fdl.losses import kl_divergence as kl_divergence
from fdl.losses import categorical_nll as categorical_nll
from fdl.losses import gaussian_nll as gaussian_nll
from fdl.losses import poisson_nll as poisson_nll
from fdl.losses import cosine_distance as cosine_distance
from fdl.losses import contrastive as contrastive
from fdl.losses import sigmoid_contrastive as sigmoid_contrastive
from fdl.losses import info_nce as info_nce
from fdl.losses import triplet as triplet
from fdl.losses import ctc as ctc
from fdl.losses import dice as dice
from fdl.metrics import accuracy as accuracy
from fdl.metrics import confusion_matrix as confusion_matrix

# Gradients.
from fdl.gradients import derivative as derivative
from fdl.gradients import check_gradient as check_gradient
from fdl.gradients import per_example_gradients as per_example_gradients
from fdl.gradients import hessian_vector_product as hessian_vector_product

# Steps along them.
from fdl.optim import apply_updates as apply_updates
from fdl.optim import sgd as sgd
from fdl.optim import sign_sgd as sign_sgd
from fdl.optim import adagrad as adagrad
from fdl.optim import adadelta as adadelta
from fdl.optim import rmsprop as rmsprop
from fdl.optim import rprop as rprop
from fdl.optim import adam as adam
from fdl.optim import adamw as adamw
from fdl.optim import amsgrad as amsgrad
from fdl.optim import adamax as adamax
from fdl.optim import nadam as nadam
from fdl.optim import nadamw as nadamw
from fdl.optim import radam as radam
from fdl.optim import adabelief as adabelief
from fdl.optim import lion as lion
from fdl.optim import lamb as lamb
from fdl.optim import lars as lars
from fdl.optim import adafactor as adafactor
from fdl.optim import lbfgs as lbfgs
from fdl.optim import sam as sam
from fdl.optim import lookahead as lookahead
from fdl.optim import schedule_free as schedule_free
from fdl.optim import schedule_free_sgd as schedule_free_sgd
from fdl.optim import schedule_free_adamw as schedule_free_adamw
from fdl.optim import muon as muon
from fdl.optim import soap as soap

# Training.
from fdl.train import Run as Run
from fdl.train import start as start
from fdl.train import draw_batch as draw_batch
from fdl.train import train_step as train_step
from fdl.train import update_weights as update_weights
from fdl.train import fit as fit
from fdl.train import evaluate as evaluate
from fdl.train import predict as predict
from fdl.train import plain as plain
from fdl.train import supervised as supervised
from fdl.train import compare_optimizers as compare_optimizers
from fdl.train import load_weights as load_weights
from fdl.train import save_weights as save_weights

# Going on from what was given.
from fdl.decoding import decode as decode
from fdl.decoding import start_decoding as start_decoding
from fdl.generation import generate as generate
from fdl.generation import stream_tokens as stream_tokens

# Looking inside, and naming what is there.
from fdl.look import capture as capture
from fdl.look import depth as depth
from fdl.look import linear_readout as linear_readout
from fdl.look import summary as summary
from fdl.paths import PathError as PathError
from fdl.paths import select as select
from fdl.version import __version__ as __version__

__all__ = _public()
