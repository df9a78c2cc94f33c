"""Ready-made networks, built only from the public functions of fdl."""

from fdl.public_names import public as _public
from fdl.models.convolutional import lenet as lenet
from fdl.models.convolutional import resnet as resnet
from fdl.models.perceptron import autoencoder as autoencoder
from fdl.models.perceptron import mlp as mlp
from fdl.models.recurrent import lstm_classifier as lstm_classifier
from fdl.models.transformer import decoder_block as decoder_block
from fdl.models.transformer import encoder as encoder
from fdl.models.transformer import encoder_block as encoder_block
from fdl.models.transformer import gpt as gpt
from fdl.models.transformer import vit as vit

__all__ = _public()
