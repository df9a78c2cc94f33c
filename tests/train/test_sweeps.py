"""Sweeps: members are solo runs, the formula tells what they must find, mistakes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl.look import best_curves, comparison_table, rate_sensitivity
from tests.toys import running_mean

at_any_rate = pytest.mark.filterwarnings("ignore:compare_optimizers. expected the best rate of")
SQUARE = fdl.plain(lambda w, batch: jnp.mean((w - batch) ** 2))
ONES = np.ones(8, np.float32)


def from_zero(seed):
    return jnp.zeros(()), {}


def compare(optimizers, rates, **more):
    """The square, whose loss before step t of gradient descent is (1 - 2 rate)^(2 (t - 1))."""
    given = {"seeds": [0, 1], "batch_size": 4, "steps": 6, "record_every": 1, **more}
    return fdl.compare_optimizers(SQUARE, from_zero, ONES, optimizers, rates=rates, **given)


def problem(dtype="float32"):
    """A small tanh network, data for it, and the parameters of a seed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3)).astype(dtype)
    data = (jnp.asarray(x), jnp.asarray(np.sin(x @ rng.standard_normal((3, 2))), dtype))
    model = fdl.mlp([5, 4], 2, activation=fdl.tanh)
    objective = fdl.supervised(model, fdl.squared_error)
    return objective, lambda seed: model.init(jax.random.key(seed), x[:1]), data


def alone(objective, make, begun, data, seed, rate, steps, batch_size=8):
    """The run of one network of the grid; the rate is an argument of its program."""
    params, state = begun
    run = fdl.start(params, make(rate), state=state, seed=seed)

    def step(run, _):
        run, means = fdl.train_step(objective, make(rate), run, data, batch_size)
        return run, means["loss"].value()

    return jax.lax.scan(step, run, None, steps)


# Members and solo runs.


def test_each_of_64_rates_is_its_solo_run():
    """After 100 steps in float64; all for one trace of the objective."""
    traced = []
    with jax.enable_x64(True):
        objective, init, data = problem("float64")

        def counted(*args):
            traced.append(args)
            return objective(*args)

        rates, seeds, begun = np.logspace(-4, -1, 64), [3], init(3)
        trained = fdl.sweep(
            *(counted, init, fdl.optim.adam, {"learning_rate": rates}, data),
            **{"seeds": seeds, "batch_size": 8, "steps": 100, "record_every": 25},
        )
        assert len(traced) == 1
        solo = jax.jit(
            lambda rate: alone(objective, fdl.optim.adam, begun, data, seeds[0], rate, 100)
        )
        for number, rate in enumerate(rates):
            run, losses = solo(rate)
            for mine, other, first in zip(
                *map(jax.tree.leaves, (trained.run.params, run.params, begun[0])), strict=True
            ):
                moved = np.abs(other - first).max()
                assert np.abs(mine[number, 0] - other).max() <= 1e-10 * moved, rate
            np.testing.assert_allclose(
                trained.curves["loss"][number, 0], losses.reshape(4, 25).mean(1), rtol=1e-10
            )


def test_each_step_of_64_rates_is_its_solo_step():
    """In float32, from the same values: the difference over the largest value of the update."""
    objective, init, data = problem()
    begun = init(0)
    rates = jnp.logspace(-4, -1, 64)
    together = jax.vmap(lambda rate: alone(objective, fdl.optim.adam, begun, data, 0, rate, 7)[0])
    run = jax.device_get(jax.jit(together)(rates))

    def step(rate, run):
        return fdl.train_step(objective, fdl.optim.adam(rate), run, data, 8)[0]

    after = jax.jit(jax.vmap(step))(rates, run)
    solo = jax.jit(step)
    for number, rate in enumerate(rates):
        member = jax.tree.map(lambda leaf: leaf[number], run)
        expected = solo(rate, member).params
        for mine, other in zip(*map(jax.tree.leaves, (after.params, expected)), strict=True):
            np.testing.assert_allclose(mine[number], other, rtol=0, atol=1e-6)


