"""Networks: layers made of other layers, which a Python function calls or which form a chain."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

import jax

from fdl.checks import described
from fdl.core.inputs import check_inputs, check_pass, missing
from fdl.core.layer import (
    Layer,
    abstract,
    as_layer,
    check_key,
    check_training_key,
    keyword_only,
    subkey,
    zeros,
)
from fdl.paths import PathError, at, traced_in
from fdl.typing import Params, State


def network(
    forward: Callable[..., Any],
    /,
    *,
    inputs: Any = (),
    name: str = "network",
    **children: Any,
) -> Layer:
    """A layer made of layers, which the Python function `forward` calls.

    `forward(f, x, **inputs)` calls the children as functions: `f.down(x)`, `f.attend(x, mask=m)`.
    It is plain Python, so it can have skip connections, several inputs and shared weights (it then
    calls a child twice). The network passes random keys and `train` to its children. If `forward`
    itself draws random numbers, give it an argument `key`; if it computes something different in
    training, give it an argument `train`. The key that `forward` gets differs from the children's
    keys, and is None in a call of `apply` outside training. `init` finds all shapes by running
    `forward` once without computing any numbers. If a child has state, `forward` must call the
    child directly, and not inside a function that `forward` passes to `jax.checkpoint` or
    `jax.lax.scan`; apply these to the whole network instead.

    Args:
      forward: `(f, x, *, ...) -> y`; the arguments after f and x, except `key` and `train`, are
        extra inputs of the network.
      inputs: a tuple with the names of more extra inputs. As in `chain`, each of these inputs is
        passed to every child that has an input of that name, unless `forward` passes that child a
        different value. A `forward` with `**given` gets these inputs too.
      name: name of the network in another network.
      children: name -> layer, or plain function of one array.

    Returns:
      A layer. Its params have an entry for each child that has params, and its state has one for
      each child that has state. A child's random key is the network's key folded with the child's
      name, so it stays the same if other children are added.

    Raises:
      PathError: an input does not fit a child; the message begins with the child's path.
      ValueError: a child's name is empty or contains `/` or `*`; `forward` has `**given` but
        `inputs` is empty; or `inputs` has a name that neither `forward` nor a child takes.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl.layers import dense
      >>> net = network(lambda f, x: f.head(jnp.tanh(f.body(x)) + x), body=dense(3), head=dense(1))
      >>> params, state = net.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> jax.tree.map(jnp.shape, params)
      {'body': {'b': (3,), 'w': (3, 3)}, 'head': {'b': (1,), 'w': (3, 1)}}
      >>> y, state = net.apply(params, state, jnp.ones((2, 3)))
      >>> y.shape
      (2, 1)

      Every child that has an input `mask` gets it:

      >>> from fdl.layers import attention, layer_norm
      >>> parts = {"norm": layer_norm(), "attend": attention(2)}
      >>> block = network(lambda f, x: x + f.attend(f.norm(x)), inputs=("mask",), **parts)
      >>> block.inputs
      ('mask',)
    """
    layers = {child: as_layer(value) for child, value in children.items()}
    _check_names(inputs)
    takes = keyword_only(forward, after=2)
    if any(each.kind is each.VAR_KEYWORD for each in signature(forward).parameters.values()):
        if not inputs:
            raise ValueError(
                "network: expected a forward that names its extra inputs, such as (f, x, *, mask), "
                f"got {signature(forward)}; name them in forward, or pass inputs=('mask',)"
            )
        takes |= dict.fromkeys((each for each in inputs if each not in takes), False)
    known = {*takes, *_inputs_of(layers)}
    for each in inputs:
        if each not in known:
            raise ValueError(
                f"{name}: expected inputs that forward or a child takes, got {each!r}; leave it "
                "out, or add an argument of this name to the layer that needs it"
            )
    named = tuple(each for each in takes if each not in ("key", "train"))
    required = tuple(each for each in named if takes[each])
    extra = tuple(dict.fromkeys((*named, *inputs)))
    return _Network(forward, layers, name, extra, required, inputs, tuple(takes)).layer()


def _check_names(inputs: Any) -> None:
    if not isinstance(inputs, tuple) or not all(isinstance(each, str) for each in inputs):
        raise ValueError(
            f"network: expected inputs to be a tuple of names, got {described(inputs)}; write "
            "inputs=('mask',); if 'inputs' is a child, give it another name"
        )


def chain(*layers: Any, name: str = "chain", **named: Any) -> Layer:
    """Layers one after another: the output of one is the input of the next.

    Args:
      layers: layers, or plain functions of one array. Each is named after its kind, with a number:
        `dense_0`, `relu_0`, `dense_1`.
      name: name of the chain in another network.
      named: more layers, name -> layer; they come after the unnamed ones.

    Returns:
      A layer. An extra input is passed to every child that has an input of that name.

    Raises:
      PathError: as in `network`; also if an extra input is passed that no child takes.

    Example:
      >>> import jax.numpy as jnp
      >>> from fdl.layers import dense
      >>> from fdl.activations import relu
      >>> net = chain(dense(8), relu, head=dense(2))
      >>> params, _ = net.init(jax.random.key(0), jnp.ones((1, 4)))
      >>> sorted(params)
      ['dense_0', 'head']
    """
    children = named_layers(name, layers, named)

    return wired(lambda f, x: in_order(f, children, x), children, name)


def named_layers(
    owner: str, layers: Sequence[Any], named: Mapping[str, Any], least: int = 0
) -> dict[str, Layer]:
    """The children of a combinator, name -> layer; unnamed ones are named by kind and number.

    Args:
      owner: name of the combinator, for messages.
      layers: layers or functions that were passed without a name.
      named: name -> layer or function.
      least: minimum number of layers.

    Raises:
      ValueError: two layers have the same name, or there are fewer than `least` layers.
    """
    children: dict[str, Layer] = {}
    kinds: dict[str, int] = {}
    for value in layers:
        layer = as_layer(value, owner)
        count = kinds.get(layer.name, 0)
        kinds[layer.name] = count + 1
        children[f"{layer.name}_{count}"] = layer
    for child, value in named.items():
        if child in children:
            raise ValueError(
                f"{owner}: expected a different name for each layer, got {child!r} twice; rename "
                "one of the two"
            )
        children[child] = as_layer(value, owner)
    if len(children) < least:
        raise ValueError(
            f"{owner}: expected at least {least} layer{'s' * (least > 1)}, got {len(children)}; "
            "pass layers, or plain functions of one array"
        )
    return children


def in_order(f: Any, children: Iterable[str], x: Any) -> Any:
    """The result of passing x through the children of `f`, one after another."""
    for child in children:
        x = f[child](x)
    return x


def wired(forward: Callable[..., Any], children: Mapping[str, Layer], name: str) -> Layer:
    """`network` for a combinator: each extra input is passed to every child that takes it."""
    inputs = _inputs_of(children)
    return _Network(forward, children, name, inputs, required=(), shared=inputs).layer()


def _inputs_of(children: Mapping[str, Layer]) -> tuple[str, ...]:
    """The names of the extra inputs that at least one child takes."""
    names = (each for child in children.values() for each in child.inputs or ())
    return tuple(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True, eq=False)
class _Network:
    """The network in which `forward` calls `children`; `layer` returns it as a layer.

    Args:
      inputs: names of all extra inputs.
      required: names of the extra inputs that must be given.
      shared: names of the extra inputs that are passed to every child that takes them.
      takes: names of the keyword arguments of `forward`: extra inputs, `key` and `train`.
    """

    forward: Callable[..., Any]
    children: Mapping[str, Layer]
    name: str
    inputs: tuple[str, ...]
    required: tuple[str, ...]
    shared: tuple[str, ...]
    takes: tuple[str, ...] = ()

    def layer(self) -> Layer:
        if not isinstance(self.name, str):
            raise ValueError(
                f"network: expected name to be a string, got a {type(self.name).__name__}; if "
                "'name' is a child, give it another name"
            )
        for child in self.children:
            if not child or "/" in child or "*" in child:
                raise ValueError(
                    f"{self.name}: expected a child's name without '/' and '*', got {child!r}; "
                    "rename the child, because paths and patterns use these characters"
                )
        return Layer(
            self.name,
            self.init,
            self.apply,
            self.inputs,
            dict(self.children),
            rebuild=self.rebuild,
            required=self.required,
        )

    def rebuild(self, others: Mapping[str, Layer]) -> Layer:
        children = {child: others[child] for child in self.children}
        known = {*self.takes, *_inputs_of(children)}
        inputs = tuple(each for each in self.inputs if each in known)
        return dataclasses.replace(self, children=children, inputs=inputs).layer()

    def init(self, key: Any, x: Any, **given: Any) -> tuple[Params, State]:
        check_inputs(self.name, self.inputs, self.required, given)
        check_key(key, self.name)
        seen: dict[str, Any] = {}
        x, given = abstract((x, given))
        trace = functools.partial(self.trace, x=x, given=given, seen=seen)
        if isinstance(key, jax.core.Tracer):
            return jax.jit(trace)(key)
        # The weights are drawn layer by layer, because layers of equal shapes then share their
        # compiled functions. In one large compiled function for all weights, the code of every
        # layer would be compiled again, even for layers of equal shapes (7 s for 64 layers).
        jax.eval_shape(trace, key)
        made = {}
        for child, (child_x, child_given) in seen.items():
            with at(child):
                made[child] = self.children[child].init(subkey(key, child), child_x, **child_given)
        params = {child: pair[0] for child, pair in made.items()}
        state = {child: pair[1] for child, pair in made.items()}
        return self.without_empty(params), self.without_empty(state)

    def trace(self, key: Any, x: Any, given: Any, seen: dict[str, Any]) -> tuple[Params, State]:
        """Runs `forward` once on shapes alone; `seen` records the input of each child."""
        params: Params = {}
        state: State = {}

        def call(child: str, layer: Layer, x: Any, given: dict[str, Any]) -> Any:
            if child not in seen:
                seen[child] = abstract((x, given))
                params[child], state[child] = layer.init(subkey(key, child), x, **given)
            y, _ = jax.eval_shape(layer.apply, params[child], state[child], x, **given)
            return jax.tree.map(zeros, y)

        x, given = jax.tree.map(zeros, (x, given))
        self.run(call, x, given, key, train=False)
        return self.without_empty(params), self.without_empty(state)

    def apply(
        self,
        params: Params,
        state: State,
        x: Any,
        *,
        key: Any = None,
        train: bool = False,
        **given: Any,
    ) -> tuple[Any, State]:
        check_inputs(self.name, self.inputs, self.required, given)
        check_key(key, self.name)
        check_pass(self.name, tuple(self.children), params, state, key, train)
        if "key" in self.takes and train:
            check_training_key(key, self.name)
        new_state = dict(state)
        calls: dict[str, int] = {}

        def call(child: str, layer: Layer, x: Any, given: dict[str, Any]) -> Any:
            child_params, child_state = params.get(child, {}), new_state.get(child, {})
            child_key = subkey(key, child)
            if child_key is not None and child in calls:
                child_key = jax.random.fold_in(child_key, calls[child])
            calls[child] = calls.get(child, 0) + 1
            try:
                y, new_state[child] = layer.apply(
                    child_params, child_state, x, key=child_key, train=train, **given
                )
            except KeyError as error:
                raise missing(error, child_params, child_state) from error
            return y

        return self.run(call, x, given, key, train), self.without_empty(new_state)

    def run(
        self, call: Callable[..., Any], x: Any, given: dict[str, Any], key: Any, train: bool
    ) -> Any:
        """Runs `forward` once; whenever it calls a child, runs `call(name, layer, x, given)`."""
        shared = {each: given[each] for each in self.shared if each in given}

        def bound(child: str, x: Any, **given: Any) -> Any:
            layer = self.children[child]
            passed_on = {each: shared[each] for each in layer.inputs or () if each in shared}
            given = passed_on | given
            with at(child):
                check_inputs(child, layer.inputs or (), layer.required, given)
                return call(child, layer, x, given)

        arguments = {**given, "train": train}
        if "key" in self.takes:
            arguments["key"] = subkey(key, "/forward")  # a name that no child can have
        arguments = {each: arguments[each] for each in self.takes if each in arguments}
        with traced_in(self.name):
            return self.forward(_Children(bound, self.children), x, **arguments)

    def without_empty(self, tree: dict[str, Any]) -> dict[str, Any]:
        return {name: tree[name] for name in self.children if tree.get(name)}


class _Children:
    """The argument `f` of `forward`: a network's children as functions, for one pass."""

    def __init__(self, call: Callable[..., Any], names: Iterable[str]):
        self.__dict__.update({name: functools.partial(call, name) for name in names})

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self.__dict__:
            raise PathError(
                f"expected a child among {', '.join(self.__dict__)}, got f.{name}; call one of "
                "these, or add a child of this name to the network"
            )
        return self.__dict__[name]

    __getattr__ = __getitem__  # Python calls __getattr__ only for names that do not exist
