"""Checks of the extra inputs, parameters and keys that a network gets."""

from collections.abc import Collection, Mapping
from typing import Any

from fdl.paths import PathError
from fdl.typing import Params, State


def check_inputs(
    layer: str, inputs: Collection[str], required: Collection[str], given: Mapping[str, Any]
) -> None:
    """Raises a PathError for an unknown extra input and for a missing one.

    Args:
      layer: name of the layer, for the message.
      inputs: names that the layer takes.
      required: names that must be given.
      given: name -> value.
    """
    for each in given:
        if each not in inputs:
            remedy = (
                "leave it out: a network passes it to every layer"
                if each in ("key", "train")
                else "leave it out, or name it in the layer that should read it"
            )
            raise PathError(
                f"expected extra inputs among [{', '.join(inputs)}], got {each!r}, which no layer "
                f"here takes; {remedy}",
                layer=layer,
            )
    for each in required:
        if each not in given:
            raise PathError(
                f"expected the input {each!r}, got none; pass it by name: {each}=...", layer=layer
            )


def check_pass(
    layer: str, names: tuple[str, ...], params: Params, state: State, key: Any, train: bool
) -> None:
    """Raises a PathError for params or state of another network, and for a key outside training.

    Args:
      layer: name of the network, for the message.
      names: names of its children.
      params, state, key, train: arguments of its `apply`.
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
    """The error to raise for a KeyError in a layer: a PathError if params or state lack an entry.

    Args:
      error: the layer's error.
      params, state: arguments of the layer.

    Returns:
      A PathError, or `error` itself if the key is not an entry of params or state.
    """
    known = [*params, *state]
    if not error.args or error.args[0] in known or not isinstance(error.args[0], str):
        return error
    return PathError(
        f"expected {error.args[0]!r} in the layer's params or state, got [{', '.join(known)}]; "
        "pass the params and state that init made for this network"
    )
