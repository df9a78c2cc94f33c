"""Layouts: how each array of a run is split over a mesh of devices, by rules for paths.

A mesh is a grid of devices with named axes, such as data=4, model=2. A rule is a pattern of paths
and a `PartitionSpec`, which names a mesh axis for each axis of an array: with `P(None, "model")`,
each device holds all rows and half of the columns.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fdl import paths
from fdl.checks import check_count, described
from fdl.core.repetition import FEW
from fdl.ops.sharding import EXPERT, put
from fdl.train.result import Result
from fdl.train.run import Run

# The default mesh axes over which batches and sequences are split.
BATCH = "data"
SEQUENCE = "sequence"


def mesh(**axes: int) -> Mesh:
    """A grid of the devices of all processes, with named axes.

    Args:
      axes: the name and size of each axis, such as data=4, model=2. Neighbours along the last axis
        have the fastest links, so put the axis that communicates most last. Batches are split over
        the axis `data`. Presets also use `model` and `expert`, and `ring_attention` uses
        `sequence`.

    Returns:
      A `jax.sharding.Mesh` with the first devices of `jax.devices()`, as many as the product of the
      sizes.

    Raises:
      OptionError: a size is not an int >= 1.
      ValueError: there is no axis; there are fewer devices than the product of the sizes; or, on
        several processes, there are more.

    Example:
      >>> mesh(data=1, model=1).axis_names
      ('data', 'model')
    """
    for name, size in axes.items():
        check_count("mesh", name, size, "pass the number of devices along this axis")
    wanted, found = math.prod(axes.values()), jax.device_count()
    if not axes or wanted > found or (wanted < found and jax.process_count() > 1):
        processes = jax.process_count()
        several = f"those of {processes} processes" if processes > 1 else "or fewer"
        raise ValueError(
            f"mesh: expected axes whose sizes multiply to {found} devices, {several}, "
            f"got {_named(axes) or 'none'}; to try it on a CPU, set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={max(wanted, 2)}"
        )
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layout:
    """How the arrays of a run are split over a mesh; made by `layout` and the presets.

    It is part of the structure of a run, not an array; jit compiles a program for each layout.

    Args:
      mesh: the devices.
      rules: pairs (pattern, spec); the first pattern that matches the path of a parameter applies.
        A parameter that no pattern matches is whole on every device.
      batch: the mesh axes over which the examples of a batch are split.
      sequence: the mesh axes over which the second axis of a batch's arrays, such as the tokens of
        [B, T], is split, if they divide it.
    """

    mesh: Mesh
    rules: tuple[tuple[str, PartitionSpec], ...]
    batch: tuple[str, ...]
    sequence: tuple[str, ...] = ()

    def __repr__(self) -> str:
        rules = ", ".join(f"{pattern!r}: {_text(spec)}" for pattern, spec in self.rules)
        return f"<Layout on {_named(self.mesh.shape)}: {paths.shortened(rules, 300) or 'no rules'}>"

    def spec(self, path: str) -> PartitionSpec:
        """The spec of a parameter.

        Args:
          path: the path of the parameter.

        Returns:
          The spec of the first rule that matches the path; `PartitionSpec()` if none does.
        """
        found = (spec for pattern, spec in self.rules if paths.matches(pattern, path))
        return next(found, PartitionSpec())

    def shardings(self, run: Run) -> Run:
        """The sharding of each array of a run.

        An array of the optimizer's state whose path ends with the path of a parameter, and whose
        last axes are those of the parameter, is split like the parameter. All other arrays outside
        of the params are whole on every device.

        Args:
          run: a run, or its shapes and dtypes.

        Returns:
          A run of `jax.sharding.NamedSharding`s. With these as `out_shardings`, a function under
          `jax.jit` can make a run that no single device could hold.
        """
        of_params = {path: np.shape(leaf) for path, leaf in paths.leaves(run.params).items()}

        def of_state(keys: Any, leaf: Any) -> NamedSharding:
            return self._named(self._following(paths.path_of(keys), np.shape(leaf), of_params))

        by_path = jax.tree_util.tree_map_with_path
        whole = lambda tree: jax.tree.map(lambda _: self._named(PartitionSpec()), tree)  # noqa: E731
        return run._replace(
            params=by_path(lambda keys, _: self._named(self.spec(paths.path_of(keys))), run.params),
            state=whole(run.state),
            opt_state=by_path(of_state, run.opt_state),
            step=whole(run.step),
            seed=whole(run.seed),
        )

    def keep(self, run: Run) -> Run:
        """Inside a compiled program: the run, laid out by this layout."""
        return jax.lax.with_sharding_constraint(run, self.shardings(run))

    def gathering(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Inside a compiled program: f(params, ...), which gathers parameters when it uses them.

        These are the parameters that are split over the same mesh axes as the batch. Each is
        gathered when f uses it, and once more in the backward pass, so that a device never holds
        all of them at the same time. The result of f does not change. The blocks of a long `repeat`
        are not gathered here, because all of them would be gathered at once: the compiler gathers
        each block inside the scan.
        """
        f, apart = self.on_mesh(f), {*self.batch} - {EXPERT}
        if self.parts == 1 or not any(apart & {*_axes(spec)} for _, spec in self.rules):
            return f

        def of_path(scanned: set[str], keys: Any, leaf: Any) -> Any:
            path = paths.path_of(keys)
            spec = self.spec(path)
            if path in scanned or not apart & {*_axes(spec)}:
                return leaf
            rest = PartitionSpec(*(None if apart & {*_names(part)} else part for part in spec))
            return jax.lax.with_sharding_constraint(leaf, self._named(rest))

        def gathered(params: Any, *rest: Any) -> Any:
            of = functools.partial(of_path, _in_long_repeats([*paths.leaves(params)]))
            return f(jax.tree_util.tree_map_with_path(of, params), *rest)

        return jax.checkpoint(gathered, policy=_but_gathered)

    def on_mesh(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """f; if the mesh splits sequences or experts, layers can read it while f is traced."""

        def traced(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return f(*args)

        return traced if self.sequence or EXPERT in self.mesh.axis_names else f

    def everywhere(self, tree: Any) -> Any:
        """Inside a compiled program: the tree, with all its arrays whole on every device."""
        whole = self._named(PartitionSpec())
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole), tree)

    def cut(self, batch: Any, axis: int = 0) -> Any:
        """Inside a compiled program: the batch, split over the devices.

        Args:
          batch: a pytree of arrays.
          axis: the axis of the examples. The next axis is split over the mesh axis `sequence`, if
            its size can be divided.

        Raises:
          ValueError: the number of devices over which batches are split does not divide the axis.
        """
        parts = self.parts
        for path, leaf in paths.leaves(batch).items():
            if leaf.shape[axis] % parts:
                at = f" at {paths.quoted(path)}" if path else ""
                raise ValueError(
                    f"fit: expected batches that {parts} devices can share equally, on the mesh "
                    f"{_named(self.mesh.shape)}, got {leaf.shape[axis]} examples{at} "
                    f"{list(leaf.shape)}; choose a batch_size, or a microbatch, that is a multiple "
                    f"of {parts}"
                )
        cuts = jax.tree.map(lambda leaf: self._rows(axis, leaf.shape), batch)
        return jax.lax.with_sharding_constraint(batch, cuts)

    def spread(self, rows: Any) -> Any:
        """Inside a compiled program: the rows, split if the devices can share them equally."""
        fit = all(leaf.shape[0] % self.parts == 0 for leaf in jax.tree.leaves(rows))
        return self.cut(rows) if fit else rows

    def put_everywhere(self, tree: Any) -> Any:
        """Copies arrays to every device, except arrays already on all devices of the mesh."""
        whole, devices = self._named(PartitionSpec()), set(self.mesh.devices.flat)

        def placed(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.core.Tracer):
                return leaf
            there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
            return leaf if there else put(leaf, whole)

        return jax.tree.map(placed, tree)

    def own(self, batch_size: int) -> np.ndarray:
        """The indices of the examples of a batch that the devices of this process hold."""
        rows = self._rows(0).addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[index] for index in rows]))

    def put_stack(self, batches: Any, batch_size: int) -> Any:
        """Puts batches on the devices; each device gets its own examples.

        Args:
          batches: a pytree of arrays [K, C, ...]: for each of K batches, the C examples that `own`
            lists.
          batch_size: B, the number of examples of a whole batch.

        Returns:
          A pytree of arrays [K, B, ...].
        """

        def placed(leaf: np.ndarray) -> jax.Array:
            shape = leaf.shape[0], batch_size, *leaf.shape[2:]
            return jax.make_array_from_process_local_data(self._rows(1), leaf, shape)

        return jax.tree.map(placed, batches)

    @property
    def parts(self) -> int:
        """The number of parts into which a batch is split."""
        return math.prod(self.mesh.shape[name] for name in self.batch)

    def _rows(self, axis: int, shape: tuple[int, ...] = ()) -> NamedSharding:
        """The sharding that splits an axis over the devices of the batch.

        If `shape` is given, the next axis is split over `sequence`, if its size can be divided.
        """
        parts = math.prod(self.mesh.shape[name] for name in self.sequence)
        tokens = len(shape) > axis + 1 and shape[axis + 1] % parts == 0
        after = self.sequence or None if tokens else None
        return self._named(PartitionSpec(*(None,) * axis, self.batch or None, after))

    def _named(self, spec: PartitionSpec) -> NamedSharding:
        parts = list(spec)
        # jit compares specs with those of the compiler, which never end with None.
        while parts and parts[-1] is None:
            parts.pop()
        return NamedSharding(self.mesh, PartitionSpec(*parts))

    def _following(
        self, path: str, shape: tuple[int, ...], params: Mapping[str, tuple[int, ...]]
    ) -> PartitionSpec:
        """The spec of an array of the optimizer's state."""
        levels = path.split("/")
        for start in range(len(levels) + 1):
            end = "/".join(levels[start:])
            if end in params:
                more = len(shape) - len(params[end])
                fits = more >= 0 and shape[more:] == params[end]
                return PartitionSpec(*(None,) * more, *self.spec(end)) if fits else PartitionSpec()
        return PartitionSpec()


