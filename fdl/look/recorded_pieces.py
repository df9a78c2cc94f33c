"""The folder of a recorded run: how its pieces are written, and read again.

A piece is what is recorded at one step. A session is one call of `fit`.

    about.json      what was recorded: examples, layers, weights
    examples.npz    the chosen examples
    records.jsonl   a line {"begins": step} when `fit` begins, then a line for each record
    piece_S_T.npz   the piece of session S at step T

A session adds files and lines, and keeps those of earlier sessions. If it begins at step T, what
earlier sessions wrote for steps after T is ignored.
"""

import io
import json
import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORM = 1
ABOUT, EXAMPLES, RECORDS = "about.json", "examples.npz", "records.jsonl"


class Recording(NamedTuple):
    """What `read` finds in a folder.

    Args:
      name: the name of the folder.
      about: what was recorded.
      examples: name -> array of the chosen examples.
      records: the records of the history.
      pieces: the pieces in the order of their steps.
    """

    name: str
    about: dict[str, Any]
    examples: dict[str, np.ndarray]
    records: list[dict[str, Any]]
    pieces: list[dict[str, np.ndarray]]


def sessions(folder: Path) -> int:
    """The number of sessions that a folder has already."""
    return sum("begins" in line for line in _lines(folder / RECORDS, quiet=True))


def write_arrays(file: Path, arrays: dict[str, Any]) -> None:
    """Writes a .npz file, which gets its name only when it is complete."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content.getbuffer())
    os.replace(part, file)


def append_line(folder: Path, line: dict[str, Any]) -> None:
    """Appends a line to the records. If the last line is half-written, it is ended first."""
    with open(folder / RECORDS, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        broken = size > 0 and file.read(1) != b"\n"
        file.write(b"\n" * broken + json.dumps(line).encode() + b"\n")


def piece_file(folder: Path, session: int, step: int) -> Path:
    """The path of a piece."""
    return folder / f"piece_{session:04d}_{step:010d}.npz"


def read_about(folder: Path, who: str) -> dict[str, Any]:
    """What a folder says of its recording; raises ValueError if it is not a recording."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        form = about["fdl recording"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{who}: expected the folder of a recorded run, got {str(folder)!r}, whose {ABOUT} "
            f"{'is missing' if isinstance(error, OSError) else 'is not one of fdl.look.record'}; "
            "pass the folder that fdl.look.record wrote to"
        ) from error
    if form != FORM:
        raise ValueError(
            f"{who}: expected a recording of form {FORM}, got form {form!r} in {str(folder)!r}; "
            "use the version of fdl that recorded it"
        )
    return about


def read(folder: Path, who: str) -> Recording:
    """Reads a folder. A damaged piece or line is skipped with a warning.

    Raises:
      ValueError: the folder is not a recording, or has no piece that can be read.
    """
    about = read_about(folder, who)
    examples = _arrays(folder / EXAMPLES)
    pieces: dict[int, dict[str, np.ndarray]] = {}
    begun = 0
    names = (re.fullmatch(r"piece_(\d+)_(\d+)[.]npz", each) for each in os.listdir(folder))
    for session, step in sorted((int(name[1]), int(name[2])) for name in names if name):
        if session >= begun:  # the first piece of a session is at the step at which it begins
            begun = session + 1
            pieces = {at: piece for at, piece in pieces.items() if at <= step}
        piece = _arrays(piece_file(folder, session, step))
        if piece is not None:
            pieces.setdefault(step, piece)
    if examples is None or not pieces:
        raise ValueError(
            f"{who}: expected a recorded run with at least one piece, got none that can be read in "
            f"{str(folder)!r}; train with fdl.look.record in watch=[...] first"
        )
    kept: list[dict[str, Any]] = []
    for line in _lines(folder / RECORDS):
        if "begins" in line:
            kept = [record for record in kept if record["step"] <= line["begins"]]
        else:
            kept.append(line)
    in_order = [pieces[step] for step in sorted(pieces)]
    return Recording(folder.resolve().name, about, examples, kept, in_order)


def _arrays(file: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a .npz file; None, with a warning, if it is damaged."""
    try:
        with open(file, "rb") as content, np.load(content) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        warnings.warn(
            f"replay: expected a complete file, got {type(error).__name__} for {file.name}; it is "
            "left out",
            stacklevel=5,
        )
        return None


def _lines(file: Path, quiet: bool = False) -> list[dict[str, Any]]:
    """The lines of the records; one that is not JSON is skipped, with a warning."""
    found = []
    for number, text in enumerate(file.read_bytes().splitlines() if file.exists() else []):
        try:
            found.append(dict(json.loads(text)))
        except (ValueError, TypeError):
            if not quiet and text:
                warnings.warn(
                    f"replay: expected a record as JSON, got a damaged line {number + 1} in "
                    f"{file.name}; it is left out",
                    stacklevel=5,
                )
    return found
