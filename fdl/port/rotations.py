"""The rotary positions that a `config.json` from Hugging Face describes."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fdl.layers import rotary
from fdl.layers.embeddings import rotary_by_frequencies
from fdl.port.config import COUNT, POSITIVE, Field, checked, one_of, refused

_KIND = one_of("default", "linear", "llama3")
# The kinds of rotary positions: their fields, beside the kind and the base.
_ROTATIONS: dict[str, dict[str, Field]] = {
    "default": {},
    "linear": {"factor": POSITIVE},
    "llama3": {
        "factor": POSITIVE,
        "low_freq_factor": POSITIVE,
        "high_freq_factor": POSITIVE,
        "original_max_position_embeddings": COUNT,
    },
}


def rotation(config: dict[str, Any], width: int) -> Callable[..., Any]:
    """The rotary positions of a config of Llama, for heads with `width` features."""
    both = [config[name] for name in ("rope_scaling", "rope_parameters") if config[name]]
    file = config["file"]
    if width % 2:
        raise refused("llama", file, "head_dim", width, "as an even number")
    if len(both) == 2 and both[0] != both[1]:
        raise refused("llama", file, "rope_scaling", both[0], "the same as rope_parameters")
    given = both[0] if both else {}
    named = given.get("rope_type", given.get("type", "default"))
    (kind,) = checked("llama", file, {"rope_type": named}, {"rope_type": _KIND}).values()
    base = POSITIVE.by_default(config["rope_theta"])
    known = checked("llama", file, given, {"rope_theta": base, **_ROTATIONS[kind]})
    if extra := set(given) - set(known) - {"rope_type", "type"}:
        name = min(extra)
        raise refused("llama", file, "rope_parameters", given[name], f"without {name!r}")
    if kind == "default":
        return rotary(base=known["rope_theta"])
    frequencies = known["rope_theta"] ** -(np.arange(0, width, 2) / width)
    if kind == "linear":
        frequencies = frequencies / known["factor"]
    else:
        low, high = known["low_freq_factor"], known["high_freq_factor"]
        if low >= high:
            expected = f"as a number above low_freq_factor, {low},"
            raise refused("llama", file, "high_freq_factor", high, expected, POSITIVE.remedy)
        frequencies = _llama3_frequencies(frequencies, known)
    return functools.partial(rotary_by_frequencies, frequencies=tuple(frequencies))


def _llama3_frequencies(frequencies: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    """The frequencies of Llama 3.1: those whose wave is long are divided by a factor."""
    turns = given["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return share * frequencies + (1 - share) * frequencies / given["factor"]
