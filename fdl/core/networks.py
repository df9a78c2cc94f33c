"""Networks: layers made of layers, by plain Python or one after the other."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

import jax

from fdl.core.inputs import check_inputs, check_pass, missing
from fdl.core.layer import (
    Layer,
    abstract,
    as_layer,
    check_key,
    check_training_key,
    key_and_train,
    keyword_only,
    subkey,
    zeros,
)
from fdl.paths import PathError, at, traced_in
from fdl.typing import Params, State


def network(forward: Callable[..., Any], /, *, name: str = "network", **children: Any) -> Layer:
    """A layer made of layers by plain Python.

    `forward(f, x, **inputs)` calls its children as functions: `f.down(x)`, `f.attend(x, mask=m)`.
    Skip connections, several inputs and shared weights (a child called twice) need no adapter.
    Children are handed their random keys and `train` by themselves; a `forward` that draws or acts
    otherwise in training names `key` or `train` among its inputs, and gets a key of its own (None
    outside training) and `train` as given. Shapes are inferred by tracing `forward` once. A child
    that moves state is to be called by `forward` itself, not inside a `jax.checkpoint` or
    `jax.lax.scan` of forward's own; wrap the whole network instead.

    Args:
      forward: `(f, x, *, ...) -> y`; its further arguments are the network's extra inputs, but for
        `key` and `train`.
      name: what the network is called inside another.
      children: layers, or plain functions of one array, by name.

    Returns:
      A layer. Its params and state hold an entry for each child that has any. A child's random
      key is folded from the network's by the child's name, so a new sibling changes no bits of it.

    Raises:
      PathError: where a child is given what it cannot take; the child's path stands in front.
      ValueError: a name that is not one level of a path; a forward that does not name its inputs.

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
    """
    if any(each.kind is each.VAR_KEYWORD for each in signature(forward).parameters.values()):
        raise ValueError(
            f"network: expected a forward that names its extra inputs, as (f, x, *, mask), got "
            f"{signature(forward)}; only named inputs can be handed on and checked"
        )
    named = {child: as_layer(value) for child, value in children.items()}
    inputs = keyword_only(forward, ("key", "train"), after=2)
    required = tuple(each for each in inputs if inputs[each])
    own = tuple(key_and_train(forward, None, False))
    return _Network(forward, named, name, tuple(inputs), required, own).layer()


def chain(*layers: Any, name: str = "chain", **named: Any) -> Layer:
    """Layers one after the other: the output of each is the input of the next.

    Args:
      layers: layers, or plain functions of one array. Unnamed ones are called after their kind and
        counted: `dense_0`, `relu_0`, `dense_1`.
      name: what the chain is called inside another network.
      named: further layers with names of your own, after the unnamed ones.

    Returns:
      A layer. It hands an extra input to the children that name it.

    Raises:
      PathError: as `network`; also for an extra input that no child names.

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

    def forward(f: Any, x: Any, **given: Any) -> Any:
        return in_order(f, children, x, given)

    return wired(forward, children, name)


def named_layers(
    owner: str, layers: Sequence[Any], named: Mapping[str, Any], least: int = 0
) -> dict[str, Layer]:
    """The children of a combinator by name: the unnamed ones after their kind, and counted.

    Args:
      owner: the name of the combinator, for messages.
      layers: layers or functions without a name.
      named: those with one.
      least: how many there must be.

    Raises:
      ValueError: a name twice; fewer layers than `least`.
    """
    children: dict[str, Layer] = {}
    kinds: dict[str, int] = {}
    for layer in map(as_layer, layers):
        count = kinds.get(layer.name, 0)
        kinds[layer.name] = count + 1
        children[f"{layer.name}_{count}"] = layer
    for child, value in named.items():
        if child in children:
            raise ValueError(
                f"{owner}: expected a name that is still free, got {child!r} twice; choose another"
            )
        children[child] = as_layer(value)
    if len(children) < least:
        raise ValueError(
            f"{owner}: expected at least {least} layer{'s' * (least > 1)}, got {len(children)}; "
            "pass layers, or plain functions of one array"
        )
    return children


def in_order(f: Any, children: Mapping[str, Layer], x: Any, given: Mapping[str, Any]) -> Any:
    """x through every child of `f` in turn, each with those inputs of `given` that it names."""
    for child, layer in children.items():
        x = f[child](x, **those_of(layer, given))
    return x


