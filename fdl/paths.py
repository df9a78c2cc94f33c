"""Paths: every leaf of a pytree has one, and patterns select leaves by path.

A path joins the keys from the root to a leaf by `/`: `block/3/attn/w`. In a pattern, `*` stands for
any text inside one level and `**` for any number of whole levels, none included: `**/w`,
`block/*/attn/**`, `dense_*`. The same patterns select leaves for weight decay, freezing, loading,
summaries and capture, and the same paths begin every error message.
"""

import contextlib
import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

# JAX's errors for Python code that needs the value of a traced array.
_VALUE_NEEDED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class PathError(ValueError):
    """A mistake at a known place: reads `path: expected ..., got ...; remedy`.

    A combinator runs each child inside `at(name)`, which puts the child's name in front of the
    error's path. So the error arrives with its whole path, through `jit`, `grad`, `vmap` and `scan`
    too.

    Args:
      message: what was expected, what came, what to do; one line if it fits.
      path: the place, relative to the code that raises.
      layer: name of the layer that raises; the message begins with it if the path is empty.

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
    """A text cut to at most `most` characters: a longer one keeps its beginning and its end.

    Example:
      >>> shortened("a" * 50, 20)
      'aaaaaaaaaa ... aaaaa'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[5 - most // 2 :]}"


def quoted(path: Any) -> str:
    """A path, a name or a pattern for a message: in quotes, at most 120 characters.

    Example:
      >>> quoted("decoder/w"), len(quoted("a" * 5000))
      ("'decoder/w'", 120)
    """
    return shortened(repr(path), 120)


@contextlib.contextmanager
def traced_in(layer: str) -> Iterator[None]:
    """Translates JAX's error for a user's function that needs the value of a traced array."""
    try:
        yield
    except _VALUE_NEEDED as error:
        raise _value_needed("", layer) from error


def _value_needed(path: str, layer: str) -> PathError:
    return PathError(
        "expected operations of jax.numpy alone, got numpy, if, float(), int() or the like on an "
        "array whose value is known only when the compiled program runs; use jax.numpy, jnp.where "
        "or jax.lax.cond",
        path,
        layer=layer,
    )


@contextlib.contextmanager
def at(name: str) -> Iterator[None]:
    """Puts `name` in front of the path of any error that leaves the block.

    Args:
      name: one level of a path. An error from other code keeps its type and gets a note.

    Example:
      >>> with at("encoder"), at("dense_0"):
      ...     raise PathError("expected a, got b")
      Traceback (most recent call last):
      ...
      fdl.paths.PathError: encoder/dense_0: expected a, got b
    """
    try:
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
    """One of JAX's key paths as text.

    Args:
      keys: a leaf's keys, from `jax.tree_util.tree_flatten_with_path`.

    Returns:
      The keys joined by `/`; the empty string for a tree that is a single leaf.

    Example:
      >>> [(keys, _)], _ = jax.tree_util.tree_flatten_with_path({"block": [{"w": 1.0}]})
      >>> path_of(keys)
      'block/0/w'
    """
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def leaves(tree: Any) -> dict[str, Any]:
    """All leaves of a pytree by path, sorted; levels of digits are sorted as numbers.

    Args:
      tree: any pytree.

    Returns:
      path -> leaf.

    Raises:
      PathError: two leaves have the same path (a key contains a `/`).

    Example:
      >>> list(leaves({"10": 0, "9": {"w": 0, "b": 0}}))
      ['9/b', '9/w', '10']
    """
    pairs = [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    found = dict(sorted(pairs, key=lambda pair: _natural(pair[0])))
    if len(found) < len(pairs):
        paths = [path for path, _ in pairs]
        twice = next(path for path in paths if paths.count(path) > 1)
        raise PathError("expected one leaf at this path, got two; rename keys that hold '/'", twice)
    return found


def tree(leaves: Mapping[str, Any], like: Any = None) -> Any:
    """The inverse of `leaves`: a pytree from the leaves by path.

    Args:
      leaves: path -> leaf.
      like: a pytree with the same paths, whose structure the result has; by default the result is
        nested dicts, and their keys are the levels as strings.

    Returns:
      A new pytree: `tree(leaves(t), like=t)` is t, and `leaves(tree(found))` is `found`.

    Raises:
      PathError: a path is the beginning of another; the paths are not those of `like`.

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
                "expected either a leaf or a level of leaves at this path, got both; rename one",
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
    """The paths of the levels above a leaf, without the root."""
    names = path.split("/")
    return ["/".join(names[:depth]) for depth in range(1, len(names))]


def _tree_like(leaves: Mapping[str, Any], like: Any) -> Any:
    pairs, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = dict.fromkeys(path_of(keys) for keys, _ in pairs)
    wrong = [f"none at {path!r}" for path in wanted if path not in leaves]
    wrong += [f"one at {path!r}" for path in leaves if path not in wanted]
    if wrong or len(wanted) < len(pairs):
        found = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise PathError(
            f"expected a leaf for each of the {len(pairs)} paths of like, got "
            f"{found or 'two for one path'}; see fdl.paths.leaves(like)",
            layer="tree",
        )
    return jax.tree.unflatten(structure, [leaves[path_of(keys)] for keys, _ in pairs])


def matches(pattern: str, path: str) -> bool:
    """True if a pattern selects a path.

    Args:
      pattern: levels joined by `/`; `*` and `?` within a level, `**` for any number of levels.
      path: a path.

    Example:
      >>> matches("**/w", "w"), matches("**/w", "block/3/w"), matches("*/w", "block/3/w")
      (True, True, False)
    """
    return _match(pattern.split("/"), path.split("/") if path else [])


def pick(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The paths that at least one pattern matches, in the order of `paths`.

    Args:
      paths: all paths.
      patterns: see `matches`.

    Raises:
      ValueError: a pattern matches nothing; the message lists the nearest paths.

    Example:
      >>> pick(["dense_0/w", "dense_0/b", "dense_1/w"], ["*/w"])
      ['dense_0/w', 'dense_1/w']
    """
    paths, patterns = list(paths), list(patterns)
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=5, cutoff=0.0)
            raise ValueError(
                f"pattern {quoted(pattern)}: expected at least one match among {len(paths)} paths, "
                f"got none; the nearest are {', '.join(map(quoted, near)) or 'none'}"
            )
    return [path for path in paths if any(matches(pattern, path) for pattern in patterns)]


def select(tree: Any, *patterns: str) -> Any:
    """A mask: the tree with True for leaves whose path a pattern matches, and False for others.

    Args:
      tree: any pytree.
      patterns: see `matches`.

    Returns:
      A pytree of bool with the structure of `tree`, as `optax.masked` takes it.

    Raises:
      ValueError: a pattern matches nothing; the message lists the nearest paths.

    Example:
      >>> select({"dense": {"w": 1.0, "b": 0.0}}, "**/w")
      {'dense': {'b': False, 'w': True}}
    """
    picked = set(pick(leaves(tree), patterns))
    return jax.tree_util.tree_map_with_path(lambda keys, _: path_of(keys) in picked, tree)


def _match(pattern: list[str], path: list[str]) -> bool:
    # After each level of the path: the numbers of pattern levels that can have matched so far. A
    # set, because trying the ways to share levels among several "**" one by one takes too long.
    used = _past_stars(pattern, {0})
    for level in path:
        stay = {place for place in used if pattern[place : place + 1] == ["**"]}
        go = {place + 1 for place in used - stay if _fits(pattern[place : place + 1], level)}
        used = _past_stars(pattern, stay | go)
    return len(pattern) in used


def _past_stars(pattern: list[str], used: set[int]) -> set[int]:
    """Adds the places after each `**`, which may also stand for no level."""
    for place, level in enumerate(pattern):
        if level == "**" and place in used:
            used.add(place + 1)
    return used


def _fits(pattern: list[str], level: str) -> bool:
    # Only * and ? are special.
    return bool(pattern) and fnmatch.fnmatchcase(level, pattern[0].replace("[", "[[]"))


def _natural(path: str) -> list[tuple[bool, int, str]]:
    levels = path.split("/")
    return [
        (not level.isdecimal(), int(level) if level.isdecimal() else 0, level) for level in levels
    ]