@at_any_rate
@pytest.mark.parametrize("side", ["fdl", "optax"])
def test_members_are_runs_of_fit(side, standard_promotion):
    """Each seed with its own parameters and batches, a network with state, a ragged last record."""
    _, _, data = problem()
    model = fdl.chain(running_mean(), fdl.dense(4), fdl.tanh, fdl.dense(2))
    objective = fdl.supervised(model, fdl.squared_error, error=fdl.squared_error)
    library = {"fdl": fdl, "optax": optax}[side]

    def make(rate):
        return library.sgd(rate, momentum=0.9, nesterov=True)

    def init(seed):
        return model.init(jax.random.key(seed), data[0][:1])

    how = {"batch_size": 16, "steps": 11, "record_every": 4}
    found = fdl.compare_optimizers(
        *(objective, init, data, {"it": make}),
        **(how | {"rates": [0.001, 0.02, 0.4], "seeds": [5, 2], "validation": data}),
    )["it"]
    assert found.steps.tolist() == [4, 8, 11]
    assert found.rates.tolist() == [0.001, 0.02, 0.4] and found.seeds.tolist() == [5, 2]
    for place, seed in enumerate([5, 2]):
        params, state = init(seed)
        run = fdl.start(params, make(0.02), state=state, seed=seed)
        history = fdl.fit(objective, make(0.02), run, data, validation=data, **how).history
        for name, curve in found.curves.items():
            expected = [record[name] for record in history]
            np.testing.assert_allclose(curve[1, place], expected, rtol=2e-5, err_msg=name)
    assert set(found.curves) == {"loss", "error", "val_loss", "val_error"}
    assert abs(found.curves["loss"][:, 0] - found.curves["loss"][:, 1]).min() > 1e-3


@at_any_rate
def test_seeds_differ_in_batches_where_the_parameters_are_given():
    objective, init, data = problem()
    begun = init(0)
    found = fdl.compare_optimizers(
        *(objective, lambda seed: begun, data, {"sgd": fdl.sgd}),
        **{"rates": [0.1], "seeds": [0, 1], "batch_size": 4, "steps": 10, "record_every": 5},
    )["sgd"]
    first, second = found.curves["loss"][0]
    assert (first != second).all()


@at_any_rate
def test_a_line_search_of_many_members(standard_promotion):
    """Its loops run until all members are done; each member finds what it finds alone."""
    objective, init, data = problem()
    search = optax.scale_by_backtracking_linesearch(8)
    make = functools.partial(optax.lbfgs, memory_size=2, linesearch=search)
    begun = init(0)
    found = fdl.compare_optimizers(
        *(objective, lambda seed: begun, data, {"lbfgs": make}),
        **{"rates": [0.01, 0.3, 1.0], "seeds": [7], "batch_size": 40, "steps": 12},
        record_every=1,
    )["lbfgs"]
    losses = jax.jit(lambda rate: alone(objective, make, begun, data, 7, rate, 12, 40)[1])
    for rate, curve in zip(found.rates, found.curves["loss"], strict=True):
        np.testing.assert_allclose(curve[0], losses(np.float32(rate)), rtol=2e-3)
    assert found.final("loss")[1, 0] < 0.5 * found.curves["loss"][1, 0, 0]


