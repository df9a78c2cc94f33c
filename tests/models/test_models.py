"""Ready networks: their numbers of weights against the papers, and their structure."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from tests.entry_types import LayerCase
from tests.programs import array, compiled

LAYERS = {
    "lenet": LayerCase(lambda: fdl.lenet(3), (2, 4, 4, 1)),
    "resnet": LayerCase(lambda: fdl.resnet(3, depth=8, width=2), (3, 5, 4, 2), slow=True),
    "autoencoder": LayerCase(lambda: fdl.autoencoder((3, 2), [4], 2), (3, 3, 2)),
    "lstm_classifier": LayerCase(
        lambda: fdl.lstm_classifier(255, 3, 2, dropout_rate=0.3), (2, 3), np.int32, random=True
    ),
    "encoder": LayerCase(
        lambda: fdl.encoder(255, 5, layers=1, heads=2, features=4),
        (2, 4),
        np.int32,
        slow=True,
    ),
    "gpt": LayerCase(
        lambda: fdl.gpt(255, 5, layers=1, heads=2, features=4, dropout_rate=0.2),
        (2, 4),
        np.int32,
        random=True,
        slow=True,
    ),
    "vit": LayerCase(
        lambda: fdl.vit(3, (4, 6), 2, layers=1, heads=2, features=4), (2, 4, 6, 1), slow=True
    ),
}


def shapes(model, *given):
    params, _ = jax.eval_shape(model.init, jax.random.key(0), *given)
    return {path: leaf.shape for path, leaf in fdl.paths.leaves(params).items()}


def count(model, *given):
    return sum(math.prod(shape) for shape in shapes(model, *given).values())


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_resnet_has_the_number_of_weights_in_the_paper(depth, millions):
    """He et al. 2016, table 6, without the weights of the shortcuts of option B."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    found = shapes(fdl.resnet(10, depth), image)
    shortcuts = sum(math.prod(s) for path, s in found.items() if "shortcut" in path)
    total = sum(map(math.prod, found.values()))
    assert round((total - shortcuts) / 1e6, 2 if depth < 100 else 1) == millions
    convolutions = [path for path in found if path.endswith("/w") and "shortcut" not in path]
    assert len(convolutions) == depth


def test_resnet_halves_the_image_twice():
    model = fdl.resnet(4, 8, width=3, scale=1 / 255)
    x = array(np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)), jnp.uint8)
    params, state = model.init(jax.random.key(0), x)
    seen = compiled(fdl.capture(model, "stage_0", "stage_1", "stage_2"))(params, state, x)
    assert [seen[f"stage_{i}"].shape for i in range(3)] == [
        (2, 8, 8, 3),
        (2, 4, 4, 6),
        (2, 2, 2, 12),
    ]
    assert all((leaf >= 0).all() for leaf in seen.values())
    y, after = jax.jit(lambda s: model.apply(params, s, x, train=True, key=jax.random.key(1)))(
        state
    )
    assert y.shape == (2, 4) and jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("depth", "near"),
    [(1, "8 or 14"), (2, "8 or 14"), (7, "8 or 14"), (9, "8 or 14"), (21, "20 or 26")],
)
def test_resnet_refuses_a_depth_of_another_form(depth, near):
    message = f"resnet: expected depth 6 n + 2 with n >= 1, got {depth}; pass {near}"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        fdl.resnet(10, depth)


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("mlp", ([3], 2)),
        ("lstm_classifier", (7, 3, 2)),
        ("encoder_block", (2, 4)),
        ("decoder_block", (2, 4)),
        ("gpt", (7, 5, 1, 2, 4)),
        ("encoder", (7, 5, 1, 2, 4)),
        ("vit", (3, (4, 4), 2, 1, 2, 4)),
    ],
)
def test_an_error_about_an_option_names_the_model(model, args):
    message = f"{model}: expected dropout_rate in [0, 1], got 1.5; pass 0.1 to drop 10 %"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        getattr(fdl, model)(*args, dropout_rate=1.5)


def test_the_autoencoder_reconstructs_inputs_of_the_dimension_of_its_code():
    """Images in a subspace of three dimensions, with a code of three numbers."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.standard_normal((200, 3)) @ rng.standard_normal((3, 12)))
    x = x.reshape(-1, 3, 4, 1)
    model = fdl.autoencoder((3, 4, 1), [], 3)
    params, _ = model.init(jax.random.key(0), x)
    assert sorted(params) == ["decode", "encode"]
    objective = fdl.supervised(model, fdl.squared_error)
    optimizer = fdl.adam(0.02)
    result = fdl.fit(
        objective, optimizer, fdl.start(params, optimizer), (x, x), batch_size=50, steps=600
    )
    assert fdl.evaluate(objective, result.run.params, (x, x))["loss"] < 1e-3 * float(x.var())


def test_gpt_has_the_number_of_weights_of_gpt_2():
    """Radford et al. 2019: 124 million in 12 blocks of width 768."""
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    assert count(fdl.gpt(50257, 1024, 12, 12, 768), ids) == 124_439_808


def test_the_encoder_sees_both_directions_and_obeys_the_mask():
    model = fdl.encoder(11, 6, layers=2, heads=2, features=8)
    ids, changed = np.int32([[1, 2, 3, 4]]), np.int32([[1, 2, 3, 7]])
    params, _ = model.init(jax.random.key(0), ids)
    apply = compiled(lambda ids, mask=None: model.apply(params, {}, ids, mask=mask)[0])
    everything = np.ones((4, 4), bool)
    first = apply(ids, everything)
    assert not np.allclose(first[0, 0], apply(changed, everything)[0, 0], atol=1e-4)
    without = everything & (np.arange(4) != 3)
    np.testing.assert_allclose(apply(ids, without)[0, 0], apply(changed, without)[0, 0], atol=1e-6)
    np.testing.assert_allclose(first, apply(ids), atol=1e-6)


SEEDED_BUGS = {
    "fdl/models/perceptron.py": (
        "models/test_models.py -k names_the_model",
        [("@named_in_errors\ndef mlp(", "def mlp(")],
    ),
    "fdl/models/transformer.py": (
        "models/test_models.py -k names_the_model",
        [("@named_in_errors\ndef gpt(", "def gpt(")],
    ),
}
