"""Paths: patterns, order, and errors with a path."""

import difflib
import faulthandler
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fdl
from fdl.paths import PathError, at, leaves, matches, path_of, pick, select, tree

LEVEL = st.text("abw01_", min_size=1, max_size=4)
PATH = st.lists(LEVEL, min_size=1, max_size=4).map("/".join)
# Names of any characters without a special meaning.
WILD = st.text(st.characters(blacklist_characters="/*?"), min_size=1, max_size=4)


def as_regex(pattern):
    """An oracle: the pattern as a regular expression."""
    levels = [
        r"(?:[^/]+/)*"
        if level == "**"
        else "".join({"*": "[^/]*", "?": "[^/]"}.get(c, re.escape(c)) for c in level) + "/"
        for level in pattern.split("/")
    ]
    return re.compile("".join(levels), re.DOTALL)


PATTERN = st.lists(
    st.one_of(st.just("**"), st.just("*"), st.text("aw0_*?", min_size=1, max_size=3)),
    min_size=1,
    max_size=4,
).map("/".join)


@given(PATTERN, PATH)
def test_patterns_mean_what_a_regular_expression_says(pattern, path):
    level_of_stars = any("**" in level and level != "**" for level in pattern.split("/"))
    if not level_of_stars:
        assert matches(pattern, path) == bool(as_regex(pattern).fullmatch(path + "/"))


@given(PATH, PATH)
def test_a_path_without_stars_is_its_own_pattern_and_no_other(path, other):
    assert matches(path, path)
    assert matches(path, other) == (path == other)
    assert matches("**", path) and matches(f"**/{path}", path) and matches(f"{path}/**", path)
    assert matches(f"**/{path}", f"{other}/{path}") and matches(f"{other}/**", f"{other}/{path}")
    assert matches(f"{path}/*", f"{path}/w") and not matches(f"{path}/*", path)


@given(WILD)
@example("a[0]")
@example("[!b]")
def test_any_other_character_stands_for_itself(name):
    assert matches(name, name)
    assert matches(f"**/{name}", f"block/{name}")


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("**/w", "w", True),
        ("**/w", "block/3/w", True),
        ("**/w", "block/3/bw", False),
        ("*/w", "block/3/w", False),
        ("block/*/attn/**", "block/3/attn/q/w", True),
        ("block/*/attn/**", "block/3/attn", True),
        ("block/*/attn/**", "block/3/4/attn/q", False),
        ("block/**/w", "block/w", True),
        ("block/**/w", "block/1/2/w", True),
        ("block/**/w", "other/block/w", False),
        ("dense_*", "dense_12", True),
        ("dense_?", "dense_12", False),
        ("dense_?/w", "dense_1/w", True),
        ("**/attn/**", "a/attn/b", True),
        ("**/attn/**", "a/attend/b", False),
        ("W", "w", False),
        ("**", "", True),
        ("*", "", False),
    ],
)
def test_patterns_by_example(pattern, path, expected):
    assert matches(pattern, path) is expected


