"""Computes the operations and the memory of a training step without running it."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from optax import GradientTransformation, apply_updates, with_extra_args_support

from fdl import paths
from fdl.checks import described
from fdl.core.layer import Layer, abstract, as_layer, key_and_train
from fdl.core.networks import chain
from fdl.data.arrays import as_arrays
from fdl.look.flops import Scopes, inner, operations, scopes_of
from fdl.look.notebook_table import aligned
from fdl.look.representations import layer_paths
from fdl.ops.rank_promotion import free_ranks
from fdl.optim.lifting import check_params
from fdl.paths import PathError
from fdl.train.checks import check_optimizer


class Cost(NamedTuple):
    """The cost of a layer in a training step, including the layers inside it.

    Args:
      parameters: number of parameters.
      forward_flops: floating-point operations of the forward pass.
      backward_flops: floating-point operations of the backward pass.
      kept_bytes: bytes that the forward pass keeps for the backward pass.
    """

    parameters: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    kept_bytes: int = 0


@dataclasses.dataclass(frozen=True, repr=False)
class Bill:
    """The result of `bill`. Its `repr` is a table.

    Args:
      total: the `Cost` of the whole network.
      layers: path -> `Cost`, in the order of `fdl.look.layer_paths`.
      parameter_bytes: bytes of the parameters. Their gradient takes as many bytes again.
      optimizer_bytes: bytes of the optimizer's state.
      lower: traces a training step, and returns it as a `jax.stages.Lowered`.
    """

    total: Cost
    layers: dict[str, Cost]
    parameter_bytes: int
    optimizer_bytes: int
    lower: Callable[[], jax.stages.Lowered] = dataclasses.field(compare=False)

    @functools.cached_property
    def peak_bytes(self) -> int:
        """The peak memory of a training step, in bytes.

        It is arguments + outputs - aliases + temporaries of XLA's report. The first access compiles
        the step for the default device, which can take seconds.
        """
        memory: Any = self.lower().compile().memory_analysis()
        arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return arrays - memory.alias_size_in_bytes + memory.temp_size_in_bytes

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("path", "parameters", "forward FLOPs", "backward FLOPs", "kept bytes")
        ]
        for path, cost in [*self.layers.items(), ("total", self.total)]:
            rows.append((path, *(f"{number:,}" for number in cost)))
        last = (
            f"bytes: parameters {self.parameter_bytes:,}, gradient {self.parameter_bytes:,}, "
            f"optimizer {self.optimizer_bytes:,}, peak {self.peak_bytes:,}"
        )
        return "\n".join([*aligned(rows, left=1), last])


def bill(
    model: Layer | Callable[..., Any],
    x: Any,
    optimizer: GradientTransformation | None = None,
    *,
    params: Any = None,
    **inputs: Any,
) -> Bill:
    """What a training step will cost: operations and memory. Nothing is computed or allocated.

    FLOPs are counted in the traced step:

    - In matrix products and convolutions, a multiplication and its addition count 2 together.
      Multiplications by the zeros of padding count 0.
    - Other arithmetic on floating-point numbers counts 1 for each element of the result. Exceptions
      are sums and other reductions (n - 1 for n numbers), `reduce_window` (k - 1 for each window of
      k numbers), integer powers (their multiplications) and Fourier transforms (5 n log2(n)). There
      is no rule for matrix factorizations: they count 1 for each element, far below their true
      cost. The bits of random numbers count 0.
    - The body of a scan counts once for each iteration, and the body of a `while` loop counts once.
      A `cond` counts as much as its most expensive branch.

    The backward pass computes the gradient with respect to the parameters, but not to x.

    XLA's count (`compiled.cost_analysis()`) is the same except in three cases: XLA counts the body
    of a scan only once, it counts operations on integers (such as random bits in dropout), and it
    does not count what runs in a library outside XLA.

    The peak is the memory that XLA reports for the step, compiled for the default device. It counts
    the parameters, the state and the optimizer state once, because the step overwrites them. (A
    step without an optimizer writes the gradient over the parameters.) It also counts the input,
    the gradient with respect to the output y, and all other arrays of the step. It includes the
    loss only if the model is a function `(params, x) -> loss`. Only the peak needs the compiler,
    which runs when the peak is read or the bill is printed.

    Args:
      model: a layer, a function of one array, or, with `params`, a function `(params, x) -> y`,
        which may be a loss.
      x: the input: an array, a `jax.ShapeDtypeStruct`, or a pytree of these. Only shapes and dtypes
        are used.
      optimizer: an optimizer of fdl or optax. None means a step without an optimizer.
      params: the parameters of a function `(params, x) -> y`, a pytree of arrays or
        `jax.ShapeDtypeStruct`s. Leave it out for a layer and for a function of one array.
      inputs: the model's extra inputs, by name.

    Returns:
      A `Bill`.

    Raises:
      TypeError: model or optimizer has a wrong type, or params is passed together with a layer.
      ValueError: a parameter does not have a floating dtype.
      PathError: the model cannot take x, or its output is not floating.

    Example:
      >>> from fdl.models import mlp
      >>> from fdl.optim import adam
      >>> bill(mlp([5], 3), jax.ShapeDtypeStruct((2, 4), "float32"), adam(0.001))
      path       parameters  forward FLOPs  backward FLOPs  kept bytes
      flatten_0           0              0               0           0
      dense_0            25             90              85           0
      relu_0              0             10               0          50
      dense_1            18             66             123           0
      total              43            166             208          50
      bytes: parameters 172, gradient 172, optimizer 348, peak ...
    """
    if optimizer is not None:
        check_optimizer("bill", optimizer)
    step = _step_of(model, params, x, inputs)
    check_params("bill", step.params)
    with free_ranks():
        return _bill(step, optimizer)


class _Step(NamedTuple):
    """A forward pass in training, `(params, state, x, key) -> (y, state)`, and its arguments.

    Args:
      forward: the function.
      known: the paths of all layers.
      params: the parameters, as `jax.ShapeDtypeStruct`s, like all following fields.
      state: the state of the network.
      x: a pair, the input and a dict of the extra inputs.
      key: the random key.
    """

    forward: Callable[..., Any]
    known: tuple[str, ...]
    params: Any
    state: Any
    x: Any
    key: Any

    def shapes(self) -> tuple[Any, ...]:
        return self.params, self.state, self.x, self.key

    def vjp(self, params: Any, *given: Any) -> Any:
        return jax.vjp(lambda params: self.forward(params, *given), params, has_aux=True)

    def kept(self, *given: Any) -> Any:
        """The arrays that the forward pass keeps for the backward pass."""
        return jax.tree.leaves(self.vjp(*given)[1])

    def passes(self, dy: Any, *given: Any) -> Any:
        """Both passes: (y, state, gradient); dy is the gradient of the loss with respect to y."""
        y, back, state = self.vjp(*given)
        return y, state, back(dy)[0]

    def train(self, optimizer: Any, opt_state: Any, dy: Any, params: Any, *given: Any) -> Any:
        """Both passes and the update: (y, state, params, opt_state).

        Without an optimizer, (y, state, gradient).
        """
        y, state, gradient = self.passes(dy, params, *given)
        if optimizer is None:
            return y, state, gradient

        def value_of(params: Any) -> Any:
            return sum(jnp.sum(each) for each in jax.tree.leaves(self.forward(params, *given)[0]))

        update = with_extra_args_support(optimizer).update
        extra = {"value": value_of(params), "grad": gradient, "value_fn": value_of}
        updates, opt_state = update(gradient, opt_state, params, **extra)
        return y, state, apply_updates(params, updates), opt_state


def _step_of(model: Any, params: Any, x: Any, inputs: dict[str, Any]) -> _Step:
    check_shaped("bill", x)
    x, inputs = abstract(as_arrays((x, inputs)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    if params is not None:
        if isinstance(model, Layer) or not callable(model):
            raise TypeError(
                "bill: expected params only with a function (params, x) -> y, got "
                f"{described(model)}; leave params out for a layer"
            )

        def call(params: Any, state: Any, x: Any, key: Any) -> Any:
            x, inputs = x
            return model(params, x, **inputs, **key_and_train(model, key, True)), state

        return _Step(call, (), abstract(params), {}, (x, inputs), key)
    layer = named(as_layer(model, "bill"))
    params, state = jax.eval_shape(layer.init, key, x, **inputs)

    def forward(params: Any, state: Any, x: Any, key: Any) -> Any:
        x, inputs = x
        return layer.apply(params, state, x, key=key, train=True, **inputs)

    return _Step(forward, tuple(layer_paths(layer)), params, state, (x, inputs), key)


def check_shaped(who: str, x: Any) -> None:
    """Raises a PathError unless all leaves of x are arrays or `jax.ShapeDtypeStruct`s."""
    shaped = ("shape", "__array__")
    if not all(any(hasattr(leaf, name) for name in shaped) for leaf in jax.tree.leaves(x)):
        raise PathError(
            f"expected x as an array or a jax.ShapeDtypeStruct, got {x!r:.60}; pass a shape as "
            "jax.ShapeDtypeStruct(shape, 'float32')",
            layer=who,
        )


def named(layer: Layer) -> Layer:
    """Puts a layer without children into a chain, so that the layer itself has a path."""
    if layer.children:
        return layer
    only: dict[str, Any] = {layer.name: layer}
    return chain(**only)


def _bill(step: _Step, optimizer: GradientTransformation | None) -> Bill:
    y, _ = jax.eval_shape(step.forward, *step.shapes())
    for path, leaf in paths.leaves(y).items():
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise PathError(
                f"expected a model with a floating output, got {leaf.dtype} {list(leaf.shape)}; "
                "leave out the layer that makes integers",
                path,
                layer="bill",
            )
    opt_state = jax.eval_shape(optimizer.init, step.params) if optimizer else ()
    forward = _by_layer(operations(_traced(step.forward, *step.shapes())), step.known)
    both = _by_layer(operations(_traced(step.passes, y, *step.shapes())), step.known)
    memory = _by_layer(_kept(_traced(step.kept, *step.shapes())), step.known)
    sizes = {path: leaf.size for path, leaf in paths.leaves(step.params).items()}

    def cost(path: str) -> Cost:
        inside = f"{path}/" if path else ""
        parameters = sum(size for name, size in sizes.items() if name.startswith(inside))
        backward = both.get(path, 0) - forward.get(path, 0)
        return Cost(parameters, forward.get(path, 0), backward, memory.get(path, 0))

    def lower() -> jax.stages.Lowered:
        params, state, x, key = step.shapes()
        train = lambda *args: step.train(optimizer, *args)  # noqa: E731
        jitted = jax.jit(train, donate_argnums=(0, 2, 3))
        with free_ranks(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            # y stands for the gradient with respect to y, which has the same shape.
            return jitted.lower(opt_state, y, params, state, x, key)

    layers = {path: cost(path) for path in step.known}
    return Bill(cost(""), layers, _bytes(step.params), _bytes(opt_state), lower)


def _traced(f: Callable[..., Any], *shapes: Any) -> Any:
    """The jaxpr of a function, without equations whose results are not used."""
    jaxpr = jax.make_jaxpr(f)(*shapes).jaxpr
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def _by_layer(items: Any, known: tuple[str, ...]) -> dict[str, int]:
    """Returns a dict, path of a layer -> sum of its numbers. The path of the whole network is "".

    `items` are pairs (scopes, number). A number is added to the innermost layer of its scopes and
    to all layers around it. The scope `*` of a scanned `repeat` stands for all blocks; the number
    is divided equally among them.
    """
    among = set(known)

    @functools.cache
    def owners(scopes: Scopes) -> list[str]:
        found = [""]
        for scope in scopes:
            if scope == "*":
                inside = [path for path in known if path.rpartition("/")[0] in found]
            else:
                inside = [f"{path}/{scope}".lstrip("/") for path in found]
                inside = [path for path in inside if path in among]
            found = inside or found
        return found

    sums: dict[str, int] = {}
    for scopes, number in items:
        found = owners(scopes)
        for path in found:
            above = path.split("/")
            for level in range(len(above) if path else 0, -1, -1):
                around = "/".join(above[:level])
                sums[around] = sums.get(around, 0) + number // len(found)
    return sums


def _kept(jaxpr: Any) -> list[tuple[Scopes, int]]:
    """(scopes, bytes) of each result of a jaxpr that is neither an argument nor a constant."""
    found = []
    for var in (var for var in jaxpr.outvars if not hasattr(var, "val")):
        scopes, maker = _maker(jaxpr, var)
        if maker is not None and not all(hasattr(read, "val") for read in maker.invars):
            found.append((scopes, size_of(var.aval)))
    return found


def _maker(jaxpr: Any, var: Any) -> tuple[Scopes, Any]:
    """The scopes of the innermost equation that makes `var`, and this equation.

    For an argument, these are () and None.
    """
    for eqn in jaxpr.eqns:
        if var in eqn.outvars:
            scopes = scopes_of(eqn)
            parts = inner(eqn)
            if len(parts) == 1 and len(parts[0][0].outvars) == len(eqn.outvars):
                result = parts[0][0].outvars[eqn.outvars.index(var)]
                if not hasattr(result, "val"):
                    within, maker = _maker(parts[0][0], result)
                    if maker is not None:
                        return (*scopes, *within), maker
            return scopes, eqn
    return (), None


def size_of(aval: Any) -> int:
    """The bytes of an array, from its shape and dtype; for a random key, the bytes of its data."""
    dtype = getattr(aval, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        aval = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(aval.shape, dtype))
    return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0)


def _bytes(tree: Any) -> int:
    return sum(size_of(leaf) for leaf in jax.tree.leaves(tree))