@at_any_rate
def test_one_that_diverges_changes_nothing_in_the_others():
    objective, init, data = problem()
    how = {"seeds": [0, 1], "batch_size": 8, "steps": 20, "record_every": 10, "validation": data}
    race = functools.partial(fdl.compare_optimizers, objective, init, data, **how)
    with_one = race({"sgd": fdl.sgd}, rates=[1e-3, 0.1, 1e18])["sgd"]
    without = race({"sgd": fdl.sgd}, rates=[1e-3, 0.01, 0.1, 0.2])["sgd"]
    assert with_one.diverged().tolist() == [[False] * 2, [False] * 2, [True] * 2]
    assert not without.diverged().any()
    assert with_one.best == 1
    for name, curve in with_one.curves.items():
        np.testing.assert_allclose(curve[:2], without.curves[name][[0, 2]], rtol=1e-5)
    assert "2 of 6" in comparison_table({"sgd": with_one})
    rate_sensitivity({"sgd": with_one}).draw_without_rendering()
    gone = compare({"sgd": fdl.sgd}, [1e30])["sgd"]
    assert gone.best is None and gone.diverged().all()
    row = comparison_table({"sgd": gone}).splitlines()[1].split()
    assert row[:5] == ["sgd", "none", "diverged", "2", "of"]
    for picture in (rate_sensitivity, best_curves):
        figure = picture({"sgd": gone})
        figure.draw_without_rendering()
        assert figure.axes[0].get_title() == "sgd\ndiverged"


@at_any_rate
def test_schedule_free_is_tested_at_its_average(standard_promotion):
    objective, init, data = problem()
    how = {"batch_size": 8, "steps": 15, "record_every": 15, "validation": data}
    make = fdl.optim.schedule_free_sgd
    found = fdl.compare_optimizers(
        *(objective, init, data, {"it": lambda rate: optax.chain(make(rate))}),
        **(how | {"rates": [0.05], "seeds": [4]}),
    )["it"]
    run, _ = jax.jit(lambda: alone(objective, make, init(4), data, 4, 0.05, 15))()
    x = optax.contrib.schedule_free_eval_params(run.opt_state, run.params)
    tested = fdl.evaluate(objective, x, data)["loss"]
    trained = fdl.evaluate(objective, run.params, data)["loss"]
    np.testing.assert_allclose(found.final("val_loss"), tested, rtol=1e-5)
    assert abs(tested - trained) > 1e-3 * tested


def momentum(learning_rate, momentum):
    return fdl.sgd(learning_rate, momentum=momentum)


GRID = {"learning_rate": [0.001, 0.02, 0.4], "momentum": [0.0, 0.9]}


@pytest.mark.parametrize("form", ["grid", "list"])
def test_members_of_a_sweep_are_runs_of_fit(form):
    """Two hyper-parameters, a network with state, validation; each member is a run that goes on."""
    _, _, data = problem()
    model = fdl.chain(running_mean(), fdl.dense(4), fdl.tanh, fdl.dense(2))
    objective = fdl.supervised(model, fdl.squared_error, error=fdl.absolute_error)
    init = lambda seed: model.init(jax.random.key(seed), data[0][:1])  # noqa: E731
    listed = [
        {"learning_rate": rate, "momentum": m}
        for rate in GRID["learning_rate"]
        for m in GRID["momentum"]
    ]
    how = {"batch_size": 16, "steps": 11, "record_every": 4, "validation": data}
    settings = GRID if form == "grid" else listed
    found = fdl.sweep(objective, init, momentum, settings, data, seeds=[5, 2], **how)
    assert found.settings == listed
    assert found.stopped.tolist() == [11] * 6
    for place, setting in [(1, listed[1]), (2, listed[2])]:
        optimizer = momentum(**setting)
        params, state = init(2)
        run = fdl.start(params, optimizer, state=state, seed=2)
        alone = fdl.fit(objective, optimizer, run, data, **how)
        member = found.member(place, seed=1)
        assert jax.tree.structure(member) == jax.tree.structure(alone.run)
        for mine, other in zip(*map(jax.tree.leaves, (member, alone.run)), strict=True):
            assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
            np.testing.assert_allclose(mine, other, rtol=2e-4, atol=1e-5)
        for name, curve in found.curves.items():
            expected = [record[name] for record in alone.history]
            np.testing.assert_allclose(curve[place, 1], expected, rtol=2e-5, err_msg=name)
        assert fdl.evaluate(objective, member, data)["loss"] == pytest.approx(
            found.final("val_loss")[place, 1], rel=1e-5
        )
        further = fdl.fit(objective, optimizer, member, data, batch_size=16, steps=12)
        assert int(further.run.step) == 12


