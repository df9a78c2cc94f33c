"""Checks of the extra inputs, parameters and random keys that are passed to a network."""

from collections.abc import Collection, Mapping
from typing import Any

from fdl.paths import PathError
from fdl.typing import Params, State


def check_inputs(
    layer: str, inputs: Collection[str], required: Collection[str], given: Mapping[str, Any]
) -> None:
    """Raises a PathError if an extra input is unknown, or a required one is missing.

    Args:
      layer: name of the layer, for the message.
      inputs: names of the extra inputs that the layer takes.
      required: names of the extra inputs that must be given.
      given: the extra inputs of the call, name -> value.
    """
    for each in given:
        if each not in inputs:
            problem = "which no layer here takes"
            remedy = "leave it out, or add an argument of this name to the layer that needs it"
            if each in ("key", "train"):
                problem = "which is not an extra input"
                remedy = "leave it out, because a network always passes key and train to its layers"
            raise PathError(
                f"expected extra inputs among [{', '.join(inputs)}], got {each!r}, {problem}; "
                f"{remedy}",
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
    """Raises a PathError if params or state do not fit, or if a key is passed with train=False.

    Args:
      layer: name of the network, for the message.
      names: names of the network's children.
      params, state, key, train: arguments of the network's `apply`.
    """
    for what, tree in {"parameters": params, "state": state}.items():
        for child in tree:
            if child not in names:
                raise PathError(
                    f"expected {what} of {', '.join(names)} only, got an entry for {child!r}; "
                    f"pass the {what} of this network, not of another one",
                    layer=layer,
                )
    if key is not None and not train:
        raise PathError(
            "expected no random key with train=False, got one; leave the key out, or pass "
            "train=True",
            layer=layer,
        )


def missing(error: KeyError, params: Params, state: State) -> Exception:
    """The error to raise in place of a layer's KeyError: a PathError if an entry is missing.

    Args:
      error: the KeyError that the layer raised.
      params, state: the params and state that were passed to the layer.

    Returns:
      `error` itself, if its key is not a string, or names an entry that exists. In these cases, the
      KeyError has a different cause. Otherwise, a PathError that says which entry is missing.
    """
    known = [*params, *state]
    if not error.args or error.args[0] in known or not isinstance(error.args[0], str):
        return error
    return PathError(
        f"expected {error.args[0]!r} in the layer's params or state, got [{', '.join(known)}]; "
        "pass the params and state that init made for this network"
    )
