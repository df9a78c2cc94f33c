"""Wrong uses of layers and combinators: where, what was expected, what came, what to do.

Each runs eagerly and under `jit`, `grad`, `vmap` and `scan`, and says the same in all of them, with
the shapes that the layer sees.
"""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from registry import masked, running_mean

import fdl

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)


def inside(layer):
    """The layer at decoder/block."""
    return fdl.chain(decoder=fdl.chain(block=layer))


def made(net, x=X, **inputs):
    """Parameters and state of the right shapes, all zero, which no message depends on."""
    shapes = jax.eval_shape(lambda: net.init(KEY, x, **inputs))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def passed(net, x, *, right=X, **given):
    """y of `net`, made for `right`, of x."""
    return net.apply(*made(net, right), x, **given)[0]


def wide(x):
    """x [3, 5] instead of [3, 4]."""
    return jnp.concatenate([x, x[:, :1]], -1)


def without(x, *path):
    """A pass whose parameters lack one entry."""
    net = inside(fdl.dense(2))
    params, state = made(net)
    node = params
    for level in path[:-1]:
        node = node[level]
    del node[path[-1]]
    return net.apply(params, state, x)[0]


def renamed(x):
    net = inside(fdl.dense(2))
    params, state = made(net)
    return net.apply({"decoder": {"attention": params["decoder"]["block"]}}, state, x)[0]


def cut(x):
    """A pass of three blocks with the weights of two."""
    net = inside(fdl.repeat(fdl.dense(4), 3, scan=True))
    params, state = made(net)
    del params["decoder"]["block"]["2"]
    return net.apply(params, state, x)[0]


def in_training(layer, x, key=None):
    return passed(inside(layer), x, key=key, train=True)


MORE = "give x that width, or make new params with init"
FLOATING = "put rescale(1 / 255) or the like in front, or convert x with astype"
OURS = "pass the params and state that init made for this network"
ROOM = "give its last layer as many features as x has"

