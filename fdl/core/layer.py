"""Layer: a name and two pure functions.

    init(key, x, **inputs)                                       -> (params, state)
    apply(params, state, x, *, key=None, train=False, **inputs)  -> (y, state)

An optimizer updates `params`; a forward pass in training updates `state`. Both are nested dicts
whose leaves are arrays. A layer without parameters has the params `{}`; a layer without state has
the state `{}`. `init` reads only the shapes and dtypes of `x` and `inputs`; it computes no
forward pass.
"""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl import initializers
from fdl.checks import check_array, check_key, described
from fdl.core.inputs import check_inputs
from fdl.ops.rank_promotion import free_ranks
from fdl.paths import PathError, shortened
from fdl.typing import Params, State


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """A value with a name and two pure functions.

    Args:
      name: the layer's name in a network that does not name it by keyword.
      init: `(key, x, **inputs) -> (params, state)`; `x` may be a `jax.ShapeDtypeStruct`.
      apply: `(params, state, x, *, key=None, train=False, **inputs) -> (y, state)`.
      inputs: names of the extra inputs; by default the keyword-only arguments of `apply` except
        `key` and `train`.
      children: the layers inside this one, name -> layer, in order.
      rebuild: a function `children -> Layer` that makes the same layer with the children that are
        passed to it; `capture` and `decode` need it.
      decoding: a function `length -> Layer`, for a layer that looks back at earlier tokens. It
        makes the layer's incremental form, which gets tokens in pieces and whose state is a cache
        for `length` tokens; `decode` needs it.
      required: names of the extra inputs that must be given. If `inputs` is None, they are the
        keyword-only arguments of `apply` that have no default value.

    Example:
      >>> double = Layer("double", lambda key, x: ({}, {}),
      ...                lambda params, state, x, *, key=None, train=False: (2 * x, state))
      >>> double.apply({}, {}, 3.0)
      (6.0, {})
    """

    name: str
    init: Callable[..., tuple[Params, State]]
    apply: Callable[..., tuple[Any, State]]
    inputs: tuple[str, ...] | None = None
    children: Mapping[str, "Layer"] = dataclasses.field(default_factory=dict)
    rebuild: Callable[[Mapping[str, "Layer"]], "Layer"] | None = None
    decoding: Callable[[int], "Layer"] | None = None
    required: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(
                f"layer: expected name to be a string, got {described(self.name)}; pass "
                "'encoder', for example"
            )
        if self.inputs is None:
            named = keyword_only(self.apply, without=("key", "train"))
            object.__setattr__(self, "inputs", tuple(named))
            object.__setattr__(self, "required", tuple(name for name in named if named[name]))
        _check_initializers(self.name, self.init)
        for part, takes in (("init", ("key", "x")), ("apply", ("params", "state", "x"))):
            object.__setattr__(self, part, _entered(self, part, takes))

    def __repr__(self) -> str:
        children = [
            child if child.rpartition("_")[0] == layer.name else f"{child}={layer.name}"
            for child, layer in self.children.items()
        ]
        inside = f" of {shortened(', '.join(children), 150)}" if children else ""
        return f"<Layer {shortened(self.name, 40)}{inside}>"

    def __call__(self, *args: Any, **given: Any) -> Any:
        """Raises a TypeError, because a layer is not a function."""
        raise TypeError(
            f"{self.name}: expected a call of the layer's init or apply, got a call of the "
            f"layer itself{', with ' + described(args[0]) if args else ''}; write params, state = "
            "layer.init(key, x), then y, state = layer.apply(params, state, x); inside a network, "
            "write f.name(x)"
        )


