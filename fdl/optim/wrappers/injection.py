"""Hyper-parameters as leaves of the state: a new value needs no new program."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optax import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    InjectStatefulHyperparamsState,
    with_extra_args_support,
)
from optax.schedules import StatefulSchedule

from fdl.checks import is_number, known
from fdl.ops.double_float import Hyperparameter, hyperparameter
from fdl.optim.checks import check_rate
from fdl.optim.learning_rate import at
from fdl.optim.lifting import increment
from fdl.optim.protocol import transformation


def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: Any = None,
) -> Callable[..., GradientTransformationExtraArgs]:
    """Moves an optimizer's numbers into its state, where they may change between steps.

    Every number becomes a leaf of `state.hyperparams`, changed by `set_hyperparams`, read by a
    compiled step without compiling again, and different in each member under `vmap`. A schedule may
    stand in the place of any number. The steps are those of the numbers written into the program:
    see `Hyperparameter`.

    Args:
      inner_factory: makes an optimizer, fdl's or optax's.
      static_args: names of arguments to be left as they are, such as functions that are no
        schedules. Flags, names, dtypes, None and masks by path are left anyway.
      hyperparam_dtype: of the numbers in the state; float32 by default, and float64 under
        `jax.enable_x64`.

    Returns:
      A factory with the same arguments. The state of what it makes is
      `optax.InjectStatefulHyperparamsState`, so that `optax.tree_utils.tree_get(state, name)` and
      `tree_set` find a number by its name (that of a schedule twice, as optax's: its value and its
      count). What float32 leaves of a number is kept as "remainder of ..." in
      `hyperparams_states`; where it is missing, as from optax, it counts as 0.

    Raises:
      ValueError: what is no factory; static_args that are no arguments; what the factory refuses.

    Example:
      >>> from fdl.optim import sgd
      >>> optimizer = inject_hyperparams(sgd)(learning_rate=0.5)
      >>> state = set_hyperparams(optimizer.init(jnp.array(0.0)), learning_rate=0.25)
      >>> float(optimizer.update(jnp.array(1.0), state)[0])
      -0.25

    Source: `optax.inject_hyperparams`, in which 1 - b2 is off by 1.3e-5 of itself at b2 = 0.999.
    """
    if not callable(inner_factory):
        raise ValueError(
            f"inject_hyperparams: expected a factory of optimizers, got {inner_factory!r}; pass "
            "sgd itself, and its arguments to what comes back"
        )
    signature = inspect.signature(inner_factory)
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    unknown = sorted(static - set(signature.parameters))
    if unknown:
        raise ValueError(
            f"inject_hyperparams: expected static_args among {list(signature.parameters)}, got "
            f"{unknown}; they are arguments of {inner_factory.__name__}"
        )

    @functools.wraps(inner_factory)
    def factory(*args: Any, **kwargs: Any) -> GradientTransformationExtraArgs:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        moving = {
            name: value
            for name, value in bound.arguments.items()
            # A dtype can be called, and is no schedule.
            if name not in static and not isinstance(value, bool | type)
        }
        schedules = {name: _stateful(name, each) for name, each in moving.items() if callable(each)}
        numbers = {name: each for name, each in moving.items() if isinstance(each, NUMBERS)}

        def make(values: dict[str, Any]) -> GradientTransformationExtraArgs:
            filled = inspect.BoundArguments(signature, {**bound.arguments, **values})
            return with_extra_args_support(inner_factory(*filled.args, **filled.kwargs))

        # Now, while the numbers can be looked at, the factory refuses what it has to.
        make({name: hyperparameter(each(each.init())) for name, each in schedules.items()})
        return _injected(make, numbers, schedules, hyperparam_dtype)

    return factory


def set_hyperparams(state: Any, **values: Any) -> Any:
    """A state with other hyper-parameters, for a step that is already compiled.

    Args:
      state: of `inject_hyperparams`, or any that holds one, such as a chain's.
      values: by name: a number; after `jax.vmap(optimizer.init)` also an array of one for each
        member, NumPy's float64 for full precision; or a `Hyperparameter`.

    Returns:
      A new state.

    Raises:
      ValueError: a name that is not in the state, or is a schedule's; a value that is not finite, a
        negative rate, or an array of another shape.

    Example:
      >>> from fdl.optim import adam
      >>> state = inject_hyperparams(adam)(0.1).init(jnp.zeros(2))
      >>> float(set_hyperparams(state, b2=0.9995).hyperparams["b2"])
      0.9994999766349792
    """
    holders = [part for part in jax.tree.leaves(state, is_leaf=_holds) if _holds(part)]
    for name in values:
        having = [each for each in holders if name in each.hyperparams]
        if len(having) != 1:
            known_names = sorted({key for each in holders for key in each.hyperparams})
            raise ValueError(
                f"set_hyperparams: expected {name!r} in one part of the state, got it in "
                f"{len(having)}; there are {known_names}"
            )

    def renewed(part: Any) -> Any:
        if not _holds(part):
            return part
        own = {name: value for name, value in values.items() if name in part.hyperparams}
        numbers, states = dict(part.hyperparams), dict(part.hyperparams_states)
        for name, value in own.items():
            numbers[name], states[_rest(name)] = _new_value(part, name, value)
        return part._replace(
            hyperparams=numbers,
            hyperparams_states={k: v for k, v in states.items() if v is not None},
        )

    return jax.tree.map(renewed, state, is_leaf=_holds)


class Remainder(NamedTuple):
    """What float32 leaves of a number, and of which: another number in its place has none."""

    of: Any
    low: Any


class WrappedScheduleState(NamedTuple):
    """How often a schedule was read; optax's of this name is not public."""

    count: Any


