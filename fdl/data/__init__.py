"""Data sets, tables, splits, and the order in which examples are drawn for batches."""

from fdl.public_names import public as _public
from fdl.data.datasets import *
from fdl.data.arrays import Split as Split
from fdl.data.arrays import check_data as check_data
from fdl.data.arrays import length as length
from fdl.data.frames import read_table as read_table
from fdl.data.folders import images as images
from fdl.data.folders import texts as texts
from fdl.data.order import stream as stream
from fdl.data.row_groups import table_columns as table_columns
from fdl.data.row_groups import table_source as table_source
from fdl.data.streaming import source as source
from fdl.data.sequences import Padded as Padded
from fdl.data.sequences import buckets as buckets
from fdl.data.sequences import padded as padded
from fdl.data.splitting import balanced_rows as balanced_rows
from fdl.data.splitting import folds as folds
from fdl.data.splitting import split as split
from fdl.data.splitting import weighted_rows as weighted_rows
from fdl.data.tables import Categories as Categories
from fdl.data.tables import Columns as Columns
from fdl.data.tables import Numbers as Numbers
from fdl.data.tables import Table as Table
from fdl.data.tables import table as table
from fdl.data.text import characters as characters
from fdl.data.text import scored as scored
from fdl.data.text import windows as windows

__all__ = _public()