def function(f: Callable[[Any], Any], name: str | None = None) -> Layer:
    """A layer without weights, from a plain function of one array.

    Args:
      f: a pure function `x -> y`.
      name: name of the layer; by default the function's name.

    Returns:
      A layer whose params and state are {}.

    Example:
      >>> function(jnp.tanh).name
      'tanh'
    """
    inner = getattr(f, "func", f)
    layer_name = name or getattr(inner, "__name__", type(inner).__name__).strip("<>")

    def apply(params: Params, state: State, x: Any, *, key: Any = None, train: bool = False) -> Any:
        if isinstance(x, list) and not any(hasattr(each, "shape") for each in x):
            check_array(layer_name, x)
        return f(x), state

    return Layer(layer_name, lambda key, x: ({}, {}), apply)


def stateless(model: Layer) -> Callable[..., Any]:
    """The plain function `(params, x, **inputs) -> y` of a network without state.

    Args:
      model: a layer.

    Returns:
      The model's forward pass with train=False, as a pure function of params and x.

    Raises:
      PathError: raised by the returned function if the model has state; the message names the
        entries of the state.

    Example:
      >>> from fdl.layers import dense
      >>> model = dense(2, w_init=lambda key, shape, dtype: jnp.ones(shape, dtype))
      >>> params, _ = model.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> stateless(model)(params, jnp.ones((1, 3)))
      Array([[3., 3.]], dtype=float32)
    """

    def forward(params: Params, x: Any, **inputs: Any) -> Any:
        _, state = jax.eval_shape(model.init, jax.random.key(0), abstract(x), **inputs)
        if state:
            raise PathError(
                f"expected a network without state, got state at {', '.join(state)}; "
                "use model.apply(params, state, x)",
                "stateless",
            )
        return model.apply(params, {}, x, **inputs)[0]

    return forward


def subkey(key: Any, name: str) -> Any:
    """The random key of a child or a parameter: the parent's key folded with `name`.

    Args:
      key: the parent's key, from `jax.random.key`, or None.
      name: name of the child or the parameter, which is one level of a path.

    Returns:
      A key that depends only on `key` and `name`; None if `key` is None.

    Raises:
      PathError: `key` is not a random key.

    Example:
      >>> bool((subkey(jax.random.key(0), "w") == subkey(jax.random.key(0), "w")))
      True
    """
    check_key(key)
    return None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))


def as_layer(value: Any, who: str = "network") -> Layer:
    """Returns a layer unchanged, and `function(value)` for a function; otherwise raises TypeError.

    Args:
      value: a layer, or a function of one array.
      who: name of the function that the user called, for the message.
    """
    if isinstance(value, Layer):
        return value
    if makes(value, Layer):
        name = getattr(value, "__name__", "layer")
        raise TypeError(
            f"{who}: expected a Layer or a function of one array, got the function {name}, which "
            f"makes a layer; call it: {name}(...)"
        )
    if callable(value):
        return function(value)
    several = isinstance(value, list | tuple)
    got = described(value) if several else shortened(repr(value), 200)
    remedy = "call the layer's factory, for example dense(8), or pass the function itself"
    raise TypeError(
        f"{who}: expected a Layer or a function of one array, got {got}; "
        f"{'unpack it with a star, *layers' if several else remedy}"
    )


def makes(f: Any, kind: type) -> bool:
    """True if f is annotated to return a `kind`: the user passed a factory without calling it."""
    result = getattr(getattr(f, "func", f), "__annotations__", {}).get("return")
    of_kind = isinstance(result, type) and issubclass(result, kind)
    return callable(f) and not isinstance(f, type) and (of_kind or result == kind.__name__)


def check_initializer(layer: str, what: str, value: Any) -> None:
    """Raises unless `value` is an initializer `(key, shape, dtype) -> array`, or None."""
    is_factory = getattr(value, "__annotations__", {}).get("return") == initializers.Initializer
    if value is None or (callable(value) and not is_factory and not isinstance(value, Layer)):
        return
    name = value if isinstance(value, str) and hasattr(initializers, value) else "he_normal"
    remedy = f"call it first: {getattr(value, '__name__', 'normal')}(...)"
    raise TypeError(
        f"{layer}: expected {what} to be an initializer (key, shape, dtype) -> array, got "
        f"{described(value)}; {remedy if is_factory else f'pass fdl.initializers.{name}'}"
    )