def test_settings_stop_at_rungs_and_the_others_go_on_unchanged():
    """The square: the nearer the rate is to 0.5, the better; the rungs keep a third each time."""
    rates = [0.01, 0.02, 0.4, 0.1, 0.3, 0.05, 0.9, 0.2, 1e30]
    how = {"seeds": [0, 1], "batch_size": 4, "steps": 8, "record_every": 2}
    whole = fdl.sweep(SQUARE, from_zero, fdl.sgd, {"learning_rate": rates}, ONES, **how)
    halved = fdl.sweep(
        *(SQUARE, from_zero, fdl.sgd, {"learning_rate": rates}, ONES), rungs=[2, 5], **how
    )
    assert halved.steps.tolist() == [2, 4, 5, 6, 8]
    assert halved.stopped.tolist() == [2, 2, 8, 2, 5, 2, 2, 5, 2]
    assert halved.settings[halved.best]["learning_rate"] == 0.4
    for name, curve in halved.curves.items():
        for place, stopped in enumerate(halved.stopped):
            assert np.isnan(curve[place][:, halved.steps > stopped]).all()
        assert np.isfinite(curve[:-1, :, 0]).all()
        same = np.isin(halved.steps, [2, 4])
        np.testing.assert_allclose(curve[2][:, same], whole.curves[name][2][:, :2], rtol=1e-6)
    for place, stopped in enumerate(halved.stopped[:-1]):
        member = halved.member(place)
        assert int(member.step) == stopped
        expected = 1 - (1 - 2 * rates[place]) ** int(stopped)
        assert float(member.params) == pytest.approx(expected, rel=1e-4)
    assert halved.diverged().tolist() == [[False] * 2] * 8 + [[True] * 2]


def test_the_share_that_goes_on_is_the_decimal_that_was_written():
    """0.1 * 30 is a little more than 3 in floating point; three go on."""
    how = {"seeds": [0], "batch_size": 4, "steps": 2, "rungs": [1], "keep": 0.1}
    rates = np.linspace(0.01, 0.4, 30)
    found = fdl.sweep(SQUARE, from_zero, fdl.sgd, {"learning_rate": rates}, ONES, **how)
    assert (found.stopped == 2).sum() == 3


def test_a_second_sweep_with_the_same_optimizer_compiles_nothing():
    how = {"seeds": [0], "batch_size": 4, "steps": 4}
    first = fdl.sweep(SQUARE, from_zero, momentum, GRID, ONES, **how)
    again = fdl.sweep(SQUARE, from_zero, momentum, GRID, ONES + 1, **how)
    assert again.compile_seconds < first.compile_seconds / 5


# What it must find.


def test_the_curves_best_rate_and_target_are_those_of_the_formula():
    rates = [0.05, 0.1, 0.3, 0.4, 0.7]
    found = compare({"sgd": fdl.sgd, "other": optax.sgd}, rates, target=0.05)
    t = np.arange(6)
    expected = (1 - 2 * np.array(rates))[:, None] ** (2 * t)
    for each in found.values():
        np.testing.assert_allclose(each.curves["loss"][:, 0], expected, rtol=1e-4, atol=1e-7)
        assert each.rates[each.best] == 0.4 and each.monitor == "loss"
        steps = [t[row <= 0.05][0] + 1 if (row <= 0.05).any() else np.inf for row in expected]
        assert each.steps_to_target.tolist() == [[step, step] for step in steps]
        assert np.isinf(steps[0]) and steps[3] == 2
        assert each.seconds_per_step > 0 < each.compile_seconds
    assert compare({"sgd": fdl.sgd}, rates)["sgd"].steps_to_target is None