def layout(
    mesh: Mesh, rules: Mapping[str, PartitionSpec], *, batch: str | tuple[str, ...] | None = None
) -> Layout:
    """A layout with your own rules.

    Args:
      mesh: from `mesh`.
      rules: a dict, pattern -> `jax.sharding.PartitionSpec`. The first pattern that matches the
        path of a parameter applies. A parameter that no pattern matches is whole on every device.
        See `fdl.paths.matches` for patterns.
      batch: the mesh axes over which the examples of a batch are split; by default "data", if the
        mesh has an axis of this name.

    Returns:
      A layout, for `place`. If the mesh has an axis `sequence`, it also cuts the second axis of the
      arrays of a batch, such as the tokens of [B, T], where their sizes can be divided.

    Raises:
      ValueError: a spec names an axis that the mesh does not have, or names it twice.

    Example:
      >>> from jax.sharding import PartitionSpec as P
      >>> layout(mesh(data=1, model=1), {"**/q/w": P(None, "model")})
      <Layout on data=1, model=1: '**/q/w': P(None, 'model')>

    Source: the specs are those of Xu et al. 2021, "GSPMD", arXiv 2105.04663.
    """
    if batch is None:
        batch = (BATCH,) if BATCH in mesh.axis_names else ()
    names = (batch,) if isinstance(batch, str) else tuple(batch)
    _check_axes("the batch", names, mesh)
    for pattern, spec in rules.items():
        if not isinstance(spec, PartitionSpec):
            raise ValueError(
                f"layout: expected a jax.sharding.PartitionSpec for {paths.quoted(pattern)}, got "
                f"{described(spec)}; write P(None, 'model'), for example"
            )
        _check_axes(f"the rule {paths.quoted(pattern)}", _axes(spec), mesh)
    sequence = (SEQUENCE,) if SEQUENCE in mesh.axis_names and SEQUENCE not in names else ()
    return Layout(mesh, tuple(rules.items()), names, sequence)


