"""What layers and networks refuse: sizes, arrays, extra inputs and parameters that are none."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import jax.numpy as jnp

from fdl.layer import Params, State
from fdl.paths import PathError


def check_count(layer: str, what: str, value: Any, remedy: str) -> int:
    """A size as an int; refuses what is no integer of 1 or more.

    Args:
      layer: the factory's name, for the message.
      what: the argument's name.
      value: what came; integers of NumPy are integers.
      remedy: what to do.

    Raises:
      ValueError: says what came.

    Example:
      >>> check_count("dense", "features", 4.0, "say how many outputs there are")
      Traceback (most recent call last):
      ...
      ValueError: dense: expected features >= 1, an integer, got 4.0; say how many outputs there are
    """
    if not is_count(value):
        raise ValueError(f"{layer}: expected {what} >= 1, an integer, got {value!r}; {remedy}")
    return int(value)


def is_count(value: Any, least: int = 1) -> bool:
    """Whether a value is an integer, Python's or NumPy's, of at least so much; True is none.

    Example:
      >>> is_count(3), is_count(3.0), is_count(True), is_count(0)
      (True, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_array(layer: str, x: Any, what: str = "x") -> None:
    """Refuses a list, a number or None in the place of an array.

    Raises:
      PathError: says what came.

    Example:
      >>> check_array("dense", [1.0, 2.0])
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: dense: expected x as an array, got a list; convert it with jnp.asarray
    """
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        raise PathError(
            f"expected {what} as an array, got a {type(x).__name__}; convert it with jnp.asarray",
            layer=layer,
        )


def check_floating(layer: str, x: Any) -> None:
    """Refuses an x that is not an array of a floating dtype.

    Raises:
      PathError: says what came.

    Example:
      >>> check_floating("dense", jnp.ones((2, 3), jnp.uint8))
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: dense: expected x of a floating dtype, got uint8 [2, 3]; put
        rescale(1 / 255) or the like in front, or convert x with astype
    """
    check_array(layer, x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise PathError(
            f"expected x of a floating dtype, got {x.dtype} {list(x.shape)}; put rescale(1 / 255) "
            "or the like in front, or convert x with astype",
            layer=layer,
        )


def check_inputs(layer: str, inputs: Mapping[str, bool], given: Mapping[str, Any]) -> None:
    """Refuses extra inputs that nobody takes, and the lack of one that is needed.

    Args:
      layer: the network's name, for the message.
      inputs: which there are, and whether each must be given.
      given: what came.

    Raises:
      PathError: says what came.

    Example:
      >>> check_inputs("decoder", {"mask": True}, {})
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: decoder: expected the input 'mask', got none; pass it by name: mask=...
    """
    for each in given:
        if each not in inputs:
            raise PathError(
                f"expected extra inputs among [{', '.join(inputs)}], got {each!r}, which no layer "
                "here takes; leave it out, or name it in the layer that should read it",
                layer=layer,
            )
    for each, required in inputs.items():
        if required and each not in given:
            raise PathError(
                f"expected the input {each!r}, got none; pass it by name: {each}=...", layer=layer
            )


def check_pass(
    layer: str, names: tuple[str, ...], params: Params, state: State, key: Any, train: bool
) -> None:
    """Refuses params or state of another network, and a random key where nothing is drawn.

    Args:
      layer: the network's name, for the message.
      names: of its children.
      params, state, key, train: what its `apply` was given.

    Raises:
      PathError: says what came.

    Example:
      >>> check_pass("chain", ("down",), {"down": {}}, {}, None, False)
    """
    for what, tree in {"parameters": params, "state": state}.items():
        for child in tree:
            if child not in names:
                raise PathError(
                    f"expected {what} of {', '.join(names)}, got also {child!r}; "
                    f"these are the {what} of another network",
                    layer=layer,
                )
    if key is not None and not train:
        raise PathError(
            "expected no random key outside training, got one; nothing is drawn at random with "
            "train=False: leave the key out, or pass train=True",
            layer=layer,
        )


def missing(error: KeyError, params: Params, state: State) -> Exception:
    """What to say of a KeyError that left a layer: if it lacks params or state, that.

    Args:
      error: what the layer raised.
      params, state: what it was given.

    Returns:
      The error to raise; `error` itself where it is about something else.

    Example:
      >>> str(missing(KeyError("b"), {"w": 1}, {}))[:55]
      "expected 'b' in the layer's params or state, got [w]; p"
    """
    known = [*params, *state]
    if not error.args or error.args[0] in known or not isinstance(error.args[0], str):
        return error
    return PathError(
        f"expected {error.args[0]!r} in the layer's params or state, got [{', '.join(known)}]; "
        "pass the params and state that init made for this network"
    )
