"""JAX's persistent compilation cache, with the settings that make it useful for small networks."""

import os
from pathlib import Path

import jax

from fdl.data.cache_folder import cache_folder

FOLDER = "jax_compilation_cache_dir"
KEEP_ALL = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def use_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keeps compiled programs in a folder, so that the next process does not compile them again.

    A program is taken from the folder only if its code, the versions of JAX and XLA, the compiler's
    options and the device are the same. So results stay the same, bit for bit. Call this function
    once, before the first computation. By default, JAX keeps no programs; if only a folder is set,
    JAX keeps the programs that take a second or more to compile. This function makes JAX keep all
    programs, unless the environment variables JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS and
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES set other limits.

    Args:
      folder: a path; the folder is made if it does not exist. None means the folder that JAX
        already uses, for example from the environment variable JAX_COMPILATION_CACHE_DIR. If JAX
        uses none, None means the first of `$FDL_CACHE/programs` and `$XDG_CACHE_HOME/fdl/programs`
        whose variable is set, else `~/.cache/fdl/programs`.

    Returns:
      The folder. It grows with every new program, and you may delete it at any time. To limit its
      size, set JAX's option `jax_compilation_cache_max_size`, in bytes. JAX then deletes the
      programs that have been unused for longest.

    Raises:
      OSError: the folder cannot be made, or cannot be written to.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as temporary:
      ...     used = use_compilation_cache(temporary)
      ...     jax.config.update("jax_compilation_cache_dir", None)  # off again
      >>> str(used) == temporary
      True

    Source: the persistent compilation cache in JAX's documentation.
    """
    if folder is None:
        folder = jax.config.values[FOLDER] or cache_folder() / "programs"
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"use_compilation_cache: expected a folder that can be made, got '{error.strerror}' "
            f"for {str(path)!r}; pass another folder"
        ) from error
    if not os.access(path, os.W_OK):
        raise OSError(
            "use_compilation_cache: expected a folder that can be written to, got "
            f"{str(path)!r}; pass another folder, or change its permissions"
        )
    jax.config.update(FOLDER, str(path))
    for name, value in KEEP_ALL.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    return path
