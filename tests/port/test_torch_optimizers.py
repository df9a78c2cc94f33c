"""States of torch's SGD and Adam: training goes on in fdl as in torch, and the other way around."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdl
from fdl.port import (
    from_torch,
    from_torch_optimizer,
    read_tensors,
    to_torch,
    to_torch_optimizer,
)
from tests.port.test_torch_weights import assert_bits, refused

RNG = np.random.default_rng(5)
X = RNG.normal(size=(12, 6, 5, 2)).astype(np.float32)
Y = RNG.normal(size=(12, 3)).astype(np.float32)
MODEL = fdl.chain(
    conv=fdl.conv(3, (3, 2), padding=0, bias=False),  # which would have rounding as gradient
    norm=fdl.batch_norm(unbiased=True),
    act=fdl.tanh,
    flat=fdl.flatten(),
    up=fdl.dense(4),
    bend=fdl.tanh,
    out=fdl.dense(3),
)
TABLE = {
    "params/conv/w": "0.weight: o i h w -> h w i o",
    "params/norm/{scale,bias}": "1.{weight,bias}",
    "params/up/w": "4.weight: o (c h w) -> (h w c) o, h=4 w=4",
    "params/out/w": "6.weight: o i -> i o",
    "params/{up,out}/b": "{4,6}.bias",
    "state/norm/{mean,variance}": "1.running_{mean,var}",
    None: ["1.num_batches_tracked"],
}
PARAMETERS = ["0.weight", *(f"{at}.{each}" for at in (1, 4, 6) for each in ("weight", "bias"))]
AMS = {"correct_maximum": True}
# torch's name and options, and fdl's optimizer.
PAIRS = {
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.8}, fdl.sgd(0.1, momentum=0.8)),
    "nesterov": (
        "SGD",
        {"lr": 0.1, "momentum": 0.8, "nesterov": True},
        fdl.sgd(0.1, momentum=0.8, nesterov=True),
    ),
    "decayed momentum": (
        "SGD",
        {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
        fdl.optim.chain(
            fdl.optim.add_decayed_weights(0.1), fdl.sgd(0.1, momentum=0.8, nesterov=True)
        ),
    ),
    "dampening": (
        "SGD",
        {"lr": 0.1, "momentum": 0.8, "dampening": 0.4},
        fdl.sgd(0.1, momentum=0.8, dampening=0.4),
    ),
    "adam": ("Adam", {"lr": 0.02, "betas": (0.8, 0.97)}, fdl.adam(0.02, 0.8, 0.97)),
    "adamw": ("AdamW", {"lr": 0.02, "weight_decay": 0.1}, fdl.adamw(0.02, weight_decay=0.1)),
    "decayed adam": (
        "Adam",
        {"lr": 0.02, "weight_decay": 0.1},
        fdl.optim.chain(fdl.optim.add_decayed_weights(0.1), fdl.adam(0.02)),
    ),
    "amsgrad": ("Adam", {"lr": 0.02, "amsgrad": True}, fdl.optim.amsgrad(0.02, **AMS)),
}


def begun(optimizer):
    params, state = MODEL.init(jax.random.key(0), jnp.asarray(X))
    return fdl.start(params, optimizer, state=state)


def trained(optimizer, run, steps):
    """All examples in each step, so that torch sees the same batches."""
    objective = fdl.supervised(MODEL, fdl.squared_error)
    return fdl.fit(objective, optimizer, run, (X, Y), batch_size=len(X), steps=steps).run


def of_torch(name):
    torch = pytest.importorskip("torch", reason="torch is not here: it was not compared")
    nn = torch.nn
    torch.manual_seed(1)
    layers = (
        nn.Conv2d(2, 3, (3, 2), bias=False),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(48, 4),
    )
    module = nn.Sequential(*layers, nn.Tanh(), nn.Linear(4, 3))
    kind, options, _ = PAIRS[name]
    return torch, module, getattr(torch.optim, kind)(module.parameters(), **options)


def trained_by_torch(torch, module, optimizer, steps):
    x, y = torch.from_numpy(X.transpose(0, 3, 1, 2).copy()), torch.from_numpy(Y)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((module(x) - y) ** 2).mean(-1).mean()
        loss.backward()
        optimizer.step()


def weights(run):
    return {"params": run.params, "state": run.state}


def assert_same_weights(run, module):
    wanted = from_torch(module.state_dict(), weights(run), TABLE)
    for path, leaf in fdl.paths.leaves(weights(run)).items():
        other = fdl.paths.leaves(wanted)[path]
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", PAIRS)
def test_training_goes_on_in_fdl_as_in_torch(name):
    torch, module, optimizer = of_torch(name)
    trained_by_torch(torch, module, optimizer, 4)
    run = begun(PAIRS[name][2])
    found = from_torch(module.state_dict(), weights(run), TABLE)
    state = from_torch_optimizer(optimizer.state_dict(), run.opt_state, TABLE, PARAMETERS)
    assert jax.tree.structure(state) == jax.tree.structure(run.opt_state)
    run = run._replace(params=found["params"], state=found["state"], opt_state=state)
    like = optimizer.state_dict()
    back = to_torch_optimizer(state, like, TABLE, PARAMETERS)
    for at, each in like["state"].items():
        assert set(each) == set(back["state"][at])
        for key, value in each.items():
            assert_bits(back["state"][at][key], value.numpy())
    run = trained(PAIRS[name][2], run, 4)
    trained_by_torch(torch, module, optimizer, 4)
    assert_same_weights(run, module)


@pytest.mark.parametrize("name", PAIRS)
def test_training_goes_on_in_torch_as_in_fdl(name):
    torch, module, optimizer = of_torch(name)
    run = trained(PAIRS[name][2], begun(PAIRS[name][2]), 4)

    def tensors(tree):
        return jax.tree.map(lambda x: torch.from_numpy(x) if isinstance(x, np.ndarray) else x, tree)

    module.load_state_dict(tensors(to_torch(weights(run), TABLE)), strict=False)
    like = optimizer.state_dict()
    state = to_torch_optimizer(run.opt_state, like, TABLE, PARAMETERS)
    assert state["param_groups"] == like["param_groups"]
    optimizer.load_state_dict(tensors(state))
    trained_by_torch(torch, module, optimizer, 4)
    assert_same_weights(trained(PAIRS[name][2], run, 8), module)


def test_a_file_and_an_optimizer_that_knows_its_names(tmp_path):
    torch, module, _ = of_torch("adam")
    groups = [
        {"params": list(module[:2].named_parameters())},
        {"params": [(f"4.{k}", p) for k, p in module[4].named_parameters()], "lr": 0.5},
        {"params": [(f"6.{k}", p) for k, p in module[6].named_parameters()]},
    ]
    optimizer = torch.optim.Adam(groups)
    trained_by_torch(torch, module, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "adam.pt")
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "all.pt")
    like = begun(fdl.adam(0.1)).opt_state
    found = from_torch_optimizer(tmp_path / "adam.pt", like, TABLE)
    assert_bits(found, from_torch_optimizer(optimizer.state_dict(), like, TABLE, PARAMETERS))
    read = read_tensors(tmp_path / "all.pt")["optimizer"]
    assert_bits(found, from_torch_optimizer(read, like, TABLE))
    assert_bits(found[0].mu["up"]["b"], optimizer.state[module[4].bias]["exp_avg"].numpy())


# Without torch.

LIKE = {
    "state": {},
    "param_groups": [{"lr": 0.1, "params": [0, 1, 2, 3]}, {"lr": 0.3, "params": [4, 5, 6]}],
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_moments_are_in_the_layout_of_torch(name):
    optimizer = PAIRS[name][2]
    run = begun(optimizer)
    gradient, _ = jax.grad(fdl.supervised(MODEL, fdl.squared_error), has_aux=True)(
        run.params, run.state, (X, Y), jax.random.key(0)
    )
    run = trained(optimizer, run, 1)
    found = to_torch_optimizer(run.opt_state, LIKE, TABLE, PARAMETERS)
    assert found["param_groups"] == LIKE["param_groups"]
    assert list(found["state"]) == list(range(7))
    up, decay = found["state"][3], 0.1 if name.startswith("decayed") else 0
    start = begun(optimizer).params["up"]["w"]
    g = (gradient["up"]["w"] + decay * start).reshape(4, 4, 3, 4).transpose(3, 2, 0, 1)
    g = np.asarray(g).reshape(4, 48)
    b1, b2 = (0.8, 0.97) if name == "adam" else (0.9, 0.999)
    wanted = {"momentum_buffer": g}
    if PAIRS[name][0] != "SGD":
        wanted = {"step": 1.0, "exp_avg": (1 - b1) * g, "exp_avg_sq": (1 - b2) * g**2}
    if name == "amsgrad":
        wanted["max_exp_avg_sq"] = wanted["exp_avg_sq"]
    assert set(up) == set(wanted)
    for key, each in wanted.items():
        np.testing.assert_allclose(up[key], each, rtol=2e-4, atol=1e-9)
    back = from_torch_optimizer(found, run.opt_state, TABLE, PARAMETERS)
    assert_bits(back, run.opt_state)  # with dampening too: after one step, the count is 1
    fresh = optimizer.init(run.params)
    assert_bits(from_torch_optimizer(found, fresh, TABLE, PARAMETERS), run.opt_state)
    assert_bits(from_torch_optimizer(LIKE, run.opt_state, TABLE, PARAMETERS), fresh)
    again = to_torch_optimizer(fresh, LIKE, TABLE, PARAMETERS)["state"]
    if "step" in wanted or name == "dampening":
        assert again == {}
    else:
        assert not any(each["momentum_buffer"].any() for each in again.values())


ONE = {"w": "fc.weight: o i -> i o", "b": "fc.bias"}
PARAMS = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
ADAM = fdl.adam(0.1).init(PARAMS)


def adam_state(*steps, **more):
    shapes = (2, 3), (2,)
    each = [
        {"step": np.float32(step), "exp_avg": np.ones(s, "f4"), "exp_avg_sq": np.ones(s, "f4")}
        for step, s in zip(steps, shapes, strict=False)
    ]
    states = {at: state | more for at, state in enumerate(each)}
    return {"state": states, "param_groups": [{"params": [0, 1]}]}


NAMES = ["fc.weight", "fc.bias"]


def test_moments_have_the_dtype_of_fdl():
    source = adam_state(3, 3)
    source["state"][0]["exp_avg"] = np.asarray(jnp.full((2, 3), 0.1, jnp.bfloat16))
    found = from_torch_optimizer(source, ADAM, ONE, NAMES)[0]
    assert found.mu["w"].dtype == jnp.float32 and float(found.mu["w"][2, 1]) == 0.10009765625
    assert found.count == 3 and found.count.dtype == jnp.int32


def test_the_names_may_stand_in_the_groups():
    source = adam_state(2, 2)
    groups = [{"params": [0], "param_names": NAMES[:1]}, {"params": [1], "param_names": NAMES[1:]}]
    found = from_torch_optimizer(source | {"param_groups": groups}, ADAM, ONE)
    assert_bits(found, from_torch_optimizer(source, ADAM, ONE, NAMES))


def test_a_state_within_others_and_the_count_of_a_schedule():
    optimizer = fdl.optim.chain(
        fdl.optim.clip_by_global_norm(1.0), fdl.adam(fdl.optim.schedules.constant_schedule(0.1))
    )
    like = optimizer.init(PARAMS)
    found = from_torch_optimizer(adam_state(7, 7), like, ONE, NAMES)
    assert jax.tree.structure(found) == jax.tree.structure(like)
    counts = [leaf for path, leaf in fdl.paths.leaves(found).items() if path.endswith("count")]
    assert sorted(map(int, counts)) == [0, 7]
    assert_bits(
        from_torch_optimizer(adam_state(7, 7), optax.adam(0.1).init(PARAMS), ONE, NAMES),
        from_torch_optimizer(adam_state(7, 7), ADAM, ONE, NAMES),
    )


def test_a_parameter_without_a_gradient_has_no_momentum_yet():
    like = fdl.sgd(0.1, momentum=0.9).init(PARAMS)
    state = {1: {"momentum_buffer": np.float32([2, 3])}, 0: {"momentum_buffer": None}}
    source = {"state": state, "param_groups": [{"params": [0, 1]}]}
    found = from_torch_optimizer(source, like, ONE, NAMES)[0].trace
    assert_bits(found, {"w": jnp.zeros((3, 2)), "b": jnp.array([2.0, 3.0])})


def test_a_tied_parameter_has_one_name():
    like, table = fdl.adam(0.1).init({"e": jnp.zeros((2, 3))}), {"e": "wte.weight = head.weight"}
    source = {"state": {0: adam_state(2)["state"][0]}, "param_groups": [{"params": [0]}]}
    found = from_torch_optimizer(source, like, table, ["wte.weight"])
    assert found[0].nu["e"].sum() == 6
    back = to_torch_optimizer(found, source, table, ["wte.weight"])
    assert_bits(back["state"], source["state"])


def test_params_whose_own_levels_are_params_and_state():
    like = fdl.sgd(0.1, momentum=0.9).init({"params": {"w": jnp.zeros(2)}, "state": jnp.zeros(1)})
    state = {0: {"momentum_buffer": np.ones(2, "f4")}, 1: {"momentum_buffer": np.ones(1, "f4")}}
    source = {"state": state, "param_groups": [{"params": [0, 1]}]}
    found = from_torch_optimizer(source, like, {"params/w": "w", "state": "s"}, ["w", "s"])
    assert found[0].trace["params"]["w"].sum() == 2


# What does not fit.


def test_what_is_no_state_dict_is_refused():
    refused(
        lambda: from_torch_optimizer({"fc.weight": 1}, ADAM, ONE),
        "from_torch_optimizer: expected source as a state dict with state and param_groups, got "
        "dict; pass optimizer.state_dict()",
    )
    refused(
        lambda: to_torch_optimizer(ADAM, None, ONE),
        "to_torch_optimizer: expected like as a state dict with state and param_groups, got None; "
        "pass optimizer.state_dict()",
    )


@pytest.mark.parametrize(("names", "count"), [(None, 0), (["a"], 1), (["a", "a"], 2)])
def test_names_of_other_parameters_are_refused(names, count):
    refused(
        lambda: from_torch_optimizer(adam_state(1, 1), ADAM, ONE, names),
        f"from_torch_optimizer: expected 2 different names of parameters, got {count}; pass "
        "parameters=[name for name, _ in model.named_parameters()] of those that the optimizer has",
    )


def test_another_optimizer_is_refused():
    use = "use fdl.sgd with momentum, fdl.adam, fdl.adamw or fdl.amsgrad"
    for optimizer in fdl.sgd(0.1), fdl.optim.lion(0.1):
        refused(
            lambda optimizer=optimizer: to_torch_optimizer(
                optimizer.init(PARAMS), adam_state(1, 1), ONE, NAMES
            ),
            "to_torch_optimizer: expected one state of TraceState, DampenedTraceState, "
            f"ScaleByAdamState, ScaleByAmsgradState in the state of the optimizer, got 0; {use}",
        )
    for source, got in (
        (adam_state(1, 1, max_exp_avg_sq=1), "exp_avg, exp_avg_sq, max_exp_avg_sq, step"),
        (
            {"state": {0: {"momentum_buffer": 1}}, "param_groups": [{"params": [0, 1]}]},
            "momentum_buffer",
        ),
    ):
        refused(
            lambda source=source: from_torch_optimizer(source, ADAM, ONE, NAMES),
            "from_torch_optimizer: expected exp_avg, exp_avg_sq, step for the state in like, got "
            f"{got} at 'fc.weight'; use the optimizer of the same kind on both sides",
        )


TRACE, DAMPENED = (
    fdl.sgd(0.1, momentum=0.9, **how).init(PARAMS) for how in ({}, {"dampening": 0.5})
)
SAME = "use the same optimizer, with the same options, on both sides"
# The state in fdl, an option of torch, and what is said of it.
OTHER_OPTIONS = [
    (TRACE, {"dampening": 0.5}, f"without dampening, got dampening=0.5; {SAME}"),
    (TRACE, {"momentum": 0}, f"with momentum, got momentum=0; {SAME}"),
    (TRACE, {"betas": (0.9, 0.999)}, f"without betas, got betas=(0.9, 0.999); {SAME}"),
    (DAMPENED, {"dampening": 0}, f"with dampening, got dampening=0; {SAME}"),
    (ADAM, {"momentum": 0.9}, f"without momentum, got momentum=0.9; {SAME}"),
    (ADAM, {"amsgrad": True}, f"without amsgrad, got amsgrad=True; {SAME}"),
    (
        ADAM,
        {"maximize": True},
        "without maximize, got maximize=True; in torch too, minimize the negative of what you "
        "maximize",
    ),
]


@pytest.mark.parametrize(("state", "option", "told"), OTHER_OPTIONS)
def test_options_that_the_state_does_not_have_are_refused(state, option, told):
    groups = [{"params": [0], "nesterov": True, "lr": 0.5}, {"params": [1], **option}]
    for f, who in ((from_torch_optimizer, "from"), (to_torch_optimizer, "to")):
        there = {"state": {}, "param_groups": groups}
        given = (there, state) if who == "from" else (state, there)
        refused(
            lambda f=f, given=given: f(*given, ONE, NAMES),
            f"{who}_torch_optimizer: expected an optimizer of torch {told}",
        )


def test_with_dampening_all_parameters_have_taken_the_first_step():
    state = {0: {"momentum_buffer": np.ones((2, 3), "f4")}, 1: {"momentum_buffer": None}}
    source = {"state": state, "param_groups": [{"params": [0, 1], "dampening": 0.5}]}
    refused(
        lambda: from_torch_optimizer(source, DAMPENED, ONE, NAMES),
        "from_torch_optimizer: expected the same number of steps for all parameters, got 1 at "
        "fc.weight, 0 at fc.bias; give the optimizer of torch only parameters that are trained",
    )


@pytest.mark.parametrize(("steps", "said"), [((3, 4), 4), ((3,), 0)])
def test_different_numbers_of_steps_are_refused(steps, said):
    refused(
        lambda: from_torch_optimizer(adam_state(*steps), ADAM, ONE, NAMES),
        "from_torch_optimizer: expected the same number of steps for all parameters, got 3 at "
        f"fc.weight, {said} at fc.bias; give the optimizer of torch only parameters that are "
        "trained",
    )


def test_a_sum_has_no_moments():
    table = ONE | {"b": "bias_ih + bias_hh"}
    for f, who in ((from_torch_optimizer, "from"), (to_torch_optimizer, "to")):
        source, like = (adam_state(1, 1), ADAM)[:: 1 if who == "from" else -1]
        refused(
            lambda f=f, source=source, like=like: f(source, like, table, NAMES),
            f"{who}_torch_optimizer: expected rules that give each path the moments of one "
            "parameter, got a sum, 'b': 'bias_ih + bias_hh'; torch trains the parts of a sum one "
            "by one, so start the optimizer anew",
        )


def test_parameters_and_rules_that_do_not_fit_are_refused():
    refused(
        lambda: to_torch_optimizer(ADAM, adam_state(1, 1), ONE, ["fc.weight", "other"]),
        "to_torch_optimizer: expected a rule for each parameter, got none for other; correct names "
        "and parameters",
    )
    source = adam_state(1, 1)
    source["state"][0]["exp_avg"] = np.ones((3, 2), np.float32)
    refused(
        lambda: from_torch_optimizer(source, ADAM, ONE, NAMES),
        "from_torch_optimizer: expected tensors that fit the 2 paths of like, got a state with "
        "exp_avg that differs at 1 names; correct names, or pass the params of another model",
        "different: w float32 [3, 2], got fc.weight float32 [3, 2] by the rule 'w': 'fc.weight: "
        "o i -> i o'",
    )
    with pytest.raises(ValueError, match="differs at 2 names") as seen:
        from_torch_optimizer(adam_state(1, 1), ADAM, ONE, ["fc.weight", "other"])
    assert str(seen.value).splitlines()[1:] == [
        "  missing: fc.bias for b float32 [2]",
        "  unexpected: other float32 [2]",
    ]


SEEDED_BUGS = {
    "fdl/port/torch_optimizers.py": (
        "port/test_torch_optimizers.py",
        [
            ('"mu": "exp_avg", "nu": "exp_avg_sq"}', '"mu": "exp_avg_sq", "nu": "exp_avg"}'),
            ("_step(states if taken else {})", "0"),
            ("if bool(option) != wanted[name]:", "if False:"),
            ('state.get("step", 1)', 'state.get("step", 0)'),
            ("for name in states if name in made", "for name in made"),
            ('path.removeprefix("params/")', "path"),
            ("if not within and any(", "if any("),
            ('if not (path or "").startswith("state/")', "if True"),
            ('if rule.joined == "+":', "if False:"),
            ("if state and set(state) != wanted:", "if False:"),
            ("if state and set(state) != wanted:", "if set(state) != wanted:"),
            ("if len(set(steps.values())) > 1:", "if False:"),
            ("if value is not None}", "}"),
            ("states if started else {}", "states"),
            ("cast=True", "cast=False"),
            ('for name in group.get("param_names", ())', "for name in ()"),
            ("if len(places) != 1:", "if not nodes:"),
        ],
    ),
}
