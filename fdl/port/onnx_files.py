"""Saves a network as an ONNX file, which programs without Python and JAX can run."""

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from fdl import paths
from fdl.checks import check_number, described
from fdl.core import Layer
from fdl.data.arrays import to_jax
from fdl.paths import shortened
from fdl.port.atomic_files import replacing
from fdl.port.golden import layer_outputs
from fdl.port.onnx_operations import in_plain_operations, layer_of

OPSET = 26  # the first version of the operators of ONNX that has BitCast, which norms need


def save_onnx(
    file: str | os.PathLike[str],
    model: Layer,
    params: Any,
    state: Any,
    x: Any,
    *,
    tolerance: float = 1e-5,
) -> None:
    """Saves a network as an ONNX file, for inference with batches of any size.

    The file has one input, `x`, and the output `y` of `model.apply(params, state, x)`; if the
    output is a tree, it has an output `y/path` for each leaf. The file appears only after
    onnxruntime has computed the same outputs from x as the network, for two sizes of the batch.

    The package jax2onnx converts the network. Its version 0.17 needs an older orbax-checkpoint than
    `fdl.checkpoints` does, so install the extra `onnx` in another environment than `checkpoints`.
    It converts all networks of `fdl.models` with JAX 0.10. With JAX 0.12, it cannot convert the
    loop in the attention of `gpt`; the error then names this layer.

    Args:
      file: path of the file. An existing file is replaced.
      model: a network.
      params: its parameters.
      state: its state.
      x: inputs [B, ...] on which the outputs are compared.
      tolerance: the largest relative difference between the outputs, in root mean squares, > 0.

    Raises:
      ImportError: the package jax2onnx or onnxruntime is not installed.
      TypeError: model is not a layer.
      OptionError: tolerance is not a number > 0.
      ValueError: a layer has an operation that cannot be converted, or whose result depends on the
        size of the batch; or onnxruntime computes another output. The message names the first such
        layer.
      OSError: the file cannot be written. An existing file is then unchanged.

    Example:
      >>> import fdl
      >>> model = fdl.mlp([8], 3)
      >>> params, state = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> save_onnx("model.onnx", model, params, state, jnp.ones((2, 4)))  # doctest: +SKIP

    Source: the ONNX operators of version 26, https://onnx.ai/onnx/operators.
    """
    packages = _packages()
    check_number("save_onnx", "tolerance", tolerance, "(0, inf)", "pass 1e-5, for example")
    if not isinstance(model, Layer):
        raise TypeError(
            f"save_onnx: expected model to be a layer, got {described(model)}; pass the network, "
            "then its params and its state, then x"
        )
    params, state = to_jax((params, state), "save_onnx", "the weights")
    x = to_jax(x, "save_onnx", "the inputs")

    def outputs(x: Any) -> dict[str, Any]:
        y = paths.leaves(model.apply(params, state, x)[0])
        return {f"y/{path}" if path else "y": leaf for path, leaf in y.items()}

    converted = _converted(outputs, x, packages)
    for size in (x[:1], jnp.concatenate([x, x])):
        if _apart(converted, outputs, size, tolerance, packages):
            raise _wrong(model, params, state, size, tolerance, packages)
    data = converted.SerializeToString()
    with replacing(file, "save_onnx", len(data)) as out:
        out.write(data)


def _packages() -> tuple[Any, Any]:
    """(jax2onnx, onnxruntime)."""
    try:
        with _jax_unchanged():
            return importlib.import_module("jax2onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            "save_onnx: expected the packages jax2onnx and onnxruntime, which convert a network "
            "and check the result, got none; pip install 'fdl[onnx]'"
        ) from error


def _converted(f: Callable[[Any], dict[str, Any]], x: Any, packages: Any) -> Any:
    """The ONNX model of f for batches of any size.

    Raises:
      ValueError: an operation cannot be converted; the message names its layer.
    """
    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    jax.eval_shape(f, x)  # an error of the network itself stays its error
    try:
        closed = in_plain_operations(f, shape)
    except Exception as error:
        raise ValueError(
            "save_onnx: expected a network that does not depend on the size of the batch, got one "
            f"that needs it ({_reason(error)}); use shapes such as x.shape[0] and -1 in it"
        ) from error
    names = list(jax.eval_shape(f, x))
    try:
        converted = _convert(closed, [shape], packages, names)
        _session(converted, packages)
        return converted
    except Exception as error:
        path, why = _first_unknown(closed, shape, packages) or ("", _reason(error))
        raise ValueError(
            f"{path or 'save_onnx'}: expected operations that ONNX has, got {why}; save the "
            "network with fdl.port.save_program instead, or replace this layer"
        ) from error


