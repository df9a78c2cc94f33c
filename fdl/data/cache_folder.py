"""Where fdl keeps files that it can make or download again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$FDL_CACHE`, or `$XDG_CACHE_HOME/fdl`, or `~/.cache/fdl`."""
    if cache := os.environ.get("FDL_CACHE"):
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fdl"