# name -> (the wrong use, a function of x [3, 4]; the first line of what it is told)
WRONG = {
    "width": (
        lambda x: passed(inside(fdl.dense(2)), wide(x)),
        f"decoder/block: expected x [..., 4], got [3, 5]; {MORE}",
    ),
    "images_not_flattened": (
        lambda x: passed(inside(fdl.dense(2)), wide(x)[None]),
        "decoder/block: expected x [..., 4], got [1, 3, 5]; flatten x",
    ),
    "a_scalar": (
        lambda x: passed(inside(fdl.dense(2)), x[0, 0]),
        f"decoder/block: expected x [..., 4], got []; {MORE}",
    ),
    "integers": (
        lambda x: passed(inside(fdl.dense(2)), x.astype(jnp.int8)),
        f"decoder/block: expected x of a floating dtype, got int8 [3, 4]; {FLOATING}",
    ),
    "integers_in_init": (
        lambda x: made(inside(fdl.dense(2)), x.astype(jnp.uint8)),
        f"decoder/block: expected x of a floating dtype, got uint8 [3, 4]; {FLOATING}",
    ),
    "no_features": (
        lambda x: passed(inside(fdl.dense(0)), x),
        "dense: expected features >= 1, got 0; say how many outputs there are",
    ),
    "no_key_in_training": (
        lambda x: in_training(fdl.dropout(0.5), x),
        "decoder/block: expected a random key in training, got none; pass key=jax.random."
        "key(seed), or train=False",
    ),
    "a_key_outside_training": (
        lambda x: passed(inside(fdl.dropout(0.5)), x, key=KEY),
        "chain: expected no random key outside training, got one; nothing is drawn at random with "
        "train=False: leave the key out, or pass train=True",
    ),
    "a_seed_for_a_key": (
        lambda x: in_training(fdl.dropout(0.5), x, key=7),
        "expected one random key, got 7; make it with jax.random.key(seed)",
    ),
    "no_key_in_init": (
        lambda x: inside(fdl.dense(2)).init(None, x),
        "decoder/block: expected a random key, got None; pass jax.random.key(seed)",
    ),
    "an_input_nobody_takes": (
        lambda x: passed(inside(fdl.dense(2)), x, mask=x),
        "chain: expected extra inputs among [], got 'mask', which no layer here takes; leave it "
        "out, or name it in the layer that should read it",
    ),
    "an_input_that_is_missing": (
        lambda x: passed(
            inside(fdl.network(lambda f, x, *, context: f.a(x) + context, a=fdl.tanh)), x
        ),
        "decoder/block: expected the input 'context', got none; pass it by name: context=...",
    ),
    "parameters_of_another_network": (
        renamed,
        "decoder: expected parameters of block, got also 'attention'; these are the "
        "parameters of another network",
    ),
    "a_parameter_missing": (
        lambda x: without(x, "decoder", "block", "w"),
        f"decoder/block: expected 'w' in the layer's params or state, got [b]; {OURS}",
    ),
    "all_parameters_missing": (
        lambda x: without(x, "decoder"),
        f"decoder/block: expected 'w' in the layer's params or state, got []; {OURS}",
    ),
    "state_missing": (
        lambda x: inside(running_mean()).apply({}, {}, x),
        f"decoder/block: expected 'mean' in the layer's params or state, got []; {OURS}",
    ),
    "state_where_there_should_be_none": (
        lambda x: fdl.stateless(inside(running_mean()))({}, x),
        "stateless: expected a network without state, got state at decoder; use "
        "model.apply(params, state, x)",
    ),
    "a_path_for_a_name": (
        lambda x: passed(fdl.chain(**{"a/b": fdl.dense(2)}), x),
        "chain: expected a child's name without '/' and '*', got 'a/b'; these two belong to paths "
        "and patterns",
    ),
    "a_name_twice": (
        lambda x: passed(fdl.chain(fdl.tanh, tanh_0=fdl.dense(2)), x),
        "chain: expected a name that is still free, got 'tanh_0' twice; choose another",
    ),
    "no_layer": (
        lambda x: passed(fdl.chain(fdl.dense(4), 8), x),
        "network: expected a Layer or a function of one array, got 8; call the layer's factory, as "
        "dense(8), or pass the function itself",
    ),
    "a_child_that_does_not_exist": (
        lambda x: passed(inside(fdl.network(lambda f, x: f.up(x), down=fdl.tanh)), x),
        "decoder/block: expected a child among down, got f.up; call one of these, or give network "
        "a child of that name",
    ),
    "a_forward_that_names_no_inputs": (
        lambda x: passed(fdl.network(lambda f, x, **more: f.a(x, **more), a=fdl.tanh), x),
        "network: expected a forward that names its extra inputs, as (f, x, *, mask), got (f, x, "
        "**more); only named inputs can be handed on and checked",
    ),
    "a_residual_of_another_width": (
        lambda x: passed(inside(fdl.residual(fdl.dense(3))), x),
        "decoder/block: expected f(x) like x float32 [3, 4], so that both can be added, got "
        "float32 [3, 3]; give the last layer as many features as x has, or use parallel(f, "
        "shortcut=...)",
    ),
    "a_residual_of_another_dtype": (
        lambda x: passed(inside(fdl.residual(lambda x: x > 0)), x),
        "decoder/block: expected f(x) like x float32 [3, 4], so that both can be added, got bool "
        "[3, 4]; give the last layer as many features as x has, or use parallel(f, shortcut=...)",
    ),
    "a_residual_of_nothing": (
        lambda x: passed(inside(fdl.residual()), x),
        "residual: expected at least 1 layer, got 0; pass layers, or plain functions of one array",
    ),
    "a_sum_of_two_widths": (
        lambda x: passed(inside(fdl.parallel(fdl.dense(2), fdl.dense(3))), x),
        "decoder/block: expected outputs of one shape and dtype, as float32 [3, 2] of dense_0, got "
        "float32 [3, 3] of dense_1; give both as many features, or merge by 'concat'",
    ),
    "two_shapes_joined": (
        lambda x: passed(inside(fdl.parallel(fdl.tanh, t=jnp.transpose, merge="concat")), x),
        "decoder/block: expected outputs that differ in the last axis alone, as float32 [3, 4] of "
        "tanh_0, got float32 [4, 3] of t; bring both to one shape, or merge by 'tuple'",
    ),
    "an_unknown_merge": (
        lambda x: passed(fdl.parallel(fdl.tanh, merge="mean"), x),
        "parallel: expected merge to be one of 'sum', 'concat', 'tuple', got 'mean'; take 'tuple', "
        "and merge by hand in a network",
    ),
    "inside_a_remat": (
        lambda x: passed(inside(fdl.remat(fdl.chain(q=fdl.dense(2)))), wide(x)),
        f"decoder/block/q: expected x [..., 4], got [3, 5]; {MORE}",
    ),
    "inside_an_unrolled_repeat": (
        lambda x: passed(inside(fdl.repeat(fdl.chain(q=fdl.dense(4)), 2)), wide(x)),
        f"decoder/block/0/q: expected x [..., 4], got [3, 5]; {MORE}",
    ),
    "inside_a_scanned_repeat": (
        lambda x: passed(inside(fdl.repeat(fdl.chain(q=fdl.dense(4)), 2, scan=True)), wide(x)),
        f"decoder/block/*/q: expected x [..., 4], got [3, 5]; {MORE}",
    ),
    "a_block_that_grows": (
        lambda x: passed(inside(fdl.repeat(fdl.dense(6), 2)), x),
        "decoder/block/0: expected a block that keeps x float32 [3, 4], so that another can "
        f"follow, got float32 [3, 6]; {ROOM}",
    ),
    "a_block_that_grows_in_a_scan": (
        lambda x: passed(inside(fdl.repeat(fdl.dense(6), 2, scan=True)), x),
        "decoder/block/*: expected a block that keeps x float32 [3, 4], so that another can "
        f"follow, got float32 [3, 6]; {ROOM}",
    ),
    "a_block_without_weights": (
        cut,
        f"decoder/block/2/b: expected float32 [4] as in block 0, got none; {OURS}",
    ),
    "no_blocks": (
        lambda x: passed(fdl.repeat(fdl.dense(4), 0), x),
        "repeat: expected n >= 1 blocks, got 0; say how many there are",
    ),
    "a_mask_for_blocks_without": (
        lambda x: passed(fdl.repeat(fdl.dense(4), 2, scan=True), x, mask=x),
        "repeat: expected extra inputs among [], got 'mask', which no layer here takes; leave it "
        "out, or name it in the layer that should read it",
    ),
    "a_norm_of_another_width": (
        lambda x: passed(inside(fdl.layer_norm()), wide(x)),
        "decoder/block: expected x [..., 4], got [3, 5]; give x that shape, or make new params "
        "with init",
    ),
    "one_example_to_normalize_over": (
        lambda x: in_training(fdl.batch_norm(), x[:1]),
        "decoder/block: expected at least 2 values for each channel in training, got x [1, 4], "
        "whose variance would be 0; give a larger batch, or take layer_norm or group_norm",
    ),
    "groups_that_do_not_divide": (
        lambda x: passed(inside(fdl.group_norm(3)), x, right=X[:, None]),
        "decoder/block: expected channels in 3 groups of one size, got 4 channels of x [3, 1, 4]; "
        "choose groups that divide them",
    ),
    "numbers_for_ids": (
        lambda x: passed(inside(fdl.embedding(5, 6)), x, right=X.astype(jnp.int32)),
        "decoder/block: expected integer ids, or vectors [..., 6], got float32 [3, 4]; convert ids "
        "with astype(int), or give vectors that width",
    ),
    "a_sequence_too_long": (
        lambda x: passed(inside(fdl.learned_positions(3)), x[:, :, None], right=X[:, :3, None]),
        "decoder/block: expected at most 3 elements, got x [3, 4, 1]; shorten the sequence, or "
        "make the layer with a larger length",
    ),
}