def _check_initializers(name: str, init: Callable[..., Any]) -> None:
    """Calls `check_initializer` for each argument `*_init` of the factory that defines `init`."""
    names = getattr(getattr(init, "__code__", None), "co_freevars", ())
    for what, cell in zip(names, getattr(init, "__closure__", None) or (), strict=True):
        if what.endswith("_init"):
            check_initializer(name, what, cell.cell_contents)


def _entered(layer: Layer, what: str, takes: tuple[str, ...]) -> Callable[..., Any]:
    """A layer's init or apply, run inside `free_ranks` after a check of the arguments' names."""
    f, name, inputs = getattr(layer, what), layer.name, layer.inputs or ()
    if hasattr(f, "entered"):  # f is already wrapped: dataclasses.replace copied this layer
        return f
    others = takes if what == "init" else (*takes, "key", "train")

    @functools.wraps(f, updated=())
    def entered(*args: Any, **given: Any) -> Any:
        missing = [argument for argument in takes[len(args) :] if argument not in given]
        if missing or len(args) > len(takes):
            raise TypeError(
                f"{name}: expected {what}({', '.join(takes)}), got {len(args)} arguments by "
                "position; pass {} as the state of a network without state, and pass all other "
                "arguments by name"
            )
        check_inputs(name, inputs, (), {each: 0 for each in given if each not in others})
        if what == "init":
            args, given = jax.tree.map(_canonical, (args, given))
        with free_ranks():
            return f(*args, **given)

    entered.__dict__["entered"] = True
    return entered


def _canonical(x: Any) -> Any:
    """x, or the shape and JAX's dtype of x if x is a NumPy array that JAX would convert."""
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "iuf":
        return x
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    return x if dtype == x.dtype else jax.ShapeDtypeStruct(x.shape, dtype)


def check_training_key(key: Any, layer: str = "") -> None:
    """Raises a PathError unless `key` is a random key. Layers that draw numbers call this first."""
    if key is None:
        raise PathError(
            "expected a random key in training, got none; pass key=jax.random.key(seed), or "
            "train=False",
            layer=layer,
        )
    check_key(key, layer)


def abstract(tree: Any) -> Any:
    """The shapes and dtypes of a pytree of arrays, as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(lambda: jax.tree.map(zeros, tree))


def zeros(x: Any) -> jax.Array:
    """Zeros of the shape and dtype of an array or a `jax.ShapeDtypeStruct`."""
    x = _canonical(x)
    return jnp.zeros(jnp.shape(x), x.dtype if hasattr(x, "dtype") else None)


def keyword_only(
    f: Callable[..., Any], without: tuple[str, ...] = (), *, after: int | None = None
) -> dict[str, bool]:
    """The arguments that a function takes by name: name -> True if it has no default.

    Args:
      f: a function.
      without: names to leave out.
      after: the number of arguments that are passed by position; all arguments after them are
        returned. By default, only the keyword-only arguments (after a `*`) are returned.
    """
    parameters = list(inspect.signature(f).parameters.values())
    late = parameters[after:] if after is not None else []
    return {
        each.name: each.default is each.empty
        for each in parameters
        if each.kind is each.KEYWORD_ONLY
        or (each.kind is each.POSITIONAL_OR_KEYWORD and each in late)
        if each.name not in without
    }


def key_and_train(f: Callable[..., Any], key: Any, train: bool) -> dict[str, Any]:
    """The entries of {"key": key, "train": train} that f takes after its first two arguments."""
    try:
        named = keyword_only(f, after=2)
    except (ValueError, TypeError):  # a builtin without a signature
        return {}
    return {name: value for name, value in (("key", key), ("train", train)) if name in named}
