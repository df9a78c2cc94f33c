"""Data sets: read from a folder, or downloaded once and checked."""

from fdl.public_names import public as _public

from fdl.data.datasets.optical_digits import digits as digits
from fdl.data.datasets.idx import read_idx as read_idx
from fdl.data.datasets.mnist_like import FASHION_CLASSES as FASHION_CLASSES
from fdl.data.datasets.mnist_like import fashion_mnist as fashion_mnist
from fdl.data.datasets.mnist_like import mnist as mnist

__all__ = _public()
