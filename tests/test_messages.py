"""Wrong uses of layers and combinators: the path, what was expected, what came, what to do.

Every wrong use runs eagerly and under `jit`, `grad`, `vmap` and `scan`, and raises the same
message, with the shapes that the layer sees.
"""

import ast
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import fdl
from tests.toys import masked, running_mean

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)


def inside(layer):
    """The layer at decoder/block."""
    return fdl.chain(decoder=fdl.chain(block=layer))


def made(net, x=X, **inputs):
    """Parameters and state of the right shapes, all zero; messages do not depend on values."""
    shapes = jax.eval_shape(lambda: net.init(KEY, x, **inputs))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def passed(net, x, *, right=X, **given):
    """The output for x of `net` with parameters made for `right`."""
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
FLOATING = "convert x with x.astype(jnp.float32), or use rescale(1 / 255) as the first layer"
OURS = "pass the params and state that init made for this network"
ROOM = "give its last layer as many features as x has, and the same dtype"

# name -> (the wrong use, a function of x [3, 4]; the first line of what it is told)
WRONG = {
    "width": (
        lambda x: passed(inside(fdl.dense(2)), wide(x)),
        f"decoder/block: expected x [..., 4], got [3, 5]; {MORE}",
    ),
    "images_not_flattened": (
        lambda x: passed(inside(fdl.dense(2)), wide(x)[None]),
        f"decoder/block: expected x [..., 4], got [1, 3, 5]; flatten x, {MORE}",
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
        "dense: expected features >= 1, an integer, got 0; pass the number of outputs",
    ),
    "no_key_in_training": (
        lambda x: in_training(fdl.dropout(0.5), x),
        "decoder/block: expected a random key in training, got none; pass key=jax.random."
        "key(seed), or train=False",
    ),
    "a_key_outside_training": (
        lambda x: passed(inside(fdl.dropout(0.5)), x, key=KEY),
        "chain: expected no random key with train=False, got one; leave the key out, or pass "
        "train=True",
    ),
    "a_seed_for_a_key": (
        lambda x: in_training(fdl.dropout(0.5), x, key=7),
        "chain: expected one random key, got 7; make it with jax.random.key(seed)",
    ),
    "no_key_in_init": (
        lambda x: inside(fdl.dense(2)).init(None, x),
        "decoder/block: expected a random key, got None; pass jax.random.key(seed)",
    ),
    "an_input_nobody_takes": (
        lambda x: passed(inside(fdl.dense(2)), x, mask=x),
        "chain: expected extra inputs among [], got 'mask', which no layer here takes; leave it "
        "out, or add an argument of this name to the layer that needs it",
    ),
    "an_input_that_is_missing": (
        lambda x: passed(
            inside(fdl.network(lambda f, x, *, context: f.a(x) + context, a=fdl.tanh)), x
        ),
        "decoder/block: expected the input 'context', got none; pass it by name: context=...",
    ),
    "parameters_of_another_network": (
        renamed,
        "decoder: expected parameters of block only, got an entry for 'attention'; pass the "
        "parameters of this network, not of another one",
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
        "chain: expected a child's name without '/' and '*', got 'a/b'; rename the child, because "
        "paths and patterns use these characters",
    ),
    "a_name_twice": (
        lambda x: passed(fdl.chain(fdl.tanh, tanh_0=fdl.dense(2)), x),
        "chain: expected a different name for each layer, got 'tanh_0' twice; rename one of the "
        "two",
    ),
    "no_layer": (
        lambda x: passed(fdl.chain(fdl.dense(4), 8), x),
        "chain: expected a Layer or a function of one array, got 8; call the layer's factory, for "
        "example dense(8), or pass the function itself",
    ),
    "a_child_that_does_not_exist": (
        lambda x: passed(inside(fdl.network(lambda f, x: f.up(x), down=fdl.tanh)), x),
        "decoder/block: expected a child among down, got f.up; call one of these, or add a child "
        "of this name to the network",
    ),
    "a_forward_that_names_no_inputs": (
        lambda x: passed(fdl.network(lambda f, x, **more: f.a(x, **more), a=fdl.tanh), x),
        "network: expected a forward that names its extra inputs, such as (f, x, *, mask), got (f, "
        "x, **more); name them in forward, or pass inputs=('mask',)",
    ),
    "a_residual_of_another_width": (
        lambda x: passed(inside(fdl.residual(fdl.dense(3))), x),
        "decoder/block: expected f(x) with the shape and dtype of x, float32 [3, 4], got "
        "float32 [3, 3]; give the last layer as many features as x has, or use parallel(f, "
        "shortcut=...)",
    ),
    "a_residual_of_another_dtype": (
        lambda x: passed(inside(fdl.residual(lambda x: x > 0)), x),
        "decoder/block: expected f(x) with the shape and dtype of x, float32 [3, 4], got bool "
        "[3, 4]; convert f(x) with astype(float32), or convert x before this layer",
    ),
    "a_residual_of_nothing": (
        lambda x: passed(inside(fdl.residual()), x),
        "residual: expected at least 1 layer, got 0; pass layers, or plain functions of one array",
    ),
    "a_sum_of_two_widths": (
        lambda x: passed(inside(fdl.parallel(fdl.dense(2), fdl.dense(3))), x),
        "decoder/block: expected outputs of one shape and dtype, got float32 [3, 2] from dense_0 "
        "and float32 [3, 3] from dense_1; give both layers the same number of features, or pass "
        "merge='concat'",
    ),
    "two_shapes_joined": (
        lambda x: passed(inside(fdl.parallel(fdl.tanh, t=jnp.transpose, merge="concat")), x),
        "decoder/block: expected outputs that differ only in the last axis, got float32 [3, 4] "
        "from tanh_0 and float32 [4, 3] from t; give both layers outputs of one shape, or pass "
        "merge='tuple'",
    ),
    "an_unknown_merge": (
        lambda x: passed(fdl.parallel(fdl.tanh, merge="mean"), x),
        "parallel: expected merge to be one of 'sum', 'concat', 'tuple', got 'mean'; pass 'tuple', "
        "and combine the outputs in a network",
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
        "decoder/block/0: expected a block that keeps the shape and dtype of x, float32 [3, 4], "
        f"got float32 [3, 6]; {ROOM}",
    ),
    "a_block_that_grows_in_a_scan": (
        lambda x: passed(inside(fdl.repeat(fdl.dense(6), 2, scan=True)), x),
        "decoder/block/*: expected a block that keeps the shape and dtype of x, float32 [3, 4], "
        f"got float32 [3, 6]; {ROOM}",
    ),
    "a_block_without_weights": (
        cut,
        f"decoder/block/2/b: expected float32 [4], the same as in block 0, got none; {OURS}",
    ),
    "no_blocks": (
        lambda x: passed(fdl.repeat(fdl.dense(4), 0), x),
        "repeat: expected n >= 1, an integer, got 0; pass the number of blocks",
    ),
    "a_mask_for_blocks_without": (
        lambda x: passed(fdl.repeat(fdl.dense(4), 2, scan=True), x, mask=x),
        "repeat: expected extra inputs among [], got 'mask', which no layer here takes; leave it "
        "out, or add an argument of this name to the layer that needs it",
    ),
    "a_norm_of_another_width": (
        lambda x: passed(inside(fdl.layer_norm()), wide(x)),
        "decoder/block: expected x [..., 4], got [3, 5]; give x that shape, or make new params "
        "with init",
    ),
    "one_example_to_normalize_over": (
        lambda x: in_training(fdl.batch_norm(), x[:1]),
        "decoder/block: expected at least 2 values for each channel in training, got x [1, 4], "
        "whose variance would be 0; use a larger batch, or use layer_norm or group_norm",
    ),
    "groups_that_do_not_divide": (
        lambda x: passed(inside(fdl.group_norm(3)), x, right=X[:, None]),
        "decoder/block: expected a number of channels that is a multiple of 3 groups, got 4 "
        "channels of x [3, 1, 4]; choose groups as a divisor of 4",
    ),
    "numbers_for_ids": (
        lambda x: passed(inside(fdl.embedding(5, 6)), x, right=X.astype(jnp.int32)),
        "decoder/block: expected integer ids, or vectors [..., 6], got float32 [3, 4]; convert ids "
        "with astype(int), or pass vectors of this width",
    ),
    "a_sequence_too_long": (
        lambda x: passed(inside(fdl.learned_positions(3)), x[:, :, None], right=X[:, :3, None]),
        "decoder/block: expected at most 3 positions, got x [3, 4, 1]; shorten the sequence, or "
        "make the layer with a larger length",
    ),
}

