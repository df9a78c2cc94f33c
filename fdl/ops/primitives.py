"""The class of JAX's primitives, and primitives that have code of their own on CPU."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import batching, mlir

from fdl.ops.sharding import typed_like

# The public name of this class is `jax.extend.core.Primitive`, but `import jax.extend` imports all
# of Pallas, which takes longer than the import of half of fdl (benchmarks/import_time.py).
Primitive: Any = type(jax.lax.add_p)


def bilinear(
    name: str,
    anywhere: Callable[..., jax.Array],
    on_cpu: Callable[..., jax.Array],
    shape: Callable[..., tuple[int, ...]],
    batch: Callable[..., tuple[jax.Array, int]],
) -> Primitive:
    """A primitive of two operands and one result, without derivatives.

    Args:
      name: its name in a jaxpr.
      anywhere: `(a, b, **options) -> result`, the code for all platforms except CPU.
      on_cpu: the same for CPU.
      shape: `(a, b, **options) -> shape of the result`.
      batch: the rule for `vmap`: `((a, b), batch axes or None, **options) -> (result, its axis)`.
    """

    def plain(a: jax.Array, b: jax.Array, **options: Any) -> jax.Array:
        forms = {"cpu": on_cpu, "default": anywhere}
        given = {platform: functools.partial(form, **options) for platform, form in forms.items()}
        return jax.lax.platform_dependent(a, b, **given)

    @functools.partial(jax.jit, static_argnames="options")
    def computed(a: jax.Array, b: jax.Array, options: tuple[tuple[str, Any], ...]) -> jax.Array:
        return plain(a, b, **dict(options))

    primitive = Primitive(name)
    primitive.def_impl(lambda a, b, **options: computed(a, b, tuple(options.items())))
    primitive.def_abstract_eval(lambda a, b, **options: typed_like(a, shape(a, b, **options)))
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    return primitive
