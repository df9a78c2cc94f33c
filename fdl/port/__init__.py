"""Saves weights to safetensors files and loads them, also from and for torch and Hugging Face."""

from fdl.public_names import public as _public

from fdl.port.weights import load_weights as load_weights
from fdl.port.weights import save_weights as save_weights
from fdl.port.tensor_files import read_tensors as read_tensors
from fdl.port.torch_weights import TorchReport as TorchReport
from fdl.port.torch_weights import from_torch as from_torch
from fdl.port.torch_weights import to_torch as to_torch
from fdl.port.torch_weights import torch_names as torch_names
from fdl.port.torch_weights import torch_report as torch_report

__all__ = _public()
