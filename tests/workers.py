"""How the workers of a run compile: quickly, or as users do where a test asks for equal bits.

XLA's older emitters of loops compile in half the time, and round otherwise. Where this jaxlib has
them, one more worker compiles by the default and runs what is marked `bits`; the other workers run
the rest. Without them, or without workers (`-n 0`), every test compiles by the default.

Programs that take long to compile are kept in pytest's cache folder (`.pytest_cache`), for the
other workers and for the next run; `python -m pytest --cache-clear` empties it.
"""

import os
import shutil
import subprocess
import sys

import jax
from xdist.scheduler import WorkStealingScheduling

ALWAYS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
NOT_FOR_BITS = [
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_llvm_disable_expensive_passes=true",
]
MOST_KEPT = 2 * 2**30  # bytes
WORTH_KEEPING = 0.05  # seconds to compile; to write a quicker program costs more than it saves


def known(flags):
    """Those of the flags that this jaxlib knows; at any other it ends the process."""
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return [flag for flag in flags if not done.returncode or flag not in done.stderr]


def configure(config):
    """Sets XLA_FLAGS for the session, once, in the process that controls it.

    Flags of the user stand as they are.
    """
    if hasattr(config, "workerinput") or "XLA_FLAGS" in os.environ or config.option.collectonly:
        return
    keep_programs(config)
    flags = known(ALWAYS + NOT_FOR_BITS)
    quick = " ".join(flags)
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags if flag in ALWAYS)
    stealing = config.option.tx and config.option.dist == "worksteal"
    if stealing and quick != os.environ["XLA_FLAGS"]:
        config.pluginmanager.register(Apart(config, quick))


def keep_programs(config):
    """Has JAX keep what it compiles, in this process and in those that it starts."""
    if not hasattr(config, "cache"):  # -p no:cacheprovider
        return
    folder = config.cache.mkdir("programs")
    if sum(file.stat().st_size for file in folder.iterdir()) > MOST_KEPT:
        shutil.rmtree(folder)
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": WORTH_KEEPING,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        os.environ.setdefault(name.upper(), str(value))
        jax.config.update(name, value)


class Apart:
    """Plugin and scheduler: one of xdist's for the quick workers, one for the worker of bits."""

    def __init__(self, config, quick):
        workers = [f"{spec}//env:XLA_FLAGS={quick}" for spec in config.option.tx]
        config.option.tx = [*workers, "popen"]

    def pytest_sessionstart(self, session):
        self.session = session

    @staticmethod
    def has_bits(node):
        return "XLA_FLAGS" not in node.gateway.spec.env

    def pytest_configure_node(self, node):
        node.workerinput["bits"] = self.has_bits(node)

    def pytest_xdist_make_scheduler(self, config, log):
        self.parts = {bits: WorkStealingScheduling(config, log) for bits in (False, True)}
        self.parts[True].numnodes = 1
        self.parts[False].numnodes -= 1
        return self

    def part(self, node):
        return self.parts[self.has_bits(node)]

    @property
    def nodes(self):
        return [node for part in self.parts.values() for node in part.nodes]

    @property
    def collection_is_completed(self):
        return all(part.collection_is_completed for part in self.parts.values())

    @property
    def tests_finished(self):
        return all(part.tests_finished for part in self.parts.values())

    @property
    def has_pending(self):
        return any(part.has_pending for part in self.parts.values())

    def add_node(self, node):
        self.part(node).add_node(node)

    def add_node_collection(self, node, collection):
        self.part(node).add_node_collection(node, collection)

    def mark_test_complete(self, node, item_index, duration=None):
        self.part(node).mark_test_complete(node, item_index, duration)

    def mark_test_pending(self, item):
        next(p for p in self.parts.values() if item in p.collection).mark_test_pending(item)

    def remove_pending_tests_from_node(self, node, indices):
        self.part(node).remove_pending_tests_from_node(node, indices)

    def remove_node(self, node):
        return self.part(node).remove_node(node)

    def schedule(self):
        for part in self.parts.values():
            part.schedule()
        # xdist takes what one worker collected for the number of all tests.
        collections = [part.collection or [] for part in self.parts.values()]
        self.session.testscollected = sum(map(len, collections))


def keep_own(config, items):
    """In a worker: the tests of its kind."""
    bits = getattr(config, "workerinput", {}).get("bits")
    if bits is not None:
        items[:] = [item for item in items if bits == bool(item.get_closest_marker("bits"))]
