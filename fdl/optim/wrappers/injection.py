"""Hyper-parameters as leaves of the state, so that changing them needs no new compilation."""

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

from fdl.checks import check_kind, is_concrete_number, is_number
from fdl.ops.double_float import Hyperparameter, hyperparameter
from fdl.optim.checks import check_rates
from fdl.optim.learning_rate import at
from fdl.optim.lifting import increment
from fdl.optim.protocol import transformation


def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: Any = None,
) -> Callable[..., GradientTransformationExtraArgs]:
    """Moves the hyper-parameters of an optimizer into its state, so that they can change.

    Each argument that is a number becomes a leaf of `state.hyperparams`, and `set_hyperparams`
    changes it. A compiled step uses the new value without a new compilation, and the members of a
    `vmap` can have different values. A schedule can replace any number. The updates are equal to
    those of an optimizer whose numbers are constants; see `Hyperparameter`.

    Args:
      inner_factory: a factory of optimizers, of fdl or optax.
      static_args: names of arguments to leave out of the state, such as functions that are not
        schedules. Bools, strings, dtypes, None and masks that are path patterns are always left
        out.
      hyperparam_dtype: dtype of the floating-point numbers in the state; by default float32, or
        float64 under `jax.enable_x64`. Integers and `Hyperparameter`s keep their dtypes.

    Returns:
      A factory with the same arguments. Its optimizers have the state
      `optax.InjectStatefulHyperparamsState`, so `optax.tree_utils.tree_get(state, name)` and
      `tree_set` find a number by its name. (As in optax, they find a schedule twice: its value and
      its count.) Under the key "remainder of NAME", `hyperparams_states` holds the rounded
      value of the number NAME and its rounding error. If this key is missing, as in a state made by
      optax, fdl uses 0 as the error.

    Raises:
      ValueError: `inner_factory` is not callable; static_args contains a name that is not an
        argument of `inner_factory`. The returned factory raises the errors of `inner_factory`.

    Example:
      >>> from fdl.optim import sgd
      >>> optimizer = inject_hyperparams(sgd)(learning_rate=0.5)
      >>> state = set_hyperparams(optimizer.init(jnp.array(0.0)), learning_rate=0.25)
      >>> float(optimizer.update(jnp.array(1.0), state)[0])
      -0.25

    Source: `optax.inject_hyperparams`. Unlike here, 1 - b2 in optax has a relative error of 1.3e-5
    at b2 = 0.999.
    """
    if not callable(inner_factory):
        raise ValueError(
            f"inject_hyperparams: expected a factory of optimizers, got {inner_factory!r}; call "
            "it as inject_hyperparams(sgd)(0.1)"
        )
    signature = inspect.signature(inner_factory)
    static = _static_names(static_args, inner_factory)

    @functools.wraps(inner_factory)
    def factory(*args: Any, **kwargs: Any) -> GradientTransformationExtraArgs:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return inner_factory(*args, **kwargs)  # raises an error that names the factory
        bound.apply_defaults()
        moving = {
            name: value
            for name, value in bound.arguments.items()
            # A dtype is callable, but it is not a schedule.
            if name not in static and not isinstance(value, bool | type)
        }
        schedules = {each: _stateful(each, f) for each, f in moving.items() if callable(f)}
        numbers = {name: value for name, value in moving.items() if isinstance(value, NUMBERS)}

        def make(values: dict[str, Any]) -> GradientTransformationExtraArgs:
            filled = inspect.BoundArguments(signature, {**bound.arguments, **values})
            return with_extra_args_support(inner_factory(*filled.args, **filled.kwargs))

        # This call makes the factory check its arguments. Later, the numbers can be traced, and
        # traced numbers are not checked.
        make({name: hyperparameter(s(s.init())) for name, s in schedules.items()})
        return _injected(make, numbers, schedules, hyperparam_dtype)

    return factory


def set_hyperparams(state: Any, **values: Any) -> Any:
    """Changes hyper-parameters in a state. A compiled step does not have to be compiled again.

    Args:
      state: a state of `inject_hyperparams`, or a state that contains one, such as the state of a
        chain.
      values: name -> new value, which is a number or a `Hyperparameter`. If the state was made by
        `jax.vmap(optimizer.init)`, the value can also be an array with one number for each member.
        Use a NumPy array of dtype float64 for full precision.

    Returns:
      A new state.

    Raises:
      ValueError: a name is not in the state, is in it twice, or belongs to a schedule; a value is
        not finite (not checked for a `Hyperparameter`); a learning rate is negative; the state
        holds an integer and the value is not whole; an array does not have the shape of the leaf in
        the state.

    Example:
      >>> from fdl.optim import adam
      >>> state = inject_hyperparams(adam)(0.1).init(jnp.zeros(2))
      >>> float(set_hyperparams(state, b2=0.9995).hyperparams["b2"])
      0.9994999766349792
    """
    holders = [part for part in jax.tree.leaves(state, is_leaf=_holds) if _holds(part)]
    for name in values:
        number = sum(name in part.hyperparams for part in holders)
        if number != 1:
            names = sorted({key for part in holders for key in part.hyperparams})
            raise ValueError(
                f"set_hyperparams: expected {name!r} in exactly one part of the state, got it in "
                f"{number} parts; the names in this state are {names}"
            )

    def renewed(part: Any) -> Any:
        if not _holds(part):
            return part
        numbers, states = dict(part.hyperparams), dict(part.hyperparams_states)
        for name in [name for name in values if name in part.hyperparams]:
            numbers[name], states[_rest(name)] = _new_value(part, name, values[name])
        return part._replace(
            hyperparams=numbers,
            hyperparams_states={k: v for k, v in states.items() if v is not None},
        )

    return jax.tree.map(renewed, state, is_leaf=_holds)