def place(run: Run | Result, layout: Layout) -> Any:
    """Puts a run on the devices of a layout, for `fit`, `evaluate`, checkpoints and the rest.

    Args:
      run: a run, or a result of `fit`. It may already have another layout.
      layout: from `layout`, `data_parallel`, `fsdp`, `tensor_parallel` or `expert_parallel`.

    Returns:
      The same run, or result, on the devices of the layout. Its values do not change, its
      optimizer's state is split like its parameters, and each step splits its batch.

      `fit` copies data to every device, except arrays that are on all devices of the mesh. To hold
      only some of the rows on each host, use `jax.make_array_from_process_local_data`.

    Raises:
      ValueError: a rule matches no parameter (the message lists similar paths), or names a mesh
        axis that does not divide the axis of a parameter (the message gives path, shape and mesh).

    Example:
      >>> import fdl, jax.numpy as jnp
      >>> from fdl.distributed import data_parallel
      >>> objective = fdl.plain(lambda w, batch: ((w - batch) ** 2).mean())
      >>> run = place(fdl.start(jnp.array(0.0), fdl.sgd(0.5)), data_parallel(mesh(data=1)))
      >>> result = fdl.fit(objective, fdl.sgd(0.5), run, jnp.ones(8), batch_size=4, steps=1)
      >>> float(result.run.params)
      1.0
    """
    if isinstance(run, Result):
        return run._replace(run=place(run.run, layout))
    shapes = {path: np.shape(leaf) for path, leaf in paths.leaves(run.params).items()}
    paths.pick(shapes, [pattern for pattern, _ in layout.rules])
    for path, shape in shapes.items():
        _check_divides(path, shape, layout)
    placed = jax.tree.map(put, run, layout.shardings(run))
    return placed._replace(layout=layout)


