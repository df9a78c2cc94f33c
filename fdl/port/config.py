"""Reads folders from Hugging Face: `config.json`, and the weights by a table of names."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from fdl.activations import gelu, relu, silu
from fdl.checks import OptionError, described, is_count, is_number
from fdl.core.layer import Layer
from fdl.paths import shortened
from fdl.port.tensor_files import read_json, read_tensors
from fdl.port.torch_weights import from_torch
from fdl.typing import Activation, Params, State

Folder = str | os.PathLike[str]
Table = dict[str | None, Any]

_REQUIRED = object()
_ELSEWHERE = "build this model from fdl's layers, and load it with fdl.port.from_torch"


@dataclasses.dataclass(frozen=True)
class Field:
    """The values that a field of `config.json` may have.

    Args:
      expected: the values in words, for the error message.
      fits: True for such a value.
      default: the value if the file lacks the field, which may also stand in the file; if there is
        none, the field is required.
      remedy: the end of the error message.
    """

    expected: str
    fits: Callable[[Any], bool]
    default: Any = _REQUIRED
    remedy: str = "correct this field, or download the file again"

    def by_default(self, default: Any) -> "Field":
        """The same field, with a default."""
        return dataclasses.replace(self, default=default)


def one_of(*values: Any) -> Field:
    """A field with a few possible values, of which the first is the default."""
    text = " or ".join(map(repr, values))
    return Field(text, lambda value: value in values, values[0], _ELSEWHERE)


ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": gelu,
    "gelu_pytorch_tanh": gelu,
    "gelu": gelu(approximate=False),
    "relu": relu,
    "silu": silu,
    "swish": silu,
}
COUNT = Field("as an integer in [1, 2**31)", lambda value: is_count(value) and value < 2**31)
TRANSFORMER = dict.fromkeys(
    ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), COUNT
)
POSITIVE = Field("as a number in (0, 1e38)", lambda value: is_number(value) and 0 < value < 1e38)
FLAG = Field("as true or false", lambda value: isinstance(value, bool))
COUNTS = Field(
    "as a list of integers in [1, 2**31)",
    lambda value: isinstance(value, list) and value != [] and all(map(COUNT.fits, value)),
)
ACTIVATION = Field(
    f"as one of {', '.join(map(repr, ACTIVATIONS))}",
    lambda value: isinstance(value, str) and value in ACTIVATIONS,
    remedy=_ELSEWHERE,
)

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
      used: name -> the values that the field may have.
      unused: the names of more fields that do not change the result.
    """

    who: str
    classes: tuple[str, ...]
    used: Mapping[str, Field]
    unused: tuple[str, ...] = ()


def read_config(folder: Folder, fields: Fields) -> dict[str, Any]:
    """The used fields of `config.json`; `class`, the first of `architectures`; and `file`."""
    file, config = open_config(fields.who, folder)
    used = {"model_type": one_of(fields.who), "is_encoder_decoder": one_of(False)}
    used |= {"quantization_config": one_of(None), "pruned_heads": one_of(None, {}), **fields.used}
    found = checked(fields.who, file, config, used)
    classes = config.get("architectures")
    classes = fields.classes if classes in (None, []) else classes
    if not isinstance(classes, list | tuple) or classes[0] not in fields.classes:
        raise refused(fields.who, file, "architectures", classes, ", ".join(fields.classes))
    for name in config:
        if name not in {*used, *fields.unused, *_WITHOUT_EFFECT}:
            raise OptionError(
                fields.who,
                f"expected only fields that it knows in {file}, got {name!r}, which may change the "
                "result; if it does not, remove it from the file",
            )
    return found | {"class": classes[0], "file": file}


def open_config(who: str, folder: Folder) -> tuple[Path, dict[str, Any]]:
    """The path of `config.json` in a folder, and what it contains."""
    if not isinstance(folder, str | os.PathLike):
        raise OptionError(
            who, f"expected the path of a folder, got {described(folder)}; pass a path"
        )
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{who}: expected config.json in the folder {folder}, got no such file; "
            "download the whole model"
        )
    config = read_json(file)
    if not isinstance(config, dict):
        raise OptionError(
            who, f"expected a dict in {file}, got {described(config)}; download it again"
        )
    return file, config


def checked(who: str, file: Path, given: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The values of the fields, which may be their defaults; raises if a value does not fit."""
    found = {name: given.get(name, field.default) for name, field in fields.items()}
    for name, value in found.items():
        if value is _REQUIRED:
            raise OptionError(
                who, f"expected the field {name!r} in {file}, got none; download it again"
            )
        field = fields[name]
        if not field.fits(value) and not (value is None and field.default is None):
            raise refused(who, file, name, value, field.expected, field.remedy)
    return found


def refused(
    who: str, file: Path, name: str, value: Any, expected: str, remedy: str = _ELSEWHERE
) -> OptionError:
    """The error for a field whose value the builder does not handle."""
    got = shortened(repr(value), 200)
    return OptionError(who, f"expected {name} {expected} in {file}, got {got}; {remedy}")


def divided(who: str, config: dict[str, Any], whole: str, parts: str) -> int:
    """The quotient of two fields; raises if it is not an integer."""
    quotient, rest = divmod(config[whole], config[parts])
    if rest:
        expected = f"as a divisor of {whole}, {config[whole]},"
        raise refused(who, config["file"], parts, config[parts], expected, COUNT.remedy)
    return quotient


def dense_names(names: Mapping[str, str]) -> Table:
    """The rules for the weights and biases of dense layers, path -> name in torch."""
    table: Table = {f"{path}/w": f"{name}.weight: o i -> i o" for path, name in names.items()}
    return table | {f"{path}/b": f"{name}.bias" for path, name in names.items()}


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
