"""Independent random weights from a normal, truncated normal or uniform distribution.

The weights of `variance_scaling`, and of initializers made from it, such as `he_normal`, have the
variance scale / fan.

A traced value is an argument of a function that JAX transforms, for example with `jax.jit`.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import check_number, check_ordered, in_dtype, is_concrete_number, plain, square_root
from fdl.initializers.fan_counts import drawn_in, fans, need_key, sizes
from fdl.typing import Initializer, Key

# Up to MANY weights are the first values of a draw of FEW, 4 * FEW, ... or MANY values. For more
# weights, exactly as many values are drawn.
FEW, MANY = 4**6, 4**10


def normal(stddev: float = 0.01) -> Initializer:
    """Independent values from a normal distribution of mean 0.

    Args:
      stddev: the standard deviation, finite and >= 0; may be traced.

    Returns:
      An initializer.

    Raises:
      ValueError: stddev is out of range.

    Example:
      >>> normal(0.1)(jax.random.key(0), (3, 2)).shape
      (3, 2)
    """
    check_stddev("normal", stddev)
    return _initializer("normal", _normal, stddev)


def uniform(limit: float = 0.01) -> Initializer:
    """Independent values, uniform between -limit and limit. Their variance is limit^2 / 3.

    Args:
      limit: the bound of the values, finite and > 0; may be traced.

    Returns:
      An initializer.

    Raises:
      ValueError: limit is out of range.

    Example:
      >>> bool(abs(uniform(0.1)(jax.random.key(0), (100,))).max() <= 0.1)
      True
    """
    check_number("uniform", "limit", limit, "(0, inf)", "pass the largest value to draw")
    return _initializer("uniform", _uniform, limit)


def truncated_normal(stddev: float = 0.01, lower: float = -2.0, upper: float = 2.0) -> Initializer:
    """Independent values from a normal distribution of mean 0, truncated to an interval.

    Args:
      stddev: the standard deviation before truncation, finite and >= 0; may be traced. Truncation
        makes the standard deviation of the values smaller: 0.88 * stddev for the default bounds.
      lower: the lower bound, in units of stddev; may be infinite or traced.
      upper: the upper bound, in units of stddev, > lower; may be infinite or traced.

    Returns:
      An initializer.

    Raises:
      ValueError: stddev is out of range, or lower >= upper.

    Example:
      >>> w = truncated_normal(0.1)(jax.random.key(0), (1000,))
      >>> bool(abs(w).max() <= 0.2)
      True

    Source: `jax.nn.initializers.truncated_normal`.
    """
    check_stddev("truncated_normal", stddev)
    bounds = (lower, upper)
    remedy = "pass the smaller number as lower"
    check_ordered("truncated_normal", "numbers lower < upper", bounds, remedy, order=operator.lt)
    return _initializer("truncated_normal", _truncated, stddev, lower, upper)


def variance_scaling(
    scale: float,
    mode: Literal["fan_in", "fan_out", "fan_avg"],
    distribution: Literal["normal", "uniform"],
) -> Initializer:
    """Independent values of mean 0 and variance scale / fan, where `mode` selects the fan.

    Args:
      scale: finite and > 0; may be traced.
      mode: the fan: "fan_in", "fan_out", or "fan_avg", the mean of fan_in and fan_out.
      distribution: "normal" (not truncated) or "uniform".

    Returns:
      An initializer.

    Raises:
      PathError: the shape has fewer than two dimensions, or the key is None.
      ValueError: scale is out of range, or mode or distribution is unknown.

    Example:
      >>> w = variance_scaling(1.0, "fan_in", "normal")(jax.random.key(0), (400, 300))
      >>> round(float(w.var() * 400), 1)
      1.0

    Source: Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852, equations 10 and 14.
    """
    remedy = "pass a number such as 1, for the variance 1 / fan"
    check_number("variance_scaling", "scale", scale, "(0, inf)", remedy)
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise ValueError(
            f"variance_scaling: expected mode fan_in, fan_out or fan_avg, got {mode!r}; use fan_in "
            "to keep the variance of activations, fan_out to keep the variance of gradients"
        )
    if distribution not in ("normal", "uniform"):
        raise ValueError(
            f"variance_scaling: expected distribution normal or uniform, got {distribution!r}; "
            "for a truncated normal, use truncated_normal"
        )

    def init(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        fan_in, fan_out = fans(shape, "variance_scaling")
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        variance = scale / (fan or 1)
        if distribution == "normal":
            return normal(square_root(variance))(key, shape, dtype)
        return uniform(square_root(3 * variance))(key, shape, dtype)

    return init


def _named(name: str, scale: float, mode: str, distribution: str, source: str) -> Initializer:
    """`variance_scaling` with a name and a docstring for `help`."""
    init = variance_scaling(scale, mode, distribution)  # type: ignore[arg-type]
    init.__name__ = init.__qualname__ = name
    init.__doc__ = f"""`variance_scaling({scale}, {mode!r}, {distribution!r})` as an initializer.

        Example:
          >>> w = {name}(jax.random.key(0), (400, 300))
          >>> round(float(w.var() * {400 if mode == "fan_in" else 350}), 1)
          {scale}

        Source: {source}.
        """
    return init


_GLOROT = "Glorot and Bengio 2010, equation 16"
_HE = "He et al. 2015, arXiv 1502.01852, equation 10"
_LECUN = 'LeCun et al. 1998, "Efficient backprop", equation 16'
glorot_normal = _named("glorot_normal", 1.0, "fan_avg", "normal", _GLOROT)
glorot_uniform = _named("glorot_uniform", 1.0, "fan_avg", "uniform", _GLOROT)
he_normal = _named("he_normal", 2.0, "fan_in", "normal", _HE)
he_uniform = _named("he_uniform", 2.0, "fan_in", "uniform", _HE)
lecun_normal = _named("lecun_normal", 1.0, "fan_in", "normal", _LECUN)
lecun_uniform = _named("lecun_uniform", 1.0, "fan_in", "uniform", _LECUN)


def check_stddev(who: str, stddev: Any) -> None:
    """Raises an error unless stddev is finite and >= 0."""
    check_number(who, "stddev", stddev, "[0, inf)", "pass a standard deviation such as 0.01")


def _initializer(
    who: str, draw: Callable[..., jax.Array], scale: Any, *options: Any
) -> Initializer:
    """An initializer whose values are those of `draw(key, shape, dtype, *options)`, times scale.

    It draws in 32 bits or more, then converts the values to the dtype.
    """
    scale, draw = plain(scale), program(draw, *options)
    numbers = all(map(is_concrete_number, (scale, *options)))

    def init(key: Key | None, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        exact, key = drawn_in(dtype, who), need_key(key, who)
        given = key, sizes(shape, who), exact
        if numbers and _independent(key) and math.prod(given[1]) <= MANY:
            first = _first_of_more(draw, *given)
            if first is not None:
                return jax.device_put((np.asarray(scale, exact) * first).astype(dtype))
        # Without the barrier, the compiler would join the scale with a factor of the draw, and
        # would round in another way than the code above.
        values = jax.lax.optimization_barrier(draw(*given))
        return (in_dtype(scale, exact) * values).astype(dtype)

    return init


def _independent(key: Key) -> bool:
    """True if the key is known, and each value drawn with it depends only on its own position."""
    config: Any = jax.config  # in some versions of JAX, its types name no settings
    if isinstance(key, jax.core.Tracer) or not config.jax_threefry_partitionable:
        return False
    return str(jax.random.key_impl(key)) == "threefry2x32"


def _first_of_more(
    draw: Callable[..., jax.Array], key: Key, shape: tuple[int, ...], dtype: Any
) -> np.ndarray | None:
    """`draw(key, shape, dtype)`, as the first values of a longer draw of a common size.

    None inside a traced function, where a draw has no known values, even with a known key.

    JAX compiles a program for each size. Compiling takes longer than drawing, and could be half of
    the time to start training a small network. With few sizes, the weights of most networks need
    one to three programs.
    """
    size, enough = math.prod(shape), FEW
    while enough < size:
        enough *= 4
    values = draw(key, (enough,), dtype)
    if isinstance(values, jax.core.Tracer):
        return None
    return np.asarray(values)[:size].reshape(shape)


def program(draw: Callable[..., jax.Array], *options: Any) -> Callable[..., jax.Array]:
    """The function `(key, shape, dtype) -> draw(key, shape, dtype, *options)`.

    `draw` is a compiled function. Options that are not traced become its static arguments, so that
    XLA rounds in the same way whether or not the call is inside a larger compiled function. Traced
    options cannot be static; for them, the uncompiled function is called.
    """
    if all(map(is_concrete_number, options)):
        numbers = tuple(map(float, options))
        return lambda *args: draw(*args, *numbers)
    eager = inspect.unwrap(draw)
    return lambda *args: eager(*args, *(in_dtype(option, args[2]) for option in options))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(key, shape, dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _uniform(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -1, 1)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _truncated(key: Key, shape: tuple[int, ...], dtype: Any, lower: Any, upper: Any) -> jax.Array:
    return jax.random.truncated_normal(key, lower, upper, shape, dtype)