def _in_long_repeats(found: list[str]) -> set[str]:
    """The paths of parameters inside a `repeat` of more than FEW blocks, which is scanned."""
    numbers: dict[str, set[str]] = {}  # path of a repeat -> its numbers
    repeats: dict[str, list[str]] = {}  # path of a parameter -> paths of the repeats around it
    for path in found:
        levels = path.split("/")
        for place, level in enumerate(levels):
            if level.isdecimal():
                above = "/".join(levels[:place])
                numbers.setdefault(above, set()).add(level)
                repeats.setdefault(path, []).append(above)
    return {path for path in repeats if any(len(numbers[above]) > FEW for above in repeats[path])}


def _but_gathered(primitive: Any, *args: Any, **options: Any) -> bool:
    """A policy of `jax.checkpoint` that keeps everything for the backward pass except gathers."""
    return bool(primitive.name != "sharding_constraint")


def _check_axes(what: str, names: tuple[str, ...], mesh: Mesh) -> None:
    for name in names:
        if name not in mesh.axis_names or names.count(name) > 1:
            raise ValueError(
                f"layout: expected axes of the mesh {_named(mesh.shape)}, each at most once, for "
                f"{what}, got {', '.join(map(repr, names))}; correct the names, or add the axis to "
                "the mesh"
            )


def _check_divides(path: str, shape: tuple[int, ...], layout: Layout) -> None:
    """Raises unless each mesh axis divides the axis of the parameter that it splits."""
    spec, sizes = layout.spec(path), layout.mesh.shape
    if len(spec) > len(shape):
        raise ValueError(
            f"place: expected a parameter with {len(spec)} or more axes for {_text(spec)}, got "
            f"{paths.quoted(path)} {list(shape)} on the mesh {_named(sizes)}; put a rule that "
            "matches only this path before this rule"
        )
    for size, names in zip(shape, spec, strict=False):
        parts = math.prod(sizes[name] for name in _names(names))
        if size % parts:
            raise ValueError(
                f"place: expected a shape that {_text(spec)} can split on the mesh "
                f"{_named(sizes)}, got {paths.quoted(path)} {list(shape)}, where {size} is not a "
                f"multiple of {parts}; change the size, or put a rule that matches only this path "
                "before this rule"
            )


def _axes(spec: PartitionSpec) -> tuple[str, ...]:
    """All mesh axes that a spec names."""
    return tuple(name for part in spec for name in _names(part))


def _names(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that a spec names for one axis of an array."""
    return (part,) if isinstance(part, str) else part or ()


def _named(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _text(spec: PartitionSpec) -> str:
    return f"P({', '.join(map(repr, spec))})"