TRANSFORMS = {
    "eager": lambda use: use(X),
    "jit": lambda use: jax.jit(use)(X),
    "grad": lambda use: jax.grad(lambda x: use(x).sum())(X),
    "vmap": lambda use: jax.vmap(use)(jnp.stack([X, X])),
    "scan": lambda use: jax.lax.scan(lambda none, x: (none, use(x)), None, jnp.stack([X, X])),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_use_is_told(name, transform):
    use, told = WRONG[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(told) + r"(\n|$)"):
        transform(use)


@pytest.mark.parametrize("name", WRONG)
def test_a_message_has_four_parts(name):
    """Where: expected what, got what; what to do."""
    assert re.match(r"^([\w/*]+: )?expected .+, got .+; \w.+$", WRONG[name][1])


def text(node):
    """A message as the source has it, with `_` for whatever is filled in."""
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "_"


def messages():
    """(place and text, text) of every error and warning that fdl makes."""
    root = Path(fdl.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            made = isinstance(node, ast.Call) and ast.unparse(node.func)
            # type(error)(errno, message, path) is an OSError.
            if made and made.endswith(("Error", "warn", "_Damaged", "type(error)")):
                said = max(map(text, node.args), key=len, default="")
                yield f"{file.relative_to(root)}:{node.lineno}: {said}", said


def test_every_message_in_the_source_has_four_parts():
    """That none lacks a remedy: who reads it has a mistake to mend, and not a rule to look up."""
    found = list(messages())
    assert len(found) >= 250
    wrong = [at for at, said in found if not re.search(r"expected .+, got .+; \w", said)]
    assert not wrong, "\n".join(wrong)


def test_the_right_uses_pass():
    """What the wrong uses have in common with right ones is not what they are refused for."""
    assert len(WRONG) >= 30
    for layer in (
        fdl.dense(2),
        fdl.residual(fdl.dense(4)),
        fdl.parallel(fdl.dense(2), fdl.dense(2)),
        fdl.repeat(fdl.dense(4), 2, scan=True),
        masked(),
    ):
        given = {"mask": X} if layer.inputs else {}
        params, state = made(inside(layer), **given)
        inside(layer).apply(params, state, X, **given)
