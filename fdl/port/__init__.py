"""Saves weights to safetensors files and loads them."""

from fdl.public_names import public as _public

from fdl.port.weights import load_weights as load_weights
from fdl.port.weights import save_weights as save_weights

__all__ = _public()
