"""The table between fdl's paths and the names in a folder from Hugging Face."""

from typing import Any

from fdl.checks import OptionError
from fdl.port.config import Folder, Table, open_config, read_config
from fdl.port.huggingface import BERT, GPT2, LLAMA, bert_names, gpt2_names, llama_names
from fdl.port.huggingface_images import RESNET, VIT, resnet_names, vit_names
from fdl.port.tensor_files import has_weights, read_tensors

_KNOWN: dict[str, Any] = {
    "gpt2": (GPT2, gpt2_names),
    "llama": (LLAMA, llama_names),
    "bert": (BERT, bert_names),
    "vit": (VIT, vit_names),
    "resnet": (RESNET, resnet_names),
}


def hugging_face_names(folder: Folder) -> Table:
    """The table of rules that `gpt2`, `llama`, `bert`, `vit` and `resnet` use for a folder.

    With it, `to_torch` writes the weights back, for example after training.

    Args:
      folder: as in `gpt2`. Without weights in the folder, the names are those of new files.

    Returns:
      A table, as in `from_torch`. For `resnet`, its paths are those of
      `{"params": params, "state": state}`.

    Raises:
      FileNotFoundError, ValueError: as in `gpt2`, or the `model_type` is not one of the five.

    Example:
      >>> import json, tempfile
      >>> from pathlib import Path
      >>> config = {"model_type": "gpt2", "vocab_size": 31, "n_positions": 9}
      >>> config |= {"n_embd": 8, "n_layer": 1, "n_head": 2}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = Path(folder, "config.json").write_text(json.dumps(config))
      ...     hugging_face_names(folder)["embed/w"]
      'transformer.wte.weight = lm_head.weight'

    Source: the state dicts of the five models in transformers.
    """
    who = "hugging_face_names"
    file, config = open_config(who, folder)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _KNOWN:
        raise OptionError(
            who,
            f"expected a model_type among {', '.join(_KNOWN)} in {file}, got {kind!r:.200}; write "
            "the table for fdl.port.from_torch",
        )
    fields, names = _KNOWN[kind]
    config = read_config(folder, fields)
    return names(config, read_tensors(folder) if has_weights(folder) else ())
