"""Makes `__all__` of a package from its imports, so that no name is written twice."""

import sys
from types import ModuleType


def public() -> list[str]:
    """The public names of the calling module, in the order of its imports.

    Names from `import *` are included. A submodule is included only if the calling module itself
    imports it by name. When another module imports a submodule of a package, Python also puts it
    among the names of the package; such a submodule is left out.

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