def slow_match(pattern, path):
    """The definition of `**` by recursion; exponential in the number of `**`."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(slow_match(pattern[1:], path[skip:]) for skip in range(len(path) + 1))
    regex = as_regex(pattern[0])
    return bool(path) and bool(regex.fullmatch(path[0] + "/")) and slow_match(pattern[1:], path[1:])


@given(
    st.lists(st.sampled_from(["**", "*", "a", "b", "a*", "?", "*b*"]), min_size=1, max_size=6),
    st.lists(st.sampled_from(["a", "b", "ab", "ba"]), max_size=6),
)
def test_any_pattern_agrees_with_the_slow_definition(pattern, path):
    assert matches("/".join(pattern), "/".join(path)) == slow_match(pattern, path)


def test_many_stars_do_not_try_all_combinations():
    """There are 10^57 ways to share 200 levels among 80 patterns, and none ends in y."""
    path = "/".join(["a"] * 200)
    faulthandler.dump_traceback_later(120, exit=True)
    try:
        for ending, expected in ("y", False), ("**", True), ("a", True):
            assert matches("**/a/" * 80 + ending, path) is expected
        assert not matches("**/" * 200 + "y", path) and matches("**/" * 200 + "a", path)
        assert not matches("*a" * 80 + "y", "a" * 200)
    finally:
        faulthandler.cancel_dump_traceback_later()


# Leaves and their order.


def test_numbers_are_sorted_as_numbers():
    tree = {"block": {str(i): {"w": i, "b": -i} for i in range(12)}, "10": 0, "9": 1, "a": 2}
    expected = ["9", "10", "a", *(f"block/{i}/{leaf}" for i in range(12) for leaf in "bw")]
    assert list(leaves(tree)) == expected
    assert leaves(tree)["block/11/b"] == -11
    assert list(leaves([0] * 11)) == [str(i) for i in range(11)]


@given(st.dictionaries(LEVEL, st.one_of(st.integers(), st.dictionaries(LEVEL, st.integers()))))
def test_leaves_are_those_of_jax(tree):
    found = leaves(tree)
    assert sorted(found.values()) == sorted(jax.tree.leaves(tree))
    for path, leaf in found.items():
        node = tree
        for level in path.split("/"):
            node = node[level]
        assert node == leaf
    numbers = [int(path) for path in found if path.isdecimal()]
    assert numbers == sorted(numbers)


def test_paths_of_every_kind_of_node():
    state = optax.sgd(0.1, momentum=0.9).init({"w": jnp.ones(2)})
    assert list(leaves(state)) == ["0/trace/w"]
    assert list(leaves(5)) == [""]
    assert leaves({"a": None, "b": ()}) == {}
    [(keys, _)], _ = jax.tree_util.tree_flatten_with_path({"block": [(1.0,)]})
    assert path_of(keys) == "block/0/0"


def test_two_leaves_of_one_path_are_refused():
    message = r"^a/b: expected one leaf at this path, got two; rename the keys that contain '/'$"
    with pytest.raises(PathError, match=message):
        leaves({"a/b": 1, "a": {"b": 2}})
    with pytest.raises(PathError, match=message):
        select({"a/b": 1, "a": {"b": 2}}, "**")


# From leaves to a tree.

TREE = st.recursive(
    st.integers(),
    lambda inner: (
        st.lists(inner | st.none(), max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(LEVEL | st.integers(0, 12), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(TREE)
@example({"a": {"10": 1, "9": 2}, "b": (3, [4])})
@example(5)
@example({})
def test_the_leaves_of_a_tree_make_the_same_tree(made):
    """With `like`, for all kinds of nodes; without it, a tree of dicts with the same leaves."""
    if made is None:  # `like=None` means no `like`
        return
    try:
        found = leaves(made)
    except (
        PathError,
        ValueError,
        TypeError,
    ):  # two keys have the same text, or keys cannot be sorted
        return
    like = jax.tree.map(lambda leaf: "other", made)
    again = tree(found, like)
    assert again == made and jax.tree.structure(again) == jax.tree.structure(made)
    assert list(leaves(tree(found)).items()) == list(found.items())
    assert tree(dict(reversed(found.items())), like) == made


@given(st.dictionaries(PATH, st.integers()))
def test_a_tree_of_dicts_has_the_leaves_that_it_was_made_of(found):
    above = {path[:place] for path in found for place, c in enumerate(path) if c == "/"}
    if above & set(found):
        message = (
            ": expected either a leaf or a dict of leaves at this path, got both; rename one of "
            "the two$"
        )
        with pytest.raises(PathError, match=message) as caught:
            tree(found)
        assert caught.value.path in above & set(found)
    else:
        assert leaves(tree(found)) == found


def test_a_state_of_optax_is_made_of_its_leaves():
    state = optax.adam(0.1).init({"block": [{"w": jnp.ones(2)}]})
    found = leaves(state)
    again = tree({path: leaf + 1 for path, leaf in found.items()}, state)
    assert type(again[0]) is type(state[0]) and int(again[0].count) == 1
    assert again[0].mu["block"][0]["w"].tolist() == [1.0, 1.0]
    shapes = jax.eval_shape(lambda: state)
    assert tree(found, shapes)[0].nu["block"][0]["w"] is found["0/nu/block/0/w"]


def test_leaves_that_do_not_fit_are_named():
    like = {"a": 1, "b": [2, 3]}
    with pytest.raises(
        PathError,
        match=r"^tree: expected one leaf for each of the 3 paths of like, got no leaf at 'b/1', an "
        r"extra leaf at 'c'; use the paths of fdl.paths.leaves\(like\)$",
    ):
        tree({"a": 1, "b/0": 2, "c": 3}, like)
    with pytest.raises(PathError, match=r"an extra leaf at '1', .* at '5' and 4 more; use "):
        tree({str(i): i for i in range(1, 10)}, {})
    with pytest.raises(PathError, match=r"of like, got two leaves with the same path; use the"):
        tree({"a/b": 1}, {"a/b": 1, "a": {"b": 2}})


# Picking.


@given(st.lists(PATH, min_size=1, unique=True), st.data())
def test_pick_keeps_the_order_and_finds_what_matches(paths, data):
    wanted = data.draw(st.lists(st.sampled_from(paths), min_size=1))
    found = pick(paths, wanted)
    assert found == [path for path in paths if path in wanted]
    assert pick(paths, ["**"]) == paths
    assert pick(iter(paths), iter(["**", *wanted])) == paths
    assert pick(paths, []) == []


def test_a_pattern_that_matches_nothing_lists_the_nearest_paths():
    paths = ["dense_0/w", "dense_0/b", "dense_1/w", "norm/scale", "head/w", "head/b", "x"]
    message = (
        r"^pattern 'dens_0/w': expected at least one match among 7 paths, got none; the most "
        r"similar paths are 'dense_0/w', 'dense_1/w', 'dense_0/b', "
    )
    with pytest.raises(ValueError, match=message) as caught:
        pick(paths, ["**/b", "dens_0/w"])
    assert str(caught.value).count("', '") == 4
    with pytest.raises(
        ValueError,
        match=r"^pattern '\*': expected at least one match among 0 paths, got none; the most "
        r"similar paths are none$",
    ):
        pick([], ["*"])
    with pytest.raises(ValueError, match=r"^pattern '\*\*/gain': expected at least one match "):
        select({"dense": {"w": 1.0}}, "**/w", "**/gain")


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("decoder/block/*/attn/qq/w", "decoder/block/9/attn/q/w"),
        ("decoder/blok/17/attn/q/w", "decoder/block/17/attn/q/w"),
        ("encoder/block/250/mlp/up/b", "decoder/block/250/mlp/up/b"),
        ("haed/w", "head/w"),
        ("größe/w", "größen/w"),
    ],
)
def test_the_nearest_of_many_paths_are_those_of_few(pattern, nearest):
    """The first three are those that difflib finds among all paths."""
    parts = [f"{part}/{leaf}" for part in ("attn/q", "attn/v", "mlp/up", "norm") for leaf in "wb"]
    paths = [f"decoder/block/{i}/{part}" for i in range(300) for part in parts]
    paths[1000:1000] = ["head/w", "head/b", "größen/w", "\ud800/w"]
    found = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
    told = re.escape(f"none; the most similar paths are {', '.join(map(repr, found))}, ")
    with pytest.raises(ValueError, match=told):
        pick(paths, [pattern])
    assert found[0] == nearest


def test_of_many_paths_few_are_compared_with_a_pattern(monkeypatch):
    """difflib takes seconds for 100,000 paths."""
    seen = []
    find = difflib.get_close_matches

    def counted(pattern, paths, **how):
        seen.append(len(paths))
        return find(pattern, paths, **how)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    for count in 500, 20_000:
        with pytest.raises(ValueError, match=r"similar paths are 'block/0/w', "):
            pick([f"block/{i}/w" for i in range(count)], ["blck/0/w"])
    assert seen == [500, 500]


def test_select_is_a_mask_as_optax_takes_it():
    params = {"block": [{"w": jnp.ones(2), "b": jnp.ones(2)}] * 2, "head": {"w": jnp.ones(2)}}
    assert select(params, "block/1/*", "**/b") == {
        "block": [{"w": False, "b": True}, {"w": True, "b": True}],
        "head": {"w": False},
    }
    optimizer = optax.masked(fdl.sgd(0.5), select(params, "**/w"))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["block"][0]["b"].tolist() == [1.0, 1.0]
    assert updates["head"]["w"].tolist() == [-0.5, -0.5]
    assert select(params, "**") == jax.tree.map(lambda _: True, params)


# Errors that carry a path.


@given(st.lists(LEVEL, min_size=1, max_size=5))
def test_at_puts_every_level_in_front(levels):
    def raise_inside(levels):
        if not levels:
            raise PathError("expected a, got b", layer="dense")
        with at(levels[0]):
            raise_inside(levels[1:])

    with pytest.raises(PathError, match=r": expected a, got b$") as caught:
        raise_inside(levels)
    assert caught.value.path == "/".join(levels)
    assert str(caught.value) == "/".join(levels) + ": expected a, got b"
    assert isinstance(caught.value, ValueError) and caught.value.message == "expected a, got b"


def test_the_text_of_a_path_error():
    assert str(PathError("expected a")) == "expected a"
    assert str(PathError("expected a", layer="dense")) == "dense: expected a"
    assert str(PathError("expected a", "net/q", layer="dense")) == "net/q: expected a"
    again = pickle.loads(pickle.dumps(PathError("expected a", "net/q", layer="dense")))
    assert (str(again), again.path, again.layer) == ("net/q: expected a", "net/q", "dense")


def test_a_foreign_error_keeps_its_type_and_gets_notes():
    with pytest.raises(FileNotFoundError, match=r"^there is nothing") as caught, at("b"), at("c"):
        raise FileNotFoundError("there is nothing")
    assert caught.value.__notes__ == ["in layer 'c'", "in layer 'b'"]
    with pytest.raises(KeyboardInterrupt, match=r"^$") as stopped, at("a"):
        raise KeyboardInterrupt
    assert not hasattr(stopped.value, "__notes__")


def test_at_changes_nothing_without_an_error():
    with at("a"):
        value = np.float32(3)
    assert value == 3


def test_no_message_of_a_path_is_long():
    many = [f"encoder/block_{i}/{'query' * 100}/w" for i in range(1000)]
    with pytest.raises(
        ValueError, match=r"^pattern 'decoder/\*': expected at least one match"
    ) as e:
        fdl.paths.pick(many, ["decoder/*"])
    assert len(str(e.value)) < 2000
    assert len(str(fdl.PathError("expected " + "a" * 5000, "b" * 5000, layer="c" * 5000))) < 2000


SEEDED_BUGS = {
    "fdl/paths.py": (
        "test_paths.py",
        [
            ('f"{name}/{error.path}" if', 'f"{error.path}/{name}" if'),
            ('path + "/" if path else ""', 'path + "/"'),
            ('"(?:[^/]*/)*?"', '"(?:[^/]*/)+?"'),
            ('"(?:[^/]*/)*?"', '"[^/]*?"'),
            ("(?>{gap}{part})", "{gap}{part}"),
            ("for part in middle", "for part in middle[:-1]"),
            ('.replace(r"\\?", "[^/]")', ""),
            (".fullmatch(", ".match("),
            ("np.argsort(-shared", "np.argsort(shared"),
            ("int(level) if level.isdecimal() else 0", "0"),
            ("        if path in levels:", "        if False:"),
            ("[leaves[path_of(keys)] for keys, _ in pairs]", "list(leaves.values())"),
        ],
    ),
}
