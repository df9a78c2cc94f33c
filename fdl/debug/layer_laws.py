"""The laws that every layer of fdl keeps, as checks of a layer of your own.

The tests of fdl run the same functions over every layer.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fdl import paths
from fdl.core.layer import Layer, as_layer
from fdl.data.arrays import to_jax
from fdl.debug.sanity import OK, WRONG, Finding, Report
from fdl.gradients import check_gradient

NEAR = {"rtol": 2e-5, "atol": 2e-6}
Given = tuple[Any, dict[str, Any]]
T = TypeVar("T")


def check_layer(layer: Layer, x: Any, **inputs: Any) -> Report:
    """Runs the laws of layers on a layer of your own.

    - compiled: `jax.jit` of a pass in training and in evaluation gives the same as the pass itself.
    - vmap, scan, ensemble: one program for three inputs, three steps or three sets of weights gives
      the same as a loop over them.
    - recomputed: `jax.checkpoint` gives the same values and gradients.
    - gradient: the gradient agrees with finite differences, in float64.
    - shapes: `jax.eval_shape` gives the shapes and dtypes of the results of a pass.
    - arguments: a pass does not change the arrays that it gets.
    - evaluation: a pass in evaluation does not change the state.
    - no examples: a batch of no examples has the usual shapes, and gradients of 0.

    Args:
      layer: a layer, or a function of one array.
      x: the input, an array [B, ...] with B >= 3. Choose numbers that are not on a kink of the
        layer and have no symmetry, such as normal random numbers.
      inputs: the layer's extra inputs, by name.

    Returns:
      A `Report` with a `Finding` for each law; `report.wrong` lists the laws that are broken.

    Raises:
      TypeError: layer is not a layer.
      PathError: the layer cannot take x.

    Example:
      >>> import fdl
      >>> x = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")
      >>> check_layer(lambda x: x.reshape(len(x), -1), x).wrong
      ['no examples']

    Source: `sklearn.utils.estimator_checks`, which makes the laws of its estimators public.
    """
    layer = as_layer(layer, "check_layer")
    x, inputs = to_jax((x, inputs), "check_layer", "x")
    turned = [jax.tree.map(functools.partial(_turned, n), (x, inputs)) for n in (1, 2)]
    params, state = layer.init(jax.random.key(3), x, **inputs)
    trial = Trial(layer, params, state, [turned[0], (x, inputs), turned[1]], jax.random.key(5))
    trial.answer(True)  # raises if the layer cannot take x
    return Report(findings(LAYER_LAWS, _REMEDIES, trial))


def _turned(n: int, leaf: Any) -> Any:
    return jnp.roll(leaf, n, axis=0)


def findings(
    laws: Mapping[str, Callable[[T], None]], remedies: Mapping[str, str], trial: T
) -> tuple[Finding, ...]:
    """A finding for each law. The trial is what the laws need."""

    def finding(name: str) -> Finding:
        try:
            laws[name](trial)
        except Exception as error:
            found = " ".join(str(error).split())[:200]
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            return Finding(name, WRONG, f"{kind}{found}", remedies[name])
        return Finding(name, OK, "")

    return tuple(map(finding, laws))


class Trial:
    """A layer with what its laws need. Each program is compiled once for all laws.

    Args:
      layer: the layer.
      params, state: what its `init` gives.
      three: three pairs (x, inputs) of equal shapes; most laws use the second.
      key: a random key for training; None for a layer that draws no random numbers.
      half: a function that makes the arguments (params, state, x, inputs, key) in another dtype, or
        None.
    """

    def __init__(
        self,
        layer: Layer,
        params: Any,
        state: Any,
        three: Sequence[Given],
        key: Any,
        half: Callable[[], Any] | None = None,
    ):
        self.layer, self.params, self.state, self.half = layer, params, state, half
        self.three, self.key = three, key
        self.x, self.inputs = three[1]
        self.traces: Counter[bool] = Counter()
        self.programs = {train: jax.jit(self._counted(train)) for train in (True, False)}
        self.answers: dict[bool, Any] = {}

    def forward(self, train: bool = True) -> Callable[..., Any]:
        """A pass as `(params, state, x, inputs, key) -> (y, state)`."""

        def forward(params: Any, state: Any, x: Any, inputs: Any, key: Any) -> Any:
            return self.layer.apply(params, state, x, key=key, train=train, **inputs)

        return forward

    def _counted(self, train: bool) -> Callable[..., Any]:
        def forward(*args: Any) -> Any:
            self.traces[train] += 1
            return self.forward(train)(*args)

        return forward

    def arguments(self, train: bool = True) -> tuple[Any, ...]:
        """The arguments of a pass; without a key in evaluation."""
        return self.params, self.state, self.x, self.inputs, self.key if train else None

    def answer(self, train: bool) -> Any:
        """The result of the pass itself, which is not compiled."""
        if train not in self.answers:
            self.answers[train] = self.forward(train)(*self.arguments(train))
        return self.answers[train]

    @functools.cached_property
    def keys(self) -> Any:
        """Three random keys for training, or None."""
        return None if self.key is None else jax.random.split(self.key, 3)

    @functools.cached_property
    def members(self) -> tuple[Any, list[Any]]:
        """(three random keys, the params and state that `init` makes from each of them)."""
        keys = jax.random.split(jax.random.key(7), 3)
        return keys, [self.layer.init(key, self.x, **self.inputs) for key in keys]

    @functools.cached_property
    def together(self) -> dict[str, Any]:
        """Three passes under vmap, in a scan and as an ensemble, by one program."""
        forward, axes = self.forward(), (None, None, 0, 0, None if self.keys is None else 0)

        def body(state: Any, step: Any) -> Any:
            (x, inputs), key, params = step[0], step[1], self.params
            y, state = forward(params, state, x, inputs, key)
            return state, y

        @jax.jit
        def program(args: Any, data: Any, keys: Any, ensemble: Any) -> dict[str, Any]:
            params, state, x, inputs, key = args

            def member(own: Any) -> Any:
                return forward(*own, x, inputs, key)

            return {
                "vmap": jax.vmap(forward, axes)(params, state, *data, keys),
                "scan": jax.lax.scan(body, state, (data, keys)),
                "ensemble": jax.vmap(member, axis_size=3)(ensemble),
            }

        ensemble = stacked(self.members[1])
        return program(self.arguments(), stacked(self.three), self.keys, ensemble)

    @functools.cached_property
    def nothing(self) -> Given:
        """(x, inputs) with 0 examples."""
        size = len(jax.tree.leaves(self.x)[0])

        def none(leaf: Any) -> Any:
            return jax.device_put(np.asarray(leaf)[:0]) if len(leaf) == size else leaf

        x, inputs = jax.tree.map(none, (self.x, self.inputs))
        return x, inputs

    @functools.cached_property
    def gradients(self) -> dict[str, Any]:
        """Values and gradients of passes of all kinds, by one program."""
        forward = self.forward()
        given = {"plain": self.arguments(), "nothing": (self.params, self.state, *self.nothing)}
        if self.half is not None:
            given["half"] = self.half()

        @jax.jit
        def program(plain: Any, nothing: Any = None, half: Any = None) -> dict[str, Any]:
            found = {
                "plain": with_gradient(forward)(*plain),
                "again": with_gradient(jax.checkpoint(forward))(*plain),
            }
            if nothing is not None:
                found["nothing"] = self.of_nothing(*nothing)
            return found if half is None else found | {"half": with_gradient(forward)(*half)}

        try:
            return program(**given)
        except Exception:  # the layer cannot take 0 examples, or it breaks other laws too
            return program(self.arguments())

    def of_nothing(self, params: Any, state: Any, x: Any, inputs: Any) -> Any:
        """((loss, y), gradient) of a pass in evaluation over 0 examples."""

        def loss(params: Any) -> Any:
            y, _ = self.layer.apply(params, state, x, **inputs)
            return smooth(jnp.concatenate([each.ravel() for each in jax.tree.leaves(y)])), y

        return jax.value_and_grad(loss, has_aux=True)(params)


# The laws. Each raises an AssertionError if the layer breaks it.


def compiled_is_eager(trial: Trial, train: bool = True) -> None:
    """A compiled pass gives the same as the pass itself."""
    found = trial.programs[train](*trial.arguments(train))
    assert_equal(found, trial.answer(train), **NEAR)


def _compiled_in_both(trial: Trial) -> None:
    for train in (True, False):
        compiled_is_eager(trial, train)


def vmap_is_a_loop(trial: Trial) -> None:
    """One pass under vmap gives the same as a loop over the inputs."""
    params, state = trial.params, trial.state
    loop = [trial.programs[True](params, state, *_row(trial, i)) for i in range(3)]
    assert_equal(trial.together["vmap"], stacked(loop), **NEAR)


def scan_is_a_loop(trial: Trial) -> None:
    """Passes in a scan give the same as a loop that carries the state."""
    state, ys = trial.state, []
    for i in range(3):
        y, state = trial.programs[True](trial.params, state, *_row(trial, i))
        ys.append(y)
    assert_equal(trial.together["scan"], (state, stacked(ys)), **NEAR)


def ensemble_is_a_loop(trial: Trial) -> None:
    """One pass of an ensemble gives the same as a loop over its members."""
    *_, x, inputs, key = trial.arguments()
    loop = [trial.programs[True](*own, x, inputs, key) for own in trial.members[1]]
    assert_equal(trial.together["ensemble"], stacked(loop), **NEAR)


def recomputed_is_the_same(trial: Trial) -> None:
    """A layer that is computed again in the backward pass has the same gradient."""
    assert_equal(trial.gradients["again"], trial.gradients["plain"], **NEAR)


def shapes_are_known(trial: Trial, train: bool = True) -> None:
    """`jax.eval_shape` gives the shapes and dtypes of the results of a pass."""
    promised = jax.eval_shape(trial.forward(train), *trial.arguments(train))
    found = _kinds(trial.answer(train))
    require(_kinds(promised) == found, f"eval_shape gives {_kinds(promised)}, a pass {found}")


def arguments_are_kept(trial: Trial) -> None:
    """A pass does not change its arguments."""
    args = trial.arguments()[:4]
    before = jax.tree.map(np.array, args)
    ids = [id(leaf) for leaf in jax.tree.leaves(args)]
    trial.forward()(*trial.arguments())
    assert_equal(jax.tree.map(np.array, args), before)
    require(
        [id(leaf) for leaf in jax.tree.leaves(args)] == ids, "the dicts now contain other arrays"
    )


def evaluation_keeps_the_state(trial: Trial) -> None:
    """A pass in evaluation does not change the state."""
    assert_equal(trial.answer(False)[1], trial.state)


def no_examples_are_a_batch(trial: Trial) -> None:
    """A filter may leave no examples: the shapes are the usual ones, and the gradients are 0."""
    whole = trial.answer(False)[0]
    found = trial.gradients.get("nothing")
    (_, y), gradient = found or trial.of_nothing(trial.params, trial.state, *trial.nothing)
    for found, expected in zip(jax.tree.leaves(y), jax.tree.leaves(whole), strict=True):
        kinds = [(each.dtype, each.shape) for each in (found, expected[:0])]
        require(kinds[0] == kinds[1], f"{kinds[0]} is not {kinds[1]}")
    for path, leaf in paths.leaves(gradient).items():
        require(not np.asarray(leaf).any(), f"the gradient at {path} is not 0")
    none, inputs = trial.nothing
    begun = jax.eval_shape(trial.layer.init, jax.random.key(0), none, **inputs)
    shapes = [jax.tree.map(np.shape, each) for each in (begun, (trial.params, trial.state))]
    require(shapes[0] == shapes[1], f"init gives {shapes[0]}, and {shapes[1]} for a batch")


def _gradient_is_right(trial: Trial) -> None:
    with jax.enable_x64(True):
        params, state, x, inputs, key = jax.tree.map(_wide, trial.arguments())
        moved = {"params": params, "x": x}
        floating = {name: tree for name, tree in moved.items() if _floating(tree)}

        def loss(moved: Any) -> Any:
            given = {"params": params, "x": x} | moved
            y, _ = trial.forward()(given["params"], state, given["x"], inputs, key)
            return 1 + smooth(jax.tree.leaves(y)[0])

        if floating:
            check_gradient(loss, floating)


LAYER_LAWS: dict[str, Callable[[Trial], None]] = {
    "compiled": _compiled_in_both,
    "vmap": vmap_is_a_loop,
    "scan": scan_is_a_loop,
    "ensemble": ensemble_is_a_loop,
    "recomputed": recomputed_is_the_same,
    "gradient": _gradient_is_right,
    "shapes": shapes_are_known,
    "arguments": arguments_are_kept,
    "evaluation": evaluation_keeps_the_state,
    "no examples": no_examples_are_a_batch,
}
_TRACED = "use jax.numpy, and no Python or NumPy code that depends on values"
_REMEDIES = {
    "compiled": _TRACED,
    "vmap": _TRACED,
    "scan": "return a new state with the structure, shapes and dtypes of the old one",
    "ensemble": "let init depend on shapes only, and apply on no value of the params in Python",
    "recomputed": "draw random numbers from key only, and change nothing outside the function",
    "gradient": "correct the custom gradient, or test at numbers that are not on a kink",
    "shapes": _TRACED,
    "arguments": "return new arrays and dicts, and do not change those that were passed",
    "evaluation": "return the state as it is if train is False",
    "no examples": "divide by max(1, number of examples)",
}


def assert_equal(a: Any, b: Any, **bounds: float) -> None:
    """Raises unless a and b have the same structure, shapes, dtypes and values.

    With bounds, floating values may differ as in `np.testing.assert_allclose`.
    """
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    require(structures[0] == structures[1], f"{structures[0]} is not {structures[1]}")
    right = paths.leaves(b)
    for path, x in paths.leaves(a).items():
        x, y = np.asarray(x), np.asarray(right[path])
        kinds = (x.dtype, x.shape), (y.dtype, y.shape)
        require(kinds[0] == kinds[1], f"{path}: {kinds[0]} is not {kinds[1]}")
        if x.tobytes() == y.tobytes():
            continue  # quicker than an assertion of NumPy
        if bounds and np.issubdtype(x.dtype, np.floating):
            np.testing.assert_allclose(x, y, err_msg=path, **bounds)  # type: ignore[call-overload]
        else:
            np.testing.assert_array_equal(x, y, err_msg=path)


class _Broken(AssertionError):
    """A law does not hold."""


def require(holds: bool, text: str) -> None:
    """Raises an AssertionError unless the condition holds; also with `python -O`."""
    if not holds:
        raise _Broken(text)


def smooth(y: Any) -> Any:
    """A smooth scalar to which each element of y contributes differently."""
    return jnp.sum(waves(y) * jnp.tanh(y))


def waves(y: Any) -> np.ndarray:
    """A weight for each element of y: cos(0), cos(1), ..., computed by NumPy."""
    return np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype)


def with_gradient(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`(params, state, x, inputs, key) -> ((loss, (y, state)), gradient)` of a pass."""

    def loss(*args: Any) -> Any:
        y, state = forward(*args)
        return smooth(y), (y, state)

    return jax.value_and_grad(loss, has_aux=True)


def stacked(trees: Iterable[Any]) -> Any:
    """Stacks the leaves with NumPy, because JAX would compile a program for each shape."""
    return jax.tree.map(lambda *each: np.stack(each), *trees)


def _row(trial: Trial, i: int) -> tuple[Any, Any, Any]:
    return *trial.three[i], None if trial.keys is None else trial.keys[i]


def _kinds(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def _floating(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


def _wide(leaf: Any) -> Any:
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
