"""`__all__` of a package, without writing a name twice."""

import sys


def public() -> list[str]:
    """The names that the module which calls this binds by its imports, in their order.

    They are read off its code, so that submodules, which Python binds unasked, are not among them.

    Example:
      >>> import fdl.data
      >>> fdl.data.__all__[:2]
      ['Split', 'check_data']
    """
    module = sys._getframe(1)
    bound = module.f_globals
    return [name for name in module.f_code.co_names if name in bound and not name.startswith("_")]