def _convert(closed: Any, shapes: list[Any], packages: Any, names: list[str]) -> Any:
    def f(*args: Any) -> tuple[Any, ...]:
        return tuple(jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *args))

    with _jax_unchanged():
        return packages[0].to_onnx(f, shapes, opset=OPSET, output_names=names, input_names=["x"])


def _session(converted: Any, packages: Any) -> Any:
    options = packages[1].SessionOptions()
    options.log_severity_level = 3  # no warnings about constants that are not used
    data = converted.SerializeToString()
    return packages[1].InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _first_unknown(closed: Any, x: Any, packages: Any) -> tuple[str, str] | None:
    """(path, reason) of the first operation that cannot be converted alone; None if all can."""
    constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    for eqn in closed.jaxpr.eqns:
        open_ = [var for var in eqn.invars if not hasattr(var, "val") and var not in constants]
        shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in open_]

        def one(x: Any, *args: Any) -> Any:  # x only tells the converter where the batch is
            given = dict(zip(open_, args, strict=True)) | constants
            inputs = [var.val if hasattr(var, "val") else given[var] for var in eqn.invars]
            return eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))

        try:
            with _jax_unchanged():
                converted = packages[0].to_onnx(one, [x, *shapes], opset=OPSET)
            _session(converted, packages)
        except Exception as error:
            return layer_of(eqn), f"{eqn.primitive.name} ({_reason(error)})"
    return None


def _apart(
    converted: Any, f: Callable[[Any], dict[str, Any]], x: Any, tolerance: float, packages: Any
) -> Any:
    """Where onnxruntime's outputs differ from those of f; None if they do not."""
    from fdl.debug.divergence import find_divergence

    with jax.default_matmul_precision("highest"):
        expected = jax.jit(f)(x)
    arrays = _session(converted, packages).run(list(expected), {"x": np.asarray(x)})
    found = dict(zip(expected, arrays, strict=True))
    pair = [
        {f"forward/{name}": np.asarray(arrays[name]) for name in _in_order(f, x)}
        for arrays in (expected, found)
    ]
    return find_divergence(*pair, tolerance=tolerance)


def _in_order(f: Callable[[Any], dict[str, Any]], x: Any) -> list[str]:
    """The names of the outputs in the order of f; the results of jit have them sorted."""
    names: list[str] = []
    jax.eval_shape(lambda x: names.extend(f(x)), x)
    return names


def _wrong(
    model: Layer, params: Any, state: Any, x: Any, tolerance: float, packages: Any
) -> ValueError:
    """The error of a network whose output differs in onnxruntime, with its first such layer."""

    def all_outputs(x: Any) -> dict[str, Any]:
        return layer_outputs(model, params, state, x)

    def outputs(x: Any) -> dict[str, Any]:
        found = all_outputs(x)
        return {name: found[name] for name in distinct}

    # An array can be the output of several layers, such as a chain and its last layer.
    distinct = _distinct(all_outputs, x)
    apart = _apart(_converted(outputs, x, packages), outputs, x, tolerance, packages)
    path, found = (apart.path, apart.found) if apart else ("", "a difference in the output only")
    return ValueError(
        f"{path or 'save_onnx'}: expected the output of fdl in onnxruntime, got {found}; save the "
        "network with fdl.port.save_program instead, or pass a larger tolerance"
    )


def _distinct(f: Callable[[Any], dict[str, Any]], x: Any) -> list[str]:
    """The names of the outputs of f that are not x, with one name for each array."""
    closed = in_plain_operations(f, jax.ShapeDtypeStruct(x.shape, x.dtype))
    variables = dict(zip(jax.eval_shape(f, x), closed.jaxpr.outvars, strict=True))
    first: dict[int, str] = {id(closed.jaxpr.invars[0]): ""}
    for name in _in_order(f, x):
        first.setdefault(id(variables[name]), name)
    return [name for name in first.values() if name]


@contextlib.contextmanager
def _jax_unchanged() -> Iterator[None]:
    """Undoes what the converter leaves in JAX, such as another `jnp.cumsum`; shows no warnings."""
    modules = (jnp, jax.lax, jax.nn)
    before = [dict(vars(module)) for module in modules]
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for module, names in zip(modules, before, strict=True):
            for name, value in names.items():
                if vars(module).get(name) is not value:
                    setattr(module, name, value)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(lines[0] if lines else type(error).__name__, 300)
