"""`__all__` of a package, without writing a name twice."""

import sys
from types import ModuleType


def public() -> list[str]:
    """The names that the calling module imports, those of `import *` too, in their order.

    A submodule is among them only if the module imports it by name: Python binds the others too.

    Example:
      >>> import fdl.data
      >>> "mnist" in fdl.data.__all__, "arrays" in fdl.data.__all__
      (True, False)
    """
    caller = sys._getframe(1)
    return [
        name
        for name, value in caller.f_globals.items()
        if not name.startswith("_")
        if name in caller.f_code.co_names or not isinstance(value, ModuleType)
    ]