IMAGES = jnp.ones((2, 16, 16, 3))
TOKENS = jnp.ones((3, 6, 8))
ROWS = "give x one row of features for each step, for example with an embedding"
CHANNELS = "give x that many channels, or make new params with init"
WINDOW = "pad more, or pool less in earlier layers"
AXIS = "add a channel axis with x[..., None]"


def of(x, *shape):
    """The numbers of x, again and again."""
    return jnp.resize(x, shape)


def seen(layer, x, shape, **inputs):
    """What a convolution or pooling made for IMAGES says to a wrong image."""
    return passed(inside(layer), of(x, *shape), right=IMAGES, **inputs)


def attended(layer, x, **inputs):
    """A first look at x [2, 3, 6]."""
    return made(inside(layer), of(x, 2, 3, 6), **inputs)


def read(x, shape=TOKENS.shape, **inputs):
    """A recurrent layer made for TOKENS [3, 6, 8]."""
    return passed(inside(fdl.lstm(5)), of(x, *shape), right=TOKENS, **inputs)


def repeated_in(layer, x, shape=TOKENS.shape, **inputs):
    return passed(inside(layer), of(x, *shape), right=TOKENS, **inputs)


WRONG |= {
    "channels_of_another_number": (
        lambda x: seen(fdl.conv(4, (3, 3)), x, (2, 8, 8, 2)),
        f"decoder/block: expected x [..., H, W, 3], got [2, 8, 8, 2]; {CHANNELS}",
    ),
    "no_axis_of_channels": (
        lambda x: seen(fdl.conv(4, (3, 3)), x, (8, 8)),
        f"decoder/block: expected x [..., H, W, 3], got [8, 8]; {AXIS}",
    ),
    "pixels_as_integers": (
        lambda x: seen(fdl.conv(4, (3, 3)), x.astype(jnp.uint8), (2, 8, 8, 3)),
        f"decoder/block: expected x of a floating dtype, got uint8 [2, 8, 8, 3]; {FLOATING}",
    ),
    "an_image_below_the_window": (
        lambda x: seen(fdl.conv(4, (3, 3), padding=(1, 0), dilation=4), x, (2, 9, 8, 3)),
        "decoder/block: expected an image not smaller than the dilated window, [9, 9], got [9, 8] "
        f"with padding [(1, 1), (0, 0)]; {WINDOW}",
    ),
    "no_output_of_a_transposed_convolution": (
        lambda x: seen(fdl.conv_transpose(4, (3, 3), padding=3), x, (2, 2, 4, 3)),
        "decoder/block: expected at least one output along each axis, got none for sizes [2, 4] "
        "and padding [(3, 3), (3, 3)]; pad less",
    ),
    "channels_of_a_depthwise_convolution": (
        lambda x: seen(fdl.depthwise_conv((3, 3)), x, (2, 8, 8, 2)),
        f"decoder/block: expected x [..., H, W, 3], got [2, 8, 8, 2]; {CHANNELS}",
    ),
    "channels_in_groups_that_do_not_divide": (
        lambda x: made(inside(fdl.conv(4, (3, 3), groups=2)), of(x, 2, 8, 8, 3)),
        "decoder/block: expected x [..., H, W, C] with C a multiple of 2 groups, got [2, 8, 8, 3]; "
        "choose a number of groups that divides the number of channels",
    ),
    "an_image_below_the_pool": (
        lambda x: seen(fdl.max_pool((3, 3)), x, (2, 2, 4, 1)),
        "decoder/block: expected an image not smaller than the dilated window, [3, 3], got [2, 4] "
        f"with padding [(0, 0), (0, 0)]; {WINDOW}",
    ),
    "nothing_to_pool": (
        lambda x: seen(fdl.average_pool((2, 2)), x, (4, 4)),
        f"decoder/block: expected x [..., H, W, C], got [4, 4]; {AXIS}",
    ),
    "nothing_to_pool_globally": (
        lambda x: seen(fdl.global_average_pool(), x, (4, 4)),
        f"decoder/block: expected x [B, ..., T, C], got [4, 4]; {AXIS}",
    ),
    "channels_that_cannot_be_shuffled": (
        lambda x: made(inside(fdl.pixel_shuffle(2)), of(x, 2, 2, 6)),
        "decoder/block: expected x [..., H, W, C] with C a multiple of 4 groups, got [2, 2, 6]; "
        "choose a number of groups that divides the number of channels",
    ),
    "pixels_that_cannot_be_unshuffled": (
        lambda x: made(inside(fdl.pixel_unshuffle(2)), of(x, 2, 3, 6)),
        "decoder/block: expected x [..., H, W, C] with H and W multiples of 2, got [2, 3, 6]; pad "
        "or crop x",
    ),
    "heads_that_do_not_divide": (
        lambda x: attended(fdl.attention(4), x),
        "decoder/block: expected x [..., D] with D a multiple of 4 heads, got [2, 3, 6]; pass "
        "head_features=..., or a number of heads that divides D",
    ),
    "no_axis_of_tokens": (
        lambda x: made(inside(fdl.attention(1)), x[0]),
        "decoder/block: expected x ['T', 'D'], got [4]; give x one row of features for each token",
    ),
    "a_mask_of_numbers": (
        lambda x: attended(fdl.attention(2), x, mask=jnp.ones((2, 1, 3, 3))),
        "decoder/block: expected mask to be bool [2, 2, 3, 3] or [3, 3], where any axis may have "
        "size 1, got float32 [2, 1, 3, 3]; if the mask is [B, S], pass (mask > 0)[:, None, None, "
        ":]",
    ),
    "a_mask_without_heads": (
        lambda x: attended(fdl.attention(2, chunk=2), x, mask=jnp.ones((2, 3, 3), bool)),
        "decoder/block: expected mask to be bool [2, 2, 3, 3] or [3, 3], where any axis may have "
        "size 1, got bool [2, 3, 3]; if the mask is [B, S], pass (mask > 0)[:, None, None, :]",
    ),
    "segments_of_another_length": (
        lambda x: attended(fdl.attention(2), x, segments=jnp.ones((2, 4), jnp.int32)),
        "decoder/block: expected segments to be integers [2, 3], got int32 [2, 4]; pass one "
        "segment number for each token",
    ),
    "an_odd_head_turned": (
        lambda x: attended(fdl.attention(2, head_features=3, rotary=True), x),
        "decoder/block: expected x [..., T, H, K] with K even and positions [..., T], got x "
        "[2, 3, 2, 3] and positions [3]; use heads with an even number of features, and pass one "
        "position for each token",
    ),
    "a_context_of_another_batch": (
        lambda x: attended(fdl.attention(2, cross=True), x, context=jnp.ones((3, 4, 6))),
        "decoder/block: expected context [2, 'T', 'D'], got [3, 4, 6]; give context one row of "
        "features for each token",
    ),
    "no_context": (
        lambda x: attended(fdl.attention(2, cross=True), x),
        "decoder/block: expected the input 'context', got none; pass it by name: context=...",
    ),
    "positions_for_attention_without": (
        lambda x: attended(fdl.attention(2), x, positions=jnp.arange(3)),
        "chain: expected extra inputs among [mask, bias, segments], got 'positions', which no "
        "layer here takes; leave it out, or add an argument of this name to the layer that needs "
        "it",
    ),
    "ids_instead_of_tokens": (
        lambda x: attended(fdl.attention(2), x.astype(jnp.int32)),
        f"decoder/block/q: expected x of a floating dtype, got int32 [2, 3, 6]; {FLOATING}",
    ),
    "tokens_of_another_width": (
        lambda x: repeated_in(fdl.attention(4), x, (3, 6, 12)),
        f"decoder/block/q: expected x [..., 8], got [3, 6, 12]; flatten x, {MORE}",
    ),
    "one_step_without_features": (
        lambda x: read(x, (8,)),
        f"decoder/block: expected x [..., T, 8] of a floating dtype, got float32 [8]; {ROWS}",
    ),
    "steps_of_another_width": (
        lambda x: read(x, (3, 6, 7)),
        f"decoder/block: expected x [..., T, 8] of a floating dtype, got float32 [3, 6, 7]; {ROWS}",
    ),
    "steps_as_ids": (
        lambda x: read(x.astype(jnp.int32)),
        f"decoder/block: expected x [..., T, 8] of a floating dtype, got int32 [3, 6, 8]; {ROWS}",
    ),
    "lengths_of_another_batch": (
        lambda x: read(x, lengths=jnp.array([6, 2])),
        "decoder/block: expected integer lengths [3] for x [3, 6, 8], got int32 [2]; pass the "
        "number of steps of each sequence",
    ),
    "lengths_as_a_mask": (
        lambda x: read(x, lengths=jnp.array([True, False, True])),
        "decoder/block: expected integer lengths [3] for x [3, 6, 8], got bool [3]; pass the "
        "number of steps of each sequence",
    ),
    "half_a_carry": (
        lambda x: read(x, carry={"h": jnp.zeros((3, 5))}),
        "decoder/block: expected a carry of h and c, each [3, 5], got h [3, 5]; pass the carry "
        "from a layer with returns='carry', or leave it out",
    ),
    "a_recurrence_of_another_width": (
        lambda x: made(inside(fdl.rg_lru(5)), x),
        "decoder/block: expected x [..., T, 5], got [3, 4]; add dense(5) before this layer, or "
        "pass the number of features of x as features",
    ),
    "a_row_for_experts": (
        lambda x: made(inside(fdl.mixture_of_experts(fdl.dense(2), 3)), x[0]),
        "decoder/block: expected x [..., T, D], got [4]; give x one row of features for each token",
    ),
    "an_equation_of_more_axes": (
        lambda x: made(inside(fdl.einsum_dense("btd,df->btf", {"f": 2})), x),
        "decoder/block: expected x with axes btd, got [3, 4]; give x these axes, or change the "
        "equation",
    ),
    "a_sine_without_a_cosine": (
        lambda x: made(inside(fdl.sinusoidal_positions()), x[:, :3]),
        "decoder/block: expected x [..., T, D] with an even D, got [3, 3]; use an even number of "
        "features, one for the sine and one for the cosine of each frequency",
    ),
}

