"""Reads folders from Hugging Face: `config.json`, and the weights by a table of names."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from fdl.activations import gelu, relu, silu
from fdl.checks import OptionError, described
from fdl.core.layer import Layer
from fdl.port.tensor_files import read_json, read_tensors
from fdl.port.torch_weights import from_torch
from fdl.typing import Activation, Params, State

Folder = str | os.PathLike[str]
Table = dict[str | None, Any]

REQUIRED = object()

# Fields of any architecture that do not change what a trained model computes outside training.
_WITHOUT_EFFECT = set(
    """
    _attn_implementation_autoset _name_or_path _num_labels architectures bos_token_id
    chunk_size_feed_forward classifier_dropout dtype eos_token_id finetuning_task
    gradient_checkpointing id2label initializer_range is_encoder_decoder label2id
    max_position_embeddings model_type n_ctx num_labels output_attentions output_hidden_states
    pad_token_id prefix problem_type return_dict sep_token_id summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params torch_dtype transformers_version use_cache do_sample max_length
    attention_dropout attention_probs_dropout_prob attn_pdrop embd_pdrop hidden_dropout_prob
    resid_pdrop
    """.split()  # noqa: SIM905
)


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of `config.json` that a builder knows.

    Args:
      who: the builder, which is also the `model_type`.
      classes: the values of `architectures` that it builds.
      used: field -> its default value; `REQUIRED` if there is none.
      fixed: field -> the values that it may have; the first is the default.
      unused: more fields that do not change the result.
    """

    who: str
    classes: tuple[str, ...]
    used: Mapping[str, Any]
    fixed: Mapping[str, tuple[Any, ...]]
    unused: tuple[str, ...] = ()


def read_config(folder: Folder, fields: Fields) -> dict[str, Any]:
    """The used fields of `config.json`, and `class`, the first of `architectures`."""
    if not isinstance(folder, str | os.PathLike):
        raise OptionError(
            fields.who, f"expected the path of a folder, got {described(folder)}; pass a path"
        )
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{fields.who}: expected config.json in the folder {folder}, got no such file; "
            "download the whole model"
        )
    config = read_json(file)
    if not isinstance(config, dict):
        raise OptionError(
            fields.who, f"expected a dict in {file}, got {described(config)}; download it again"
        )
    _check(fields, file, config)
    found = {name: config.get(name, default) for name, default in fields.used.items()}
    lacking = [name for name, value in found.items() if value is REQUIRED]
    if lacking:
        raise OptionError(
            fields.who, f"expected the field {lacking[0]!r} in {file}, got none; download it again"
        )
    classes = config.get("architectures") or fields.classes
    return found | {"class": classes[0]}


def _check(fields: Fields, file: Path, config: dict[str, Any]) -> None:
    """Raises if a field has a value that the builder does not handle, or is not known."""
    fixed = {"model_type": (fields.who,), "is_encoder_decoder": (False,), **fields.fixed}
    fixed |= {"quantization_config": (None,), "pruned_heads": (None, {})}
    for name, allowed in fixed.items():
        if config.get(name, allowed[0]) not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise refused(fields.who, file, name, config[name], choices)
    classes = config.get("architectures") or fields.classes
    if not isinstance(classes, list | tuple) or classes[0] not in fields.classes:
        raise refused(fields.who, file, "architectures", classes, ", ".join(fields.classes))
    known = {*fields.used, *fixed, *fields.unused, *_WITHOUT_EFFECT}
    for name in config:
        if name not in known:
            raise OptionError(
                fields.who,
                f"expected only fields that it knows in {file}, got {name!r}, which may change the "
                "result; if it does not, remove it from the file",
            )


def refused(who: str, file: Any, name: str, value: Any, choices: str) -> OptionError:
    """The error for a field whose value the builder does not handle."""
    return OptionError(
        who,
        f"expected {name} {choices} in {file}, got {value!r}; build this model from fdl's layers, "
        "and load it with fdl.port.from_torch",
    )


def activation(who: str, folder: Any, name: str, value: Any) -> Activation:
    """The activation that a field of `config.json` names."""
    known: dict[str, Any] = {
        "gelu_new": gelu,
        "gelu_pytorch_tanh": gelu,
        "gelu": gelu(approximate=False),
        "relu": relu,
        "silu": silu,
        "swish": silu,
    }
    if value not in known:
        choices = ", ".join(map(repr, known))
        raise refused(who, Path(folder) / "config.json", name, value, f"as one of {choices}")
    return known[value]


def load(
    folder: Folder, model: Layer, x: jax.ShapeDtypeStruct, names: Callable[..., Table], config: Any
) -> tuple[Params, State]:
    """The params and state of a model from the weights of a folder, in float32."""
    tensors = read_tensors(folder)
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    like = {"params": params, "state": state} if state else params
    found = from_torch(tensors, like, names(config, tensors), cast=True)
    return (found["params"], found["state"]) if state else (found, {})


def rooted(names: Table, root: str, found: Iterable[str]) -> Table:
    """The table with `root` in place of @, or nothing if all names in the file begin otherwise."""
    names_found = list(found)
    if names_found and not any(name.startswith(root) for name in names_found):
        root = ""

    def replaced(value: Any) -> Any:
        return value.replace("@", root) if isinstance(value, str) else [*map(replaced, value)]

    return {path: replaced(value) for path, value in names.items()}
