"""The version of fdl, in a separate module, so that a build of the package imports nothing else."""

__version__ = "0.1.0"
