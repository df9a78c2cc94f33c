"""The table of rules between layers of fdl and modules elsewhere, where it is unambiguous."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fdl.checks import OptionError

Shape = tuple[int, ...]
_MOST = 20  # the largest number of layers and modules that an error lists on each side
_LETTERS = "hwd"  # axes of an image, after the names of channels
# The names in torch and Equinox; Flax; Keras; Haiku.
_NORMS = [
    {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"},
    {"scale": "scale", "bias": "bias", "mean": "mean", "variance": "var"},
    {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "variance": "moving_variance"},
    {"scale": "scale", "bias": "offset"},
]


@dataclasses.dataclass(frozen=True)
class _Form:
    """A way in which a layer can be a module: a line for each of its leaves.

    Args:
      signature: the shapes of the module's tensors, (name, shape), sorted.
      lines: path below the layer -> the rule's text, in which `@` stands for the module's name.
    """

    signature: tuple[tuple[str, Shape], ...]
    lines: tuple[tuple[str, str], ...]


def default_names(
    who: str, tensors: Mapping[str, Any], leaves: Mapping[str, Any], *, peers: bool = False
) -> dict[str | None, Any]:
    """The table for tensors and leaves by path; raises unless each layer has one module.

    With `peers`, modules may be those of Flax, Keras, Haiku and Equinox too. Without it, they may
    not, because a module that somebody wrote for torch may have a `w` with other axes than theirs.
    """
    modules = _modules(tensors)
    groups = _layers(leaves)
    _refuse_flattened(who, groups, modules)
    layers = {path: _forms(group, peers) for path, group in groups.items()}
    found = _by_name(layers, modules)
    found |= _by_shape(
        {path: forms for path, forms in layers.items() if path not in found},
        {name: shapes for name, shapes in modules.items() if name not in _taken(found)},
    )
    left = [path for path in layers if path not in found]
    extra = [name for name in modules if name not in _taken(found)]
    if left or extra:
        raise _ambiguous(who, left, extra, leaves, modules)
    names: dict[str | None, Any] = {}
    for path in layers:
        form, module = found[path]
        for leaf, text in form.lines:
            names[_leaf_path(path, leaf, leaves)] = _named(text, module)
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    if counters:
        names[None] = counters
    return names


def _refuse_flattened(
    who: str,
    groups: Mapping[str, dict[str, Shape]],
    modules: Mapping[str, tuple[tuple[str, Shape], ...]],
) -> None:
    """Raises if a dense layer may read a flattened image, whose order torch has otherwise."""
    if not any(leaf == "weight" for shapes in modules.values() for leaf, _ in shapes):
        return  # libraries with other names flatten channels last, as fdl does
    shapes = {path: group["w"] for path, group in groups.items() if len(group.get("w", ())) > 1}
    tables = {path for path in shapes if _is_embedding(groups[path], modules)}
    convs = [path for path, shape in shapes.items() if len(shape) > 2]
    if not convs:
        return
    one_level = len({path.rpartition("/")[0] for path in convs}) == 1
    if one_level and len(set(map(_without_numbers, convs))) == 1:  # a chain: the last one counts
        convs = [max(convs, key=_numbers)]
    channels = {shapes[path][-1] for path in [*convs, *tables]}
    dense = {p: shape for p, shape in shapes.items() if len(shape) == 2 and p not in tables}
    # What reads channels has channels as its output, and so on. A layer cannot vouch for itself.
    while reading := [path for path, shape in dense.items() if shape[0] in channels]:
        channels |= {dense.pop(path)[-1] for path in reading}
    if dense:
        raise _flattened(who, *next(iter(dense.items())), len(shapes[convs[0]]) - 2)


def _is_embedding(
    group: dict[str, Shape], modules: Mapping[str, tuple[tuple[str, Shape], ...]]
) -> bool:
    """True if a layer can only be an embedding, because no module has the transposed shape."""
    fitting = [form for form in _forms(group) if form.signature in modules.values()]
    return bool(fitting) and all(("w", "@.weight") in form.lines for form in fitting)


def _flattened(who: str, path: str, shape: Shape, count: int) -> OptionError:
    leaf, letters = f"{path}/w".lstrip("/"), _LETTERS[:count]
    space, sizes = " ".join(letters), " ".join(f"{letter}=7" for letter in letters)
    said = " and ".join(letters) + (" are" if count > 1 else " is")
    return OptionError(
        who,
        f"expected dense layers that read channels, got {leaf} {list(shape)}, which seems to read "
        "a flattened image; torch flattens channels first, so write names with the rule "
        f"{{{leaf!r}: 'fc.weight: o (c {space}) -> ({space} c) o, {sizes}'}}, where {said} the "
        "size of the image that is flattened, or 'fc.weight: o i -> i o' if none is",
    )


def _named(text: str, module: str) -> str:
    """The text of a rule with the name of a module in it."""
    base, _, part = module.partition("#")
    root = f"{base}." if base else ""
    return re.sub(r"@\.(\w+)", lambda match: root + match[1] + (f"_{part}" if part else ""), text)


def _taken(found: Mapping[str, tuple[_Form, str]]) -> set[str]:
    return {module for _, module in found.values()}


def _by_name(
    layers: Mapping[str, list[_Form]], modules: Mapping[str, tuple[tuple[str, Shape], ...]]
) -> dict[str, tuple[_Form, str]]:
    """The layers and modules of equal names, if all of the same shapes have equal names."""
    found = {}
    for path, forms in layers.items():
        module = path.replace("/", ".")
        fitting = [form for form in forms if modules.get(module) == form.signature]
        if len(fitting) == 1:
            found[path] = fitting[0], module
    # If torch counts from 1 and fdl from 0, dense_1 is the name of two different layers.
    while partial := _partial(found, layers, modules):
        found = {path: each for path, each in found.items() if each[0].signature not in partial}
    return found


def _partial(
    found: Mapping[str, tuple[_Form, str]],
    layers: Mapping[str, list[_Form]],
    modules: Mapping[str, tuple[tuple[str, Shape], ...]],
) -> set[tuple[tuple[str, Shape], ...]]:
    """The shapes of the pairs beside which a layer or a module of these shapes has no pair."""
    taken = _taken(found)
    free = {shapes for name, shapes in modules.items() if name not in taken}
    free |= {form.signature for path in layers if path not in found for form in layers[path]}
    return free & {form.signature for form, _ in found.values()}


def _by_shape(
    layers: Mapping[str, list[_Form]], modules: Mapping[str, tuple[tuple[str, Shape], ...]]
) -> dict[str, tuple[_Form, str]]:
    """The layers and modules whose shapes fit only each other, or that are numbered alike."""
    found: dict[str, tuple[_Form, str]] = {}
    for signature in sorted(set(modules.values())):
        named = [name for name, shapes in modules.items() if shapes == signature]
        fitting = {
            path: [form for form in forms if form.signature == signature]
            for path, forms in layers.items()
        }
        fitting = {path: forms for path, forms in fitting.items() if forms}
        one_form = all(len(forms) == 1 for forms in fitting.values())
        # A layer that also fits modules of other shapes has no pair that is certain.
        certain = all(
            len({form.signature for form in layers[path]} & set(modules.values())) == 1
            for path in fitting
        )
        alike = len(set(map(_without_numbers, fitting))) == 1
        alike = alike and len(set(map(_without_numbers, named))) == 1
        if one_form and certain and alike and len(named) == len(fitting):
            pairs = zip(sorted(fitting, key=_numbers), sorted(named, key=_numbers), strict=True)
            found |= {path: (fitting[path][0], name) for path, name in pairs}
    return found


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _modules(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[str, Shape], ...]]:
    """The tensors of each module, name of the module -> ((name, shape), ...)."""
    groups: dict[str, list[tuple[str, Shape]]] = {}
    for name, array in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        # Each layer and direction of an LSTM is a module here, with the name `lstm#l0_reverse`.
        if match := re.fullmatch(r"(weight|bias)_(ih|hh)_(l\d+(?:_reverse)?)", leaf):
            module, leaf = f"{module}#{match[3]}", f"{match[1]}_{match[2]}"
        groups.setdefault(module, []).append((leaf, array.shape))
    return {module: tuple(sorted(group)) for module, group in groups.items()}


def _layers(leaves: Mapping[str, Any]) -> dict[str, dict[str, Shape]]:
    """The leaves of each layer, path of the layer -> {path below it: shape}."""
    groups: dict[str, dict[str, Shape]] = {}
    for path, leaf in leaves.items():
        if path.startswith(("params/", "state/")):
            path = path.partition("/")[2]
        layer, _, name = path.rpartition("/")
        above, _, last = layer.rpartition("/")
        if last in ("input", "hidden") and name in ("w", "b"):
            layer, name = above, f"{last}/{name}"
        groups.setdefault(layer, {})[name] = tuple(np.shape(leaf))
    return groups


def _leaf_path(layer: str, leaf: str, leaves: Mapping[str, Any]) -> str:
    """The path of a leaf, below `params` or `state` if the tree has these."""
    path = f"{layer}/{leaf}" if layer else leaf
    return next(each for each in (path, f"params/{path}", f"state/{path}") if each in leaves)


def _forms(group: dict[str, Shape], peers: bool = False) -> list[_Form]:
    """The modules of torch, or of its peers too, that a layer with these leaves can be."""
    leaves = set(group)
    if leaves == {"input/w", "input/b", "hidden/w"}:
        return _lstm(group)
    if "scale" in leaves and leaves <= {"scale", "bias", "mean", "variance"}:
        known = [names for names in _NORMS[: None if peers else 1] if leaves <= set(names)]
        # A scale alone has the same name in Flax and Haiku.
        return list(dict.fromkeys(_same(group, names) for names in known))
    if "w" not in leaves or not leaves <= {"w", "b"}:
        return []
    w, b = group["w"], group.get("b")
    return _of_torch(w, b) + (_elsewhere(w, b) if peers else [])


def _same(group: Mapping[str, Shape], names: Mapping[str, str]) -> _Form:
    """A module whose tensors have other names, but the same shapes as the leaves of the layer."""
    signature = tuple(sorted((names[leaf], shape) for leaf, shape in group.items()))
    return _Form(signature, tuple((leaf, f"@.{names[leaf]}") for leaf in group))


def _elsewhere(w: Shape, b: Shape | None) -> list[_Form]:
    """The layers of `_of_torch` in Flax and Keras, in Haiku, and convolutions in Equinox."""
    group = {"w": w} | ({"b": b} if b is not None else {})
    forms = [_same(group, {"w": "kernel", "b": "bias"}), _same(group, {"w": "w", "b": "b"})]
    if len(w) == 2 and b is None:
        return forms + [_same(group, {"w": name}) for name in ("embedding", "embeddings")]
    if b is None or not 3 <= len(w) <= 5:
        return forms
    (form,), ones = _of_torch(w, b), (1,) * (len(w) - 2)
    signature = (("bias", b + ones), form.signature[1])
    rule = f"@.bias: o {' '.join(map(str, ones))} -> o"
    return [*forms, _Form(signature, (form.lines[0], ("b", rule)))]


def _of_torch(w: Shape, b: Shape | None) -> list[_Form]:
    """Dense layers, embeddings and convolutions of torch."""
    bias = (("bias", b),) if b is not None else ()
    also = (("b", "@.bias"),) if b is not None else ()
    if len(w) == 2:
        forms = [_Form((*bias, ("weight", w[::-1])), (("w", "@.weight: o i -> i o"), *also))]
        as_it_is = _Form((("weight", w),), (("w", "@.weight"),))
        return forms + ([as_it_is] if b is None else [])
    if not 3 <= len(w) <= 5:
        return []
    space = " ".join(_LETTERS[: len(w) - 2])
    shape = (w[-1], w[-2], *w[:-2])
    line = ("w", f"@.weight: o i {space} -> {space} i o")
    return [_Form((*bias, ("weight", shape)), (line, *also))]


def _lstm(group: dict[str, Shape]) -> list[_Form]:
    """The gates have the same order in both libraries: i, f, g, o. A GRU has another `hidden`."""
    inputs, hidden = group["input/w"][::-1], group["hidden/w"][::-1]
    if hidden[0] != 4 * hidden[1]:
        return []
    shapes = {"weight_ih": inputs, "weight_hh": hidden}
    shapes |= {"bias_ih": group["input/b"], "bias_hh": group["input/b"]}
    lines = (
        ("input/w", "@.weight_ih: o i -> i o"),
        ("hidden/w", "@.weight_hh: o i -> i o"),
        ("input/b", "@.bias_ih + @.bias_hh"),
    )
    return [_Form(tuple(sorted(shapes.items())), lines)]


def _ambiguous(
    who: str,
    left: list[str],
    extra: list[str],
    leaves: Mapping[str, Any],
    modules: Mapping[str, tuple[tuple[str, Shape], ...]],
) -> OptionError:
    groups = _layers(leaves)

    def listed(pairs: Iterable[tuple[str, Shape]]) -> str:
        return ", ".join(f"{name} {list(shape)}" for name, shape in pairs)

    lines = [f"layer {each or 'at the root'}: {listed(groups[each].items())}" for each in left]
    lines = lines[:_MOST]
    lines += [f"module {each or 'at the root'}: {listed(modules[each])}" for each in extra[:_MOST]]
    more = max(len(left) - _MOST, 0) + max(len(extra) - _MOST, 0)
    lines += [f"and {more} more"] if more else []
    return OptionError(
        who,
        f"expected one module for each layer, got {len(left)} layers and {len(extra)} "
        "modules without a certain pair; write names={'dense_0/w': 'fc.weight: o i -> i o', "
        "'dense_0/b': 'fc.bias', ...} with a rule for each path\n  " + "\n  ".join(lines),
    )