class Remainder(NamedTuple):
    """A number in two parts: `of`, rounded to the dtype of the state; `low`, the rounding error."""

    of: Any
    low: Any


class WrappedScheduleState(NamedTuple):
    """The count of a schedule. optax has a type of the same name, which is not public."""

    count: Any


class CountedSchedule(NamedTuple):
    """A schedule in the form of optax's `StatefulSchedule`. The state is the count."""

    name: str
    schedule: Callable[[Any], Any]

    def init(self) -> WrappedScheduleState:
        """The first state: the count 0."""
        return WrappedScheduleState(jnp.zeros((), jnp.int32))

    def update(self, state: Any, **extra_args: Any) -> Any:
        """The next state: the count plus 1."""
        return state._replace(count=increment(state.count))

    def __call__(self, state: Any, **extra_args: Any) -> Any:
        """The value of the schedule at the count that the state holds."""
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
            name: jnp.asarray(schedule(states[name], **extra_args), kind)
            for name, schedule in schedules.items()
        }

    def init(params: Any) -> InjectStatefulHyperparamsState:
        parts = {name: _stored(value, dtype) for name, value in numbers.items()}
        states = {name: schedule.init() for name, schedule in schedules.items()}
        stored = {name: high for name, (high, _) in parts.items()} | scheduled(states)
        states |= {_rest(name): rest for name, (_, rest) in parts.items() if rest is not None}
        inner_state = make(_values(stored, states)).init(params)
        return InjectStatefulHyperparamsState(jnp.zeros((), jnp.int32), stored, states, inner_state)

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, InjectStatefulHyperparamsState]:
        states = dict(state.hyperparams_states)
        # A user may have written a number into the state. If the number there had a remainder, the
        # new one becomes an array of the old dtype.
        stored = {name: _like(state, name) for name in state.hyperparams}
        stored |= scheduled(states, **extra_args)
        updates, inner_state = make(_values(stored, states)).update(
            updates, state.inner_state, params, **extra_args
        )
        states |= {n: s.update(states[n], **extra_args) for n, s in schedules.items()}
        count = increment(state.count)
        return updates, InjectStatefulHyperparamsState(count, stored, states, inner_state)

    return transformation(init, update)


def _values(stored: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the factory: integers unchanged, floating numbers as `Hyperparameter`."""
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
    """(the number in the dtype of the state, its remainder). An integer has the remainder None."""
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
            f"set_hyperparams: expected a number without a schedule, got {name!r}; build the "
            "optimizer with a number, because a schedule would overwrite the value"
        )
    finite = isinstance(value, Hyperparameter | jax.core.Tracer)
    if not finite and not (is_number(value) and np.isfinite(value).all()):
        raise ValueError(
            f"set_hyperparams: expected a finite {name}, got {value}; pass a finite number"
        )
    if name == "learning_rate" and is_concrete_number(value):
        check_rates("set_hyperparams", learning_rate=value)
    if not jnp.issubdtype(old.dtype, jnp.floating) and value != int(value):
        raise ValueError(
            f"set_hyperparams: expected a whole number for {name}, got {value}; if it should be a "
            "float, pass a float to the factory"
        )
    number, kept = _stored(value, old.dtype)
    if jnp.shape(number) not in ((), old.shape):
        raise ValueError(
            f"set_hyperparams: expected {name} of shape {list(old.shape)} or a scalar, got "
            f"{list(jnp.shape(number))}; for one value per member, make the state with "
            "jax.vmap(optimizer.init)"
        )
    spread = lambda x: jnp.broadcast_to(jnp.asarray(x, old.dtype), old.shape)  # noqa: E731
    return spread(number), None if rest is None else jax.tree.map(spread, kept)


def _stateful(name: str, schedule: Any) -> Any:
    return schedule if isinstance(schedule, StatefulSchedule) else CountedSchedule(name, schedule)


def _rest(name: str) -> str:
    """The key of the remainder. With the plain name, `tree_get` would find two values."""
    return f"remainder of {name}"


def _holds(part: Any) -> bool:
    return isinstance(part, InjectStatefulHyperparamsState)


def _static_names(static_args: Any, inner_factory: Callable[..., Any]) -> set[str]:
    """The names in `static_args`; raises unless they are arguments of the factory."""
    named = [static_args] if isinstance(static_args, str) else static_args
    form, example = "names of arguments", "pass static_args=('mask',), for example"
    check_kind("inject_hyperparams", "static_args", named, Iterable, form, example)
    known = list(inspect.signature(inner_factory).parameters)
    unknown = sorted(str(name) for name in named if name not in known)
    if unknown:
        raise ValueError(
            f"inject_hyperparams: expected static_args among {known}, got {unknown}; pass names of "
            f"arguments of {inner_factory.__name__}"
        )
    return set(named)
