"""Data sets, checks of data, and the order in which examples are drawn for batches."""

from fdl.public_names import public as _public
from fdl.data.datasets import *
from fdl.data.arrays import Split as Split
from fdl.data.arrays import check_data as check_data
from fdl.data.arrays import length as length
from fdl.data.order import stream as stream
from fdl.data.streaming import source as source
from fdl.data.text import characters as characters
from fdl.data.text import scored as scored
from fdl.data.text import windows as windows

__all__ = _public()