def test_the_mean_over_seeds_decides_and_validation_comes_first():
    objective, init, data = problem()
    far = (data[0], data[1] + 1.0)
    found = fdl.compare_optimizers(
        *(objective, init, data, {"sgd": fdl.sgd}),
        **{"rates": [0.01, 0.05, 0.2, 0.5, 1.0], "seeds": [0, 1, 2], "batch_size": 8, "steps": 40},
        validation=far,
    )["sgd"]
    assert found.monitor == "val_loss"
    assert found.best == found.final("val_loss").mean(1).argmin()
    assert found.best != found.final("loss").mean(1).argmin()


def test_a_larger_value_can_be_the_better():
    objective = fdl.supervised(
        lambda w, x: w * x, fdl.squared_error, score=lambda p, y: -((p - y) ** 2)
    )
    found = fdl.compare_optimizers(
        *(objective, from_zero, (ONES, ONES), {"sgd": fdl.sgd}),
        **{"rates": [0.1, 0.45, 0.8], "seeds": [0], "batch_size": 4, "steps": 4},
        **{"record_every": 1, "monitor": "score", "mode": "max", "target": -0.05},
    )["sgd"]
    assert found.best == 1
    assert found.steps_to_target.tolist() == [[np.inf], [2.0], [4.0]]


@pytest.mark.parametrize(
    ("rates", "said"), [([0.1, 0.3], "0.3, its largest rate"), ([0.6, 0.9], "0.6")]
)
def test_a_best_rate_at_the_edge_is_said(rates, said):
    message = f"^compare_optimizers: expected the best rate of it inside the grid, got {said}"
    with pytest.warns(UserWarning, match=message):
        compare({"it": fdl.sgd}, rates)


def test_the_state_of_a_rate_begins_with_that_rate(standard_promotion):
    """rprop keeps its rate only in its state."""
    found = compare({"rprop": lambda rate: fdl.optim.rprop(rate)}, [0.1, 0.4, 0.9, 1.5], steps=2)
    np.testing.assert_allclose(
        found["rprop"].final("loss")[:, 0], [0.9**2, 0.6**2, 0.1**2, 0.5**2], rtol=1e-4
    )


# How it is shown.


def shown():
    curves = {
        "accuracy": np.full((3, 2, 2), 0.125),
        "loss": np.array([[[3.0, 2.0], [3.0, 1.0]], [[2, 0.5], [3, 0.25]], [[2, np.nan], [3, 9]]]),
    }
    steps = np.array([[np.inf, np.inf], [10.0, 5.0], [np.inf, np.inf]])
    grid = np.array([0.1, 1.0, 10.0]), np.array([0, 1]), np.array([5, 10])
    settings = [{"learning_rate": rate} for rate in grid[0]]
    rest = {"run": None, "stopped": np.full(3, 10), "seconds_per_step": 2e-5, "reason": "done"}
    first = fdl.Sweep(
        *(settings, *grid[1:], curves, "loss", 1),
        **(rest | {"steps_to_target": steps, "compile_seconds": 1.5}),
    )
    steps = np.where(np.arange(2) == 0, steps, np.inf)
    return {"one": first, "another": first._replace(steps_to_target=steps, best=0)}


def test_the_table():
    lines = [re.split(r"  +", line.strip()) for line in comparison_table(shown()).splitlines()]
    assert lines == [
        ["optimizer", "best rate", "loss", "accuracy", "steps to target", "diverged", "us/step"],
        ["one", "1", "0.375 ± 0.18", "0.125 ± 0", "8", "1 of 6", "20"],
        ["another", "0.1", "1.5 ± 0.71", "0.125 ± 0", "0 of 2 seeds", "1 of 6", "20"],
    ]


def test_the_rate_sensitivity_picture():
    figure = rate_sensitivity(shown())
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert axes.get_title() == "one\n0.375 at rate 1" and axes.get_xscale() == "log"
    mean, crosses, ring, other = axes.lines
    np.testing.assert_allclose(mean.get_ydata(), [1.5, 0.375, np.nan])
    assert crosses.get_xydata().tolist() == [[10.0, axes.get_ylim()[1]]]
    assert ring.get_xydata().tolist() == [[1.0, 0.375]]
    np.testing.assert_allclose(other.get_ydata(), [1.5, 0.375, np.nan])
    band = axes.collections[0].get_paths()[0].vertices
    assert {0.25, 0.5, 1.0, 2.0} <= set(band[:, 1].tolist())