class CountedSchedule(NamedTuple):
    """A function of a count as a schedule with a state, in optax's protocol."""

    name: str
    schedule: Callable[[Any], Any]

    def init(self) -> WrappedScheduleState:
        """Count 0."""
        return WrappedScheduleState(jnp.zeros((), jnp.int32))

    def update(self, state: Any, **extra_args: Any) -> Any:
        """One more."""
        return state._replace(count=increment(state.count))

    def __call__(self, state: Any, **extra_args: Any) -> Any:
        """The value now."""
        return at(self.name, self.schedule, state.count)


NUMBERS = int | float | np.number | np.ndarray | jax.Array | Hyperparameter


def _injected(
    make: Callable[[dict[str, Any]], GradientTransformationExtraArgs],
    numbers: dict[str, Any],
    schedules: dict[str, Any],
    dtype: Any,
) -> GradientTransformationExtraArgs:
    def scheduled(states: Any, **extra_args: Any) -> dict[str, jax.Array]:
        kind = jnp.result_type(float) if dtype is None else dtype
        return {
            name: jnp.asarray(each(states[name], **extra_args), kind)
            for name, each in schedules.items()
        }

    def init(params: Any) -> InjectStatefulHyperparamsState:
        parts = {name: _stored(value, dtype) for name, value in numbers.items()}
        states = {name: each.init() for name, each in schedules.items()}
        stored = {name: high for name, (high, _) in parts.items()} | scheduled(states)
        states |= {_rest(name): rest for name, (_, rest) in parts.items() if rest is not None}
        inner_state = make(_values(stored, states)).init(params)
        return InjectStatefulHyperparamsState(jnp.zeros((), jnp.int32), stored, states, inner_state)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, InjectStatefulHyperparamsState]:
        states = dict(state.hyperparams_states)
        # Whatever was put in by hand is an array of the same dtype from here on.
        stored = {name: _like(state, name) for name in state.hyperparams}
        stored |= scheduled(states, **extra_args)
        updates, inner_state = make(_values(stored, states)).update(
            updates, state.inner_state, params, **extra_args
        )
        states |= {n: each.update(states[n], **extra_args) for n, each in schedules.items()}
        count = increment(state.count)
        return updates, InjectStatefulHyperparamsState(count, stored, states, inner_state)

    return transformation(init, update)


def _values(stored: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
    """The numbers as the factory is to see them; integers stay integers."""
    values = {}
    for name, high in stored.items():
        rest = states.get(_rest(name))
        if not jnp.issubdtype(jnp.result_type(high), jnp.floating):
            values[name] = high
        elif rest is not None:
            low = jnp.where(rest.of == high, rest.low, jnp.zeros_like(rest.low))
            dtype = jnp.result_type(float)
            values[name] = Hyperparameter(jnp.asarray(high, dtype), jnp.asarray(low, dtype))
        else:
            values[name] = hyperparameter(high)
    return values


def _stored(value: Any, dtype: Any) -> tuple[jax.Array, Remainder | None]:
    """What the state keeps of a number: the number itself, and what float32 leaves of it."""
    if not isinstance(value, Hyperparameter) and not jnp.issubdtype(
        jnp.result_type(value), jnp.floating
    ):
        return jnp.asarray(value), None
    number = hyperparameter(value, dtype)
    return number.high, Remainder(number.high, number.low)


def _like(state: Any, name: str) -> jax.Array:
    rest = state.hyperparams_states.get(_rest(name))
    return jnp.asarray(state.hyperparams[name], None if rest is None else rest.of.dtype)


def _new_value(state: Any, name: str, value: Any) -> tuple[Any, Any]:
    states, old = state.hyperparams_states, jnp.asarray(state.hyperparams[name])
    rest = states.get(_rest(name))
    if name in states:
        raise ValueError(
            f"set_hyperparams: expected a number that is not scheduled, got {name!r}; "
            "its schedule would take its place at once"
        )
    finite = isinstance(value, Hyperparameter | jax.core.Tracer)
    if not finite and not (is_number(value) and np.isfinite(value).all()):
        raise ValueError(
            f"set_hyperparams: expected a finite {name}, got {value}; see what computed it"
        )
    if name == "learning_rate" and known(value):
        check_rate("set_hyperparams", value)
    if not jnp.issubdtype(old.dtype, jnp.floating) and value != int(value):
        raise ValueError(
            f"set_hyperparams: expected a whole number for {name}, got {value}; "
            "give the factory a float to begin with"
        )
    number, kept = _stored(value, old.dtype)
    if jnp.shape(number) not in ((), old.shape):
        raise ValueError(
            f"set_hyperparams: expected {name} of shape {list(old.shape)} or a scalar, got "
            f"{list(jnp.shape(number))}; make a state of many members by jax.vmap(optimizer.init)"
        )
    spread = lambda x: jnp.broadcast_to(jnp.asarray(x, old.dtype), old.shape)  # noqa: E731
    return spread(number), None if rest is None else jax.tree.map(spread, kept)


def _stateful(name: str, schedule: Any) -> Any:
    return schedule if isinstance(schedule, StatefulSchedule) else CountedSchedule(name, schedule)


def _rest(name: str) -> str:
    """Not the name itself, which is to be found once in a state."""
    return f"remainder of {name}"


def _holds(part: Any) -> bool:
    return isinstance(part, InjectStatefulHyperparamsState)
