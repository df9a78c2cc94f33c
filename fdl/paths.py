"""Paths: each leaf of a pytree has a path, and patterns select leaves by path.

A path is the keys from the root to a leaf, joined by `/`, for example `block/3/attn/w`. A key is
one level of the path. In a pattern, `*` stands for any text within one level, and `**` stands for
zero or more whole levels. Examples are `**/w`, `block/*/attn/**` and `dense_*`.

The same patterns select leaves for weight decay, freezing and loading. They also select layers for
`capture`. Error messages about a place in a network begin with the path of that place.
"""

import contextlib
import difflib
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

# The errors that JAX raises if Python code needs the value of a traced array. Under jax.jit, for
# example, arrays are traced: they have a shape and a dtype, but no value yet.
_VALUE_NEEDED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class PathError(ValueError):
    """An error at a known path. Its text is `path: expected ..., got ...; remedy`.

    A layer that contains other layers runs each of them inside `at(name)`, which puts the name of
    the inner layer in front of the path of the error. So the user sees the path from the root of
    the network. This also works through `jit`, `grad`, `vmap` and `scan`.

    Args:
      message: says what was expected, what was given instead, and what to do.
      path: where the error is, relative to the code that raises.
      layer: the name of the layer that raises. The text begins with it if the path is empty.

    Example:
      >>> str(PathError("expected x [..., 64], got [8, 48]; transpose x", "decoder/q"))
      'decoder/q: expected x [..., 64], got [8, 48]; transpose x'
    """

    def __init__(self, message: str, path: str = "", *, layer: str = ""):
        super().__init__(message)
        self.message = shortened(message, 1500)
        self.path = path
        self.layer = layer

    def __str__(self) -> str:
        where = shortened(self.path or self.layer, 300)
        return f"{where}: {self.message}" if where else self.message


def shortened(text: str, most: int) -> str:
    """Shortens a text to at most `most` characters by leaving out its middle.

    Example:
      >>> shortened("a" * 50, 20)
      'aaaaaaaaaa ... aaaaa'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[5 - most // 2 :]}"


def quoted(path: Any) -> str:
    """Quotes a path, a name or a pattern for a message, shortened to at most 120 characters.

    Example:
      >>> quoted("decoder/w"), len(quoted("a" * 5000))
      ("'decoder/w'", 120)
    """
    return shortened(repr(path), 120)


@contextlib.contextmanager
def traced_in(layer: str) -> Iterator[None]:
    """Replaces JAX's error by a PathError if the `with` block needs the value of a traced array."""
    try:
        yield
    except _VALUE_NEEDED as error:
        raise _value_needed("", layer) from error


def _value_needed(path: str, layer: str) -> PathError:
    return PathError(
        "expected only operations of jax.numpy on a traced array, got one that needs the array's "
        "value, such as numpy, if, float() or x[x > 0]; use jax.numpy, jnp.where or jax.lax.cond",
        path,
        layer=layer,
    )


@contextlib.contextmanager
def at(name: str) -> Iterator[None]:
    """Puts `name` in front of the path of each PathError that the `with` block raises.

    An error that JAX raises because Python code needs the value of a traced array becomes a
    PathError. Any other error keeps its type and gets a note that names the layer. Operations of
    JAX in the `with` block are in a `jax.named_scope` of this name, so profiles show the path.

    Args:
      name: one level of a path.

    Example:
      >>> with at("encoder"), at("dense_0"):
      ...     raise PathError("expected a, got b")
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: encoder/dense_0: expected a, got b
    """
    try:
        with jax.named_scope(name):
            yield
    except PathError as error:
        error.path = f"{name}/{error.path}" if error.path else name
        raise
    except _VALUE_NEEDED as error:
        raise _value_needed(name, "") from error
    except Exception as error:
        error.add_note(f"in layer {name!r}")
        raise