def test_the_picture_of_the_best_curves():
    figure = best_curves(shown())
    figure.draw_without_rendering()
    lines = [axes.lines[0].get_xydata().tolist() for axes in figure.axes]
    assert lines == [[[5.0, 2.5], [10.0, 0.375]], [[5.0, 3.0], [10.0, 1.5]]]


@pytest.mark.parametrize("show", [comparison_table, rate_sensitivity, best_curves])
def test_nothing_to_show(show):
    message = rf"^{show.__name__}: expected the result of fdl.compare_optimizers, got \{{\}}; pass"
    with pytest.raises(ValueError, match=message):
        show({})


# Mistakes.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rates": [0.1, 0.1]}, "expected rates [R], > 0 and increasing, got [0.1, 0.1]; start"),
        ({"rates": [0.0, 0.1]}, "expected rates [R], > 0 and increasing, got [0.0, 0.1]; start"),
        ({"rates": []}, "expected rates [R], > 0 and increasing, got []; start with a"),
        ({"rates": 0.1}, "expected rates [R], > 0 and increasing, got 0.1; start with a"),
        (
            {"rates": [0.1, float("inf")]},
            "expected rates [R], > 0 and increasing, got [0.1, inf]; start with a",
        ),
        ({"seeds": [1, 1]}, "expected different seeds in [0, 2**32), got [1, 1]; pass range(3), f"),
        ({"seeds": []}, "expected different seeds in [0, 2**32), got []; pass range(3), f"),
        ({"seeds": [-1]}, "expected different seeds in [0, 2**32), got [-1]; pass range(3), f"),
        ({"seeds": [0.5]}, "expected different seeds in [0, 2**32), got [0.5]; pass range(3), f"),
        ({"optimizers": {}}, "expected at least one optimizer, got none; pass {'adam'"),
        ({"record_every": 0}, "expected record_every >= 1, an integer, got 0; leave it out"),
        ({"mode": "least"}, "expected mode 'min' or 'max', got 'least'; use 'min' for a loss"),
        ({"monitor": "accuracy"}, "expected monitor among loss, got 'accuracy'; choose one of t"),
        ({"steps": 0}, "expected at least one step, got none; give more epochs or"),
        ({"epochs": 1}, "expected either epochs or steps, got both; pass one of them"),
        ({"batch_size": 0}, "expected batch_size >= 1, an integer, got 0; pass the number"),
    ],
)
def test_arguments_that_cannot_be_are_refused(given, message):
    how = {"optimizers": {"sgd": fdl.sgd}, "rates": [0.1, 0.4, 0.8], **given}
    with pytest.raises(ValueError, match=f"^{re.escape(f'compare_optimizers: {message}')}"):
        compare(**how)