ARRAY = "got a list; convert it with jnp.asarray"
COUNT = "pass the number of outputs"


def drawn(layer, x, **inputs):
    """A layer that gets a list, as from a JSON file."""
    return made(inside(fdl.chain(lambda x: [0.5, 0.25], block=layer)), x, **inputs)


WRONG |= {
    f"a_list_for_{name}": (
        functools.partial(drawn, layer),
        f"decoder/block/block: expected x to be an array, {ARRAY}",
    )
    for name, layer in {
        "dense": fdl.dense(2),
        "conv": fdl.conv(2, (3,)),
        "max_pool": fdl.max_pool((2,)),
        "layer_norm": fdl.layer_norm(),
        "attention": fdl.attention(1),
        "embedding": fdl.embedding(3, 2),
        "learned_positions": fdl.learned_positions(3),
        "lstm": fdl.lstm(2),
        "mixture_of_experts": fdl.mixture_of_experts(fdl.dense(2), 2),
        "einsum_dense": fdl.einsum_dense("td,df->tf", {"f": 2}),
        "prelu": fdl.prelu(),
    }.items()
}

WRONG |= {
    "state_of_another_network": (
        lambda x: fdl.chain(fdl.tanh).apply({}, {"batch_norm_0": {"mean": x}}, x)[0],
        "chain: expected state of tanh_0 only, got an entry for 'batch_norm_0'; pass the state of "
        "this network, not of another one",
    ),
    "a_width_that_is_no_integer": (
        lambda x: made(fdl.dense(4.0), x),
        f"dense: expected features >= 1, an integer, got 4.0; {COUNT}",
    ),
    "a_stride_that_is_no_integer": (
        lambda x: made(fdl.conv(4, (3, 3), stride=2.0), x),
        "conv: expected stride to be an integer >= 1, or one integer >= 1 for each of 2 axes, got "
        "2.0; write 2, or (2, 2)",
    ),
    "a_padding_that_is_true": (
        lambda x: made(fdl.conv(4, (3,), padding=True), x),
        "conv: expected padding to be SAME, VALID, CAUSAL, CIRCULAR, REFLECT, EDGE, an integer >= "
        "0, or a tuple with an integer or a pair for each of 1 axes, got True; write one integer "
        "for all sides, or (before, after) for each axis",
    ),
    "groups_that_are_no_integer": (
        lambda x: made(fdl.conv(4, (3,), groups=2.0), x),
        "conv: expected groups, an integer divisor of 4 features, got 2.0; choose a common "
        "divisor of the features and of the channels of x",
    ),
    "groups_of_a_norm_that_are_no_integer": (
        lambda x: made(fdl.group_norm(2.0), x),
        "group_norm: expected groups >= 1, an integer, got 2.0; pass 1 to normalize all channels "
        "together",
    ),
    "no_features_of_attention": (
        lambda x: made(fdl.attention(2, features=0), x),
        "attention: expected features >= 1, an integer, got 0; leave features out for the default",
    ),
    "a_soft_cap_of_nothing": (
        lambda x: made(fdl.attention(2, soft_cap=0.0), x),
        "attention: expected soft_cap > 0, got 0.0; pass a number such as 50, or None for no cap",
    ),
    "a_window_of_nothing": (
        lambda x: fdl.layers.dot_product_attention(*[of(x, 3, 2, 4)] * 3, window=0),
        "dot_product_attention: expected window and chunk to be integers >= 1 or None, got window "
        "0 and chunk None; pass None for no limit",
    ),
    "slopes_of_other_heads": (
        lambda x: fdl.layers.dot_product_attention(*[of(x, 3, 2, 4)] * 3, slopes=(0.5,)),
        "dot_product_attention: expected 2 slopes, one for each head, got 1; pass one number per "
        "head",
    ),
    "segments_of_another_batch": (
        lambda x: attended(fdl.attention(2), x[:1], segments=jnp.ones((3, 3), jnp.int32)),
        "decoder/block: expected segments to be integers [2, 3], got int32 [3, 3]; pass one "
        "segment number for each token",
    ),
    "positions_of_another_batch": (
        lambda x: attended(fdl.attention(3, rotary=True), x, positions=jnp.ones((3, 3))),
        "decoder/block: expected x [..., T, H, K] with K even and positions [..., T], got x "
        "[2, 3, 3, 2] and positions [3, 3]; use heads with an even number of features, and pass "
        "one position for each token",
    ),
    "a_list_for_bilinear": (
        lambda x: drawn(fdl.bilinear(2), x, other=x),
        f"decoder/block/block: expected x to be an array, {ARRAY}",
    ),
    "an_input_that_a_layer_does_not_take": (
        lambda x: made(inside(fdl.network(lambda f, x: f.a(x, mask=x), a=fdl.dense(2))), x),
        "decoder/block/a: expected extra inputs among [], got 'mask', which no layer here takes; "
        "leave it out, or add an argument of this name to the layer that needs it",
    ),
    "no_second_factor": (
        lambda x: made(inside(fdl.chain(fdl.bilinear(2))), x),
        "decoder/block/bilinear_0: expected the input 'other', got none; pass it by name: "
        "other=...",
    ),
    "an_array_for_a_carry": (
        lambda x: read(x, carry=jnp.zeros((3, 5))),
        "decoder/block: expected a carry of h and c, each [3, 5], got an array; pass the carry "
        "from a layer with returns='carry', or leave it out",
    ),
    "a_bias_of_another_length": (
        lambda x: passed(
            inside(fdl.einsum_dense("btd,df->bft", {"f": 2}, bias="ft")),
            of(x, 3, 5, 8),
            right=TOKENS,
        ),
        "decoder/block: expected x with axes btd where t = 6, d = 8, got [3, 5, 8]; give x these "
        "axes, or change the equation",
    ),
    "an_axis_twice": (
        lambda x: made(fdl.einsum_dense("dd,dk->dk", {"k": 2}), x),
        "einsum_dense: expected an equation x,w->y such as '...td,dhk->...thk', got 'dd,dk->dk'; "
        "name each axis of w in x or in y, and each axis of x in w or in y",
    ),
    "a_window_of_padding_alone": (
        lambda x: made(fdl.max_pool((2,), padding=2), x),
        "max_pool: expected a padding smaller than the window (2,), got 2; pad less, so that every "
        "window contains an element of x",
    ),
    "an_image_of_another_size": (
        lambda x: made(inside(fdl.models.vit(3, (4, 4), 2, 1, 1, 4)), of(x, 2, 4, 6, 1)),
        "decoder/block: expected x [B, 4, 4, C], got [2, 4, 6, 1]; resize the images, or pass "
        "their size to vit",
    ),
    "a_picture_of_another_shape": (
        lambda x: made(inside(fdl.models.autoencoder((2, 2), [3], 1)), x),
        "decoder/block: expected x ['B', 2, 2], got [3, 4]; reshape x, or pass its shape to "
        "autoencoder",
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
def test_a_wrong_use_raises_its_message(name, transform):
    use, told = WRONG[name]
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(told) + r"(\n|$)"):
        transform(use)


@pytest.mark.parametrize("name", WRONG)
def test_a_message_has_four_parts(name):
    """Where: expected what, got what; what to do."""
    assert re.match(r"^([\w/*]+: )?expected .+, got .+; \w.+$", WRONG[name][1])


def text(node):
    """A message in the source, with `_` for every part that is not a constant."""
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "_"


def messages():
    """(place and text, text) of every error and warning in fdl's source."""
    root = Path(fdl.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            made = isinstance(node, ast.Call) and ast.unparse(node.func)
            # type(error)(errno, message, path) is an OSError. An except clause makes the messages
            # of errors that begin with an errno, and of safetensors' errors.
            fact = made and any(ast.unparse(arg).startswith("errno.") for arg in node.args[:1])
            if (
                made
                and not fact
                and made != "SafetensorError"
                and made.endswith(("Error", "warn", "_Damaged", "type(error)"))
            ):
                said = max(map(text, node.args), key=len, default="")
                yield f"{file.relative_to(root)}:{node.lineno}: {said}", said


def test_every_message_in_the_source_has_four_parts():
    """Every message ends with a remedy."""
    found = list(messages())
    assert len(found) >= 250
    wrong = [at for at, said in found if not re.search(r"expected .+, got .+; \w", said)]
    assert not wrong, "\n".join(wrong)


def test_the_right_uses_pass():
    """The parts that wrong uses share with right ones raise nothing."""
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