def path_of(keys: Iterable[Any]) -> str:
    """Converts one of JAX's key paths to a path.

    Args:
      keys: the keys of a leaf, from `jax.tree_util.tree_flatten_with_path`.

    Returns:
      The keys joined by `/`. If the whole tree is a single leaf, the path is the empty string.

    Example:
      >>> [(keys, _)], _ = jax.tree_util.tree_flatten_with_path({"block": [{"w": 1.0}]})
      >>> path_of(keys)
      'block/0/w'
    """
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def leaves(tree: Any) -> dict[str, Any]:
    """A dict of all leaves of a pytree by path.

    The paths are sorted level by level. Levels that consist of digits come first, and are sorted as
    numbers.

    Args:
      tree: any pytree.

    Returns:
      A dict, path -> leaf.

    Raises:
      PathError: two leaves have the same path. This can happen if a key contains a `/`.

    Example:
      >>> list(leaves({"10": 0, "9": {"w": 0, "b": 0}}))
      ['9/b', '9/w', '10']
    """
    pairs = [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    found = dict(sorted(pairs, key=lambda pair: _natural(pair[0])))
    if len(found) < len(pairs):
        paths = [path for path, _ in pairs]
        twice = next(path for path in paths if paths.count(path) > 1)
        raise PathError(
            "expected one leaf at this path, got two; rename the keys that contain '/'", twice
        )
    return found


def tree(leaves: Mapping[str, Any], like: Any = None) -> Any:
    """The inverse of `leaves`: makes a pytree from a dict of leaves by path.

    Args:
      leaves: a dict, path -> leaf.
      like: a pytree with the same paths; the result has its structure. None gives nested dicts,
        whose keys are the levels of the paths as strings.

    Returns:
      A new pytree. For any pytree t, `tree(leaves(t), like=t)` equals t. For any dict d of leaves
      by path, `leaves(tree(d))` equals d.

    Raises:
      PathError: `like` is None, and a path is both a leaf and a level above another leaf; or `like`
        is a pytree, and its paths differ from those of `leaves`.

    Example:
      >>> tree({"dense_0/w": 1.0, "dense_0/b": 0.0})
      {'dense_0': {'w': 1.0, 'b': 0.0}}
      >>> tree({"0/w": 1.0, "1": 2.0}, like=[{"w": 0.0}, 0.0])
      [{'w': 1.0}, 2.0]
    """
    if like is not None:
        return _tree_like(leaves, like)
    if list(leaves) == [""]:
        return leaves[""]
    levels = {above for path in leaves for above in _above(path)}
    for path in leaves:
        if path in levels:
            raise PathError(
                "expected either a leaf or a dict of leaves at this path, got both; rename one of "
                "the two",
                path,
            )
    made: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *names, last = path.split("/")
        level = made
        for name in names:
            level = level.setdefault(name, {})
        level[last] = leaf
    return made


def _above(path: str) -> list[str]:
    """The paths of all levels above a leaf, except the root."""
    names = path.split("/")
    return ["/".join(names[:depth]) for depth in range(1, len(names))]


def _tree_like(leaves: Mapping[str, Any], like: Any) -> Any:
    pairs, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = dict.fromkeys(path_of(keys) for keys, _ in pairs)
    wrong = [f"no leaf at {path!r}" for path in wanted if path not in leaves]
    wrong += [f"an extra leaf at {path!r}" for path in leaves if path not in wanted]
    if wrong or len(wanted) < len(pairs):
        found = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise PathError(
            f"expected one leaf for each of the {len(pairs)} paths of like, got "
            f"{found or 'two leaves with the same path'}; use the paths of fdl.paths.leaves(like)",
            layer="tree",
        )
    return jax.tree.unflatten(structure, [leaves[path_of(keys)] for keys, _ in pairs])


def matches(pattern: str, path: str) -> bool:
    """True if a path matches a pattern.

    Args:
      pattern: levels joined by `/`. Within a level, `*` stands for any text and `?` for any one
        character. A level `**` stands for zero or more levels.
      path: a path.

    Returns:
      A bool.

    Example:
      >>> matches("**/w", "w"), matches("**/w", "block/3/w"), matches("*/w", "block/3/w")
      (True, True, False)
    """
    return bool(_regex(pattern).fullmatch(path + "/" if path else ""))


def pick(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The paths that match at least one pattern, in the order of `paths`.

    Args:
      paths: the paths to choose from.
      patterns: see `matches`.

    Returns:
      A list of paths.

    Raises:
      ValueError: a pattern matches no path; the message lists the paths most similar to it.

    Example:
      >>> pick(["dense_0/w", "dense_0/b", "dense_1/w"], ["*/w"])
      ['dense_0/w', 'dense_1/w']
    """
    paths, patterns = list(paths), list(patterns)
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            near = _nearest(pattern, paths)
            raise ValueError(
                f"pattern {quoted(pattern)}: expected at least one match among {len(paths)} paths, "
                f"got none; the most similar paths are {', '.join(map(quoted, near)) or 'none'}"
            )
    return [path for path in paths if any(matches(pattern, path) for pattern in patterns)]


def select(tree: Any, *patterns: str) -> Any:
    """A mask of a tree: True for each leaf whose path matches at least one pattern, else False.

    Args:
      tree: any pytree.
      patterns: see `matches`.

    Returns:
      A pytree of bool with the structure of `tree`, for example for `optax.masked`.

    Raises:
      ValueError: a pattern matches no path; the message lists the paths most similar to it.

    Example:
      >>> select({"dense": {"w": 1.0, "b": 0.0}}, "**/w")
      {'dense': {'b': False, 'w': True}}
    """
    picked = set(pick(leaves(tree), patterns))
    return jax.tree_util.tree_map_with_path(lambda keys, _: path_of(keys) in picked, tree)


def _nearest(pattern: str, paths: list[str]) -> list[str]:
    """The 5 paths most similar to a pattern.

    difflib takes seconds for 100,000 paths. So if there are more than 500 paths, it gets only the
    500 that share the most characters with the pattern, relative to the lengths of both.
    """
    if len(paths) > 500:
        lengths = np.array(list(map(len, paths)))
        path_of_character = np.repeat(np.arange(len(paths)), lengths)
        text = np.frombuffer("".join(paths).encode("utf-32-le", "surrogatepass"), np.uint32)
        shared = np.zeros(len(paths))
        for character, times in Counter(pattern).items():
            places = path_of_character[text == ord(character)]
            shared += np.minimum(np.bincount(places, minlength=len(paths)), times)
        best = np.argsort(-shared / (lengths + len(pattern)), kind="stable")[:500]
        paths = [paths[place] for place in best]
    return difflib.get_close_matches(pattern, paths, n=5, cutoff=0.0)


@functools.lru_cache(maxsize=1024)
def _regex(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern, for paths with a "/" after each level."""
    parts = re.split(r"(?:^|(?<=/))[*][*]/", pattern + "/")
    levels = ["".join(map(_level, part.split("/")[:-1])) for part in parts]
    return re.compile(_with_gaps(levels, "(?:[^/]*/)*?"))


def _level(level: str) -> str:
    """The regular expression of one level of a pattern, with the "/" after it."""
    texts = [re.escape(text).replace(r"\?", "[^/]") for text in level.split("*")]
    return _with_gaps(texts, "[^/]*?") + "/"


def _with_gaps(parts: list[str], gap: str) -> str:
    """The parts, with a gap of any length between them.

    `(?>gap part)` is an atomic group: it takes the first place where the part fits, and never tries
    a later place. Nothing is lost: if the rest does not match after the first place, it does not
    match after a later place either. Without atomic groups, a pattern with several gaps would try
    all combinations of places.
    """
    if len(parts) == 1:
        return parts[0]
    first, *middle, last = parts
    return first + "".join(f"(?>{gap}{part})" for part in middle) + gap + last


def _natural(path: str) -> list[tuple[bool, int, str]]:
    levels = path.split("/")
    return [
        (not level.isdecimal(), int(level) if level.isdecimal() else 0, level) for level in levels
    ]
