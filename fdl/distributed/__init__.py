"""Several devices and hosts: the layout of a run and its cost, and joining a cluster."""

from fdl.public_names import public as _public

from fdl.distributed.layouts import Layout as Layout
from fdl.distributed.layouts import layout as layout
from fdl.distributed.layouts import mesh as mesh
from fdl.distributed.layouts import place as place
from fdl.distributed.presets import data_parallel as data_parallel
from fdl.distributed.presets import expert_parallel as expert_parallel
from fdl.distributed.presets import fsdp as fsdp
from fdl.distributed.presets import tensor_parallel as tensor_parallel
from fdl.distributed.sequence_parallel import ring_attention as ring_attention
from fdl.distributed.hosts import is_first as is_first
from fdl.distributed.hosts import start as start
from fdl.distributed.collectives import Collective as Collective
from fdl.distributed.reports import Report as Report
from fdl.distributed.reports import report as report
from fdl.distributed.cost_model import A100 as A100
from fdl.distributed.cost_model import H100 as H100
from fdl.distributed.cost_model import Choice as Choice
from fdl.distributed.cost_model import Cluster as Cluster
from fdl.distributed.cost_model import recommend as recommend

__all__ = _public()
