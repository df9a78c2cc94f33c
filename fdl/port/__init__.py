"""Saves and loads weights, also from and for other libraries, programs, and ONNX files."""

from fdl.public_names import public as _public

from fdl.port.onnx_files import save_onnx as save_onnx
from fdl.port.programs import Program as Program
from fdl.port.programs import load_program as load_program
from fdl.port.programs import save_program as save_program
from fdl.port.training import save_training as save_training
from fdl.port.weights import load_weights as load_weights
from fdl.port.weights import save_weights as save_weights
from fdl.port.tensor_files import read_tensors as read_tensors
from fdl.port.torch_weights import TorchReport as TorchReport
from fdl.port.torch_weights import from_torch as from_torch
from fdl.port.torch_weights import to_torch as to_torch
from fdl.port.torch_weights import torch_names as torch_names
from fdl.port.torch_weights import torch_report as torch_report
from fdl.port.torch_optimizers import from_torch_optimizer as from_torch_optimizer
from fdl.port.torch_optimizers import to_torch_optimizer as to_torch_optimizer
from fdl.port.pytrees import from_pytree as from_pytree
from fdl.port.pytrees import to_pytree as to_pytree
from fdl.port.huggingface import bert as bert
from fdl.port.huggingface import gpt2 as gpt2
from fdl.port.huggingface import llama as llama
from fdl.port.huggingface_images import resnet as resnet
from fdl.port.huggingface_images import vit as vit
from fdl.port.huggingface_names import hugging_face_names as hugging_face_names

__all__ = _public()
