"""What a network refuses: extra inputs, parameters and keys that cannot be meant."""

from collections.abc import Collection, Mapping
from typing import Any

from fdl.paths import PathError
from fdl.typing import Params, State


def check_inputs(
    layer: str, inputs: Collection[str], required: Collection[str], given: Mapping[str, Any]
) -> None:
    """Refuses extra inputs that nobody takes, and the lack of one that is needed.

    Args:
      layer: the layer's name, for the message.
      inputs: which there are.
      required: those that must be given.
      given: what came.

    Raises:
      PathError: says what came.
    """
    for each in given:
        if each not in inputs:
            remedy = (
                "leave it out: every layer in a network is handed its own"
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
    """Refuses params or state of another network, and a random key where nothing is drawn.

    Args:
      layer: the network's name, for the message.
      names: of its children.
      params, state, key, train: what its `apply` was given.

    Raises:
      PathError: says what came.
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
    """
    known = [*params, *state]
    if not error.args or error.args[0] in known or not isinstance(error.args[0], str):
        return error
    return PathError(
        f"expected {error.args[0]!r} in the layer's params or state, got [{', '.join(known)}]; "
        "pass the params and state that init made for this network"
    )