SETTINGS = "expected settings as name -> list of values, or as a list of dicts, got "


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"settings": {}}, SETTINGS + "{}; pass {'learning_rate': [0.01, 0.1]}, for example"),
        ({"settings": [0.1]}, SETTINGS + "[0.1]; pass"),
        ({"settings": []}, SETTINGS + "[]; pass"),
        ({"settings": {"learning_rate": []}}, SETTINGS + "{'learning_rate': []}; pass"),
        (
            {"settings": [{"learning_rate": 0.1}, {"momentum": 0.1}]},
            "expected settings with the same names, got [momentum] and "
            "[learning_rate]; give every setting a value for each name",
        ),
        (
            {"settings": {"learning_rate": ["fast"]}},
            "expected a number for learning_rate, got 'fast'; to compare values that are not "
            "numbers, run a sweep for each of them",
        ),
        ({"rungs": [3, 2]}, "expected rungs as increasing steps in [1, 3], got [3, 2]; leave"),
        ({"rungs": [4]}, "expected rungs as increasing steps in [1, 3], got [4]; leave"),
        ({"rungs": 2}, "expected rungs as increasing steps in [1, 3], got 2; leave"),
        ({"keep": 1.0}, "expected keep in (0, 1), got 1.0; 1 / 3 keeps a third of the settings"),
        ({"seeds": []}, "expected different seeds in [0, 2**32), got []; pass range(3), for exa"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(given, message):
    how = {"settings": {"learning_rate": [0.1]}, "steps": 4, **given}
    with pytest.raises(ValueError, match=f"^{re.escape(f'sweep: {message}')}"):
        fdl.sweep(SQUARE, from_zero, fdl.sgd, data=ONES, **how)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (
            {"w": 1.0},
            "expected init to be a function seed -> (params, state), got dict; to start from "
            "given params: lambda seed: (params, {})",
        ),
        (
            lambda seed: {"w": 1.0},
            "expected init to return (params, state), got dict; for a network without state, "
            "return (params, {})",
        ),
        (
            lambda seed: ({"w": jnp.arange(3)}, {}),
            "expected parameters of a floating dtype, got int32 at 'w'; convert this array to "
            "float32, or keep it outside params if it is not learned",
        ),
    ],
)
def test_an_init_that_gives_no_parameters_is_refused(init, message):
    with pytest.raises(ValueError, match=f"^{re.escape(f'compare_optimizers: {message}')}$"):
        fdl.compare_optimizers(SQUARE, init, ONES, {"sgd": fdl.sgd}, rates=[0.1], steps=1)


def test_data_that_the_model_cannot_take_are_refused():
    objective, init, (x, y) = problem()
    race = functools.partial(
        fdl.compare_optimizers, objective, init, optimizers={"sgd": fdl.sgd}, rates=[0.1], steps=1
    )
    with pytest.raises(fdl.PathError, match=r"^dense_0: expected x \[..., 3\], got \[1, 2\]"):
        race((x[:, :2], y))
    with pytest.raises(ValueError, match=r"^data at '0': expected finite numbers, got nan at row"):
        race((x, y), validation=(x * np.nan, y))


SEEDED_BUGS = {
    "fdl/train/tournament.py": (
        "train/test_sweeps.py",
        [
            ("np.where(np.isfinite(ends).all((0, 2)), mean, np.inf)", "mean"),
            ('self.target * (1 if self.mode == "min" else -1)', "self.target"),
            ('curves[self.watched] * (1 if self.mode == "min" else -1)', "curves[self.watched]"),
            ("steps[reached.argmax(-1)]", "reached.argmax(-1)"),
            ("self._advance(step - done)", "self._advance(step)"),
            ("self.stopped[self.left[out]] = step", "pass"),
            ("decimal(self.rungs[step]) * len", "self.rungs[step] * len"),
            ("np.concatenate(places).argsort()", "np.arange(len(self.settings))"),
            ("{name: column[on] for", "{name: column[: len(on)] for"),
        ],
    ),
    "fdl/train/members.py": (
        "train/test_sweeps.py",
        [
            ("jnp.asarray(seeds, jnp.uint32)", "jnp.zeros(len(seeds), jnp.uint32)"),
            (
                "params, state, make(**setting).init(params)",
                "params, state, make(1.0).init(params)",
            ),
            ("params = eval_params(opt_state, params)", "pass"),
            ("jnp.moveaxis(leaf, axis, 0)", "leaf"),
        ],
    ),
    "fdl/look/optimizer_comparison.py": (
        "train/test_sweeps.py",
        [
            ("ends.std(ddof=1)", "ends.std()"),
            ("values.min(-1), values.max(-1)", "values.mean(-1), values.max(-1)"),
            ("met.mean():.0f", "met.min():.0f"),
        ],
    ),
}