def those_of(layer: Layer, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given extra inputs that a layer names."""
    return {each: given[each] for each in layer.inputs or () if each in given}


def wired(forward: Callable[..., Any], children: Mapping[str, Layer], name: str) -> Layer:
    """`network` for a combinator: its extra inputs are those that its children name."""
    inputs = dict.fromkeys(each for child in children.values() for each in child.inputs or ())
    return _Network(forward, children, name, tuple(inputs), required=()).layer()


@dataclasses.dataclass(frozen=True, eq=False)
class _Network:
    """`forward` over `children`, with extra inputs of which some are required.

    `own` are those of key and train that `forward` itself is handed.
    """

    forward: Callable[..., Any]
    children: Mapping[str, Layer]
    name: str
    inputs: tuple[str, ...]
    required: tuple[str, ...]
    own: tuple[str, ...] = ()

    def layer(self) -> Layer:
        if not isinstance(self.name, str):
            raise ValueError(
                f"network: expected a name of type str, got {type(self.name).__name__}; no child "
                "can be called 'name'"
            )
        for child in self.children:
            if not child or "/" in child or "*" in child:
                raise ValueError(
                    f"{self.name}: expected a child's name without '/' and '*', got {child!r}; "
                    "these two belong to paths and patterns"
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
        return dataclasses.replace(self, children=children).layer()

    def init(self, key: Any, x: Any, **given: Any) -> tuple[Params, State]:
        check_inputs(self.name, self.inputs, self.required, given)
        check_key(key, self.name)
        seen: dict[str, Any] = {}
        x, given = abstract((x, given))
        trace = functools.partial(self.trace, x=x, given=given, seen=seen)
        if isinstance(key, jax.core.Tracer):
            return jax.jit(trace)(key)
        # Drawing the weights of a whole network as one program would compile every layer anew (7 s
        # for 64 of them); one by one, layers of one shape share their programs.
        jax.eval_shape(trace, key)
        made = {}
        for child, (own_x, own_given) in seen.items():
            with at(child):
                made[child] = self.children[child].init(subkey(key, child), own_x, **own_given)
        params = {child: own for child, (own, _) in made.items()}
        state = {child: own for child, (_, own) in made.items()}
        return self.without_empty(params), self.without_empty(state)

    def trace(self, key: Any, x: Any, given: Any, seen: dict[str, Any]) -> tuple[Params, State]:
        """One pass over shapes; `seen` notes what each child is given."""
        params: Params = {}
        state: State = {}

        def call(child: str, x: Any, **given: Any) -> Any:
            layer = self.children[child]
            with at(child):
                check_inputs(child, layer.inputs or (), layer.required, given)
                if child not in seen:
                    seen[child] = abstract((x, given))
                    params[child], state[child] = layer.init(subkey(key, child), x, **given)
                y, _ = jax.eval_shape(layer.apply, params[child], state[child], x, **given)
            return jax.tree.map(zeros, y)

        x, given = jax.tree.map(zeros, (x, given))
        handed = self.handed(key, train=False)  # only for the shapes, so that it may draw
        with traced_in(self.name):
            self.forward(_Children(call, self.children), x, **given, **handed)
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
        check_pass(self.name, tuple(self.children), params, state, key, train)
        new_state = dict(state)
        calls: dict[str, int] = {}

        def call(child: str, x: Any, **given: Any) -> Any:
            own, own_state = params.get(child, {}), new_state.get(child, {})
            own_key = subkey(key, child)
            if own_key is not None and child in calls:
                own_key = jax.random.fold_in(own_key, calls[child])
            calls[child] = calls.get(child, 0) + 1
            layer = self.children[child]
            with at(child):
                check_inputs(child, layer.inputs or (), layer.required, given)
                try:
                    y, new_state[child] = layer.apply(
                        own, own_state, x, key=own_key, train=train, **given
                    )
                except KeyError as error:
                    raise missing(error, own, own_state) from error
            return y

        handed = self.handed(key, train)
        with traced_in(self.name):
            y = self.forward(_Children(call, self.children), x, **given, **handed)
        return y, self.without_empty(new_state)

    def handed(self, key: Any, train: bool) -> dict[str, Any]:
        """What `forward` is given of key and train; no child can have the name of its key."""
        if "key" in self.own and train:
            check_training_key(key, self.name)
        both = {"key": subkey(key, "/forward"), "train": train}
        return {name: both[name] for name in self.own}

    def without_empty(self, tree: dict[str, Any]) -> dict[str, Any]:
        return {name: tree[name] for name in self.children if tree.get(name)}


class _Children:
    """What `forward` sees as `f`: the children of one network, bound for one pass."""

    def __init__(self, call: Callable[..., Any], names: Iterable[str]):
        self.__dict__.update({name: functools.partial(call, name) for name in names})

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self.__dict__:
            raise PathError(
                f"expected a child among {', '.join(self.__dict__)}, got f.{name}; call one of "
                "these, or give network a child of that name"
            )
        return self.__dict__[name]

    __getattr__ = __getitem__  # asked only for what is not there
