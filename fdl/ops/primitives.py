"""The class of JAX's primitives."""

from typing import Any

import jax

# The public name of this class is `jax.extend.core.Primitive`, but `import jax.extend` imports all
# of Pallas, which takes longer than the import of half of fdl (benchmarks/import_time.py).
Primitive: Any = type(jax.lax.add_p)
