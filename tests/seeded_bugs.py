"""Tests the tests: seeds a bug, runs the tests that should see it, and expects them to fail.

    python tests/seeded_bugs.py               every bug, an hour or more
    python tests/seeded_bugs.py sgd dropout   those in files whose path holds one of these words

A bug is a file, a text in it, and what takes its place; each runs in a copy of its own. Add one
whenever you think of a mistake that somebody might make.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# file -> (the tests that should see a bug in it, perhaps with -k and words joined by _or_,
#          [(old text, new text), ...])
BUGS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "fdl/layers/linear.py": (
        "test_numbers.py test_layer.py test_laws.py",
        [
            ('return (y + params["b"] if bias else y), state', "return y, state"),
            ('y = x @ params["w"]', 'y = x @ params["w"] * 0.999'),
            ('w_init(subkey(key, "w")', "w_init(key"),
            ('b_init(subkey(key, "b"), (features,), x.dtype)', "b_init(key, (features,))"),
        ],
    ),
    "fdl/layers/stochastic.py": (
        "test_dropout.py test_numbers.py",
        [
            ("bernoulli(key, kept, shape)", "bernoulli(key, 1 - kept, shape)"),
            ("x / in_dtype(_or_one(kept), x.dtype)", "x"),
            ("x / in_dtype(_or_one(kept), x.dtype)", "x / in_dtype(1 - kept, x.dtype)"),
            ("x / in_dtype(_or_one(kept), x.dtype)", "x / in_dtype(kept, x.dtype)"),
            ("if not train or is_zero(rate)", "if is_zero(rate)"),
            ("square_root(_or_one(kept)", "square_root(kept"),
            ("jnp.where(share == 0, 1, share)", "share"),
            ("_kept(key, rate, x, x.shape)", "_kept(key, rate, x, x.shape[-1:])"),
            ("(x.ndim - 2), x.shape[-1])", "(x.ndim - 1))"),
            ("(x.shape[0], *[1] * (x.ndim - 1))", "(1, *x.shape[1:])"),
            ("- in_dtype(dropped * floor", "+ in_dtype(dropped * floor"),
            ("(1 + dropped * floor**2)", "(1 - dropped * floor**2)"),
            ("square_root(dropped / kept)", "dropped / kept"),
        ],
    ),
    "fdl/layers/cells.py": (
        "test_recurrent.py",
        [
            ("sigmoid(f) * carry", "sigmoid(i) * carry"),
            ('"h": sigmoid(o) * tanh(c), "c": c', '"h": sigmoid(o) * c, "c": c'),
            ("(1 - z) * n + z * h", "z * n + (1 - z) * h"),
            ("slice(features, 2 * features)", "slice(0, features)"),
            ("again = r * (sums", "again = (sums"),
            ("_product(r * h, w", "r * _product(h, w"),
            ("jnp.moveaxis(each, 0, 1)", "each"),
        ],
    ),
    "fdl/layers/recurrence.py": (
        "test_recurrent.py",
        [
            ("jnp.where(alive, new[part], carry[part])", "new[part]"),
            ('jnp.where(alive, new["h"], 0)', 'new["h"]'),
            ("jnp.where(alive, x_by_time, 0)", "x_by_time"),
            ("(driven, alive), reverse=reverse)", "(driven, alive))"),
            ("steps < lengths", "steps <= lengths"),
            ("return self.returned(y, carry), carry", "return self.returned(y, carry), state"),
            ("        if self.reverse:", "        if False:"),
            ("wide(x.dtype), self.cell", "x.dtype, self.cell"),
        ],
    ),
    "fdl/layers/state_space.py": (
        "test_linear_recurrence.py",
        [
            ("_kept(other[0], one[1]) + other[1]", "_kept(one[0], one[1]) + other[1]"),
            ("add(_kept(factor[..., 0, :], start.astype(dtype)))", "add(start.astype(dtype))"),
            ("jnp.where((a == 0) & ~jnp.isfinite(h), 0, h)", "h"),
            ("(a == 0) & ~jnp.isfinite(h)", "a == 0"),
            ("dtype = wide(b.dtype)", "dtype = b.dtype"),
            ("expm1(2 * log_a)", "expm1(log_a)"),
            ("softplus(-decay)", "softplus(decay)"),
            ("segments[..., 1:] != segments[..., :-1]", "segments[..., 1:] > segments[..., :-1]"),
            (
                "jnp.maximum(-jnp.expm1(2 * log_a), float(jnp.finfo(dtype).tiny))",
                "1 - jnp.exp(2 * log_a)",
            ),
            ('{"h": h[..., -1, :]}', '{"h": h[..., 0, :]}'),
        ],
    ),
    "fdl/layers/experts.py": (
        "test_experts.py",
        [
            ("if top_k > 1:", "if True:"),
            ("chosen.swapaxes(-1, -2)", "chosen.reshape(*chosen.shape[:-2], top_k, -1)"),
            ("jnp.cumsum(in_line, -2) - in_line", "jnp.cumsum(in_line, -2)"),
            ("jnp.where(place < room,", "jnp.where(place <= room,"),
            ("(weights[..., None] * held", "(held"),
            ('.get(mode="fill", fill_value=0)', '.get(mode="clip")'),
            ("logits.shape[-1] * (often", "(often"),
            ("capacity_factor=None, name=name", "capacity_factor=capacity_factor, name=name"),
            ("jnp.stack([subkey(key, each) for each in names])", "jnp.stack([key] * count)"),
        ],
    ),
    "fdl/layers/linear.py": (
        "test_products.py",
        [
            ('jnp.einsum(equation, x, params["w"])', 'jnp.einsum(equation, x, 1.01 * params["w"])'),
            ("(rows, columns), x.dtype), axis", "(columns, rows), x.dtype), axis"),
            (".transpose([drawn.index(a) for a in of_w])", ".reshape([size[a] for a in of_w])"),
            (' + params["b"], state', ", state"),
        ],
    ),
    "fdl/models/convolutional.py": (
        "test_famous_models.py",
        [
            ("size // 2 if symmetric_padding", "size // 2 if False"),
            ("1 if symmetric_padding", "0 if symmetric_padding"),
            ("first=stride)", "first=1)"),
            ("stride > 1 or after != channels", "stride > 1"),
            ("norm or batch_norm()", "batch_norm()"),
        ],
    ),
    "fdl/models/recurrent.py": (
        "test_recurrent.py -k classifier",
        [
            ('"last" if number == depth - 1 else "sequence"', '"last"'),
            ("bidirectional if both_ways else recurrent", "recurrent"),
        ],
    ),
    "fdl/layers/reparametrization.py": (
        "test_adapt.py",
        [
            ("in_dtype(scale, a.dtype) / a.shape[-1] *", "in_dtype(scale, a.dtype) *"),
            ("base + (in_dtype(scale", "base - (in_dtype(scale"),
            (
                "jnp.zeros((rank, w.shape[-1]), w.dtype)",
                "a_init(own, (rank, w.shape[-1]), w.dtype)",
            ),
            ("subkey(own, level)", "own"),
            ("model.init(key, x, **inputs)", 'model.init(subkey(key, "base"), x, **inputs)'),
        ],
    ),
    "fdl/layers/reparametrization.py": (
        "test_reweight.py",
        [
            ("fixed = jax.lax.stop_gradient(matrix)", "fixed = matrix"),
            ("moved if train else state[POWER]", "moved"),
            ("moved if train else state[POWER]", "state[POWER]"),
            ("v = direction(fixed @ u)", "v = direction(fixed @ jnp.ones_like(u))"),
            ('tuple(range(params["direction"].ndim - 1))', "None"),
            ("jnp.where((new == 0).all(), u, new)", "new"),
            ("jnp.where(sigma == 0, 1, sigma)", "sigma"),
            ("(matrix * (1 / jnp.where(sigma == 0, 1, sigma)))", "(matrix / (sigma + 1e-30))"),
        ],
    ),
    "fdl/layers/embeddings.py": (
        "test_embed.py test_decoding.py test_spread.py",
        [
            ("counted(layer, room, length)", "counted(layer, room)"),
            ("normal(features**-0.5)", "normal(1.0)"),
            ("[jnp.sin(turned), jnp.cos(turned)]", "[jnp.cos(turned), jnp.sin(turned)]"),
            (
                'rows(params["w"], to_jax(positions, name, "positions"))',
                'params["w"][: x.shape[-2]]',
            ),
        ],
    ),
    "fdl/layers/transformer.py": (
        "test_gated.py",
        [
            ("activation(f.gate(x)) * f.value(x)", "f.gate(x) * activation(f.value(x))"),
            ("up = gated(hidden, activation=activation, bias=bias)", "up = gated(hidden)"),
            ("down = dense(features, bias=bias)", "down = dense(features)"),
        ],
    ),
    "fdl/layers/normalization.py": (
        "test_norm.py",
        [
            ("momentum * old + (1 - momentum) * new", "(1 - momentum) * old + momentum * new"),
            ("variance * _over_one_less(count, variance.dtype)", "variance"),
            ("if unbiased:", "if True:"),
            (
                "jnp.minimum(variance * _over_one_less(count, variance.dtype), most)",
                "variance * _over_one_less(count, variance.dtype)",
            ),
            ('widened(x) / 2 - state["mean"] / 2', '(widened(x) - state["mean"]) / 2'),
            ("tuple(range(x.ndim - 1))", "(0,)"),
            ("if not train or x.size == 0:", "if train or x.size == 0:"),
            ("if not train or x.size == 0:", "if not train:"),
            ("jnp.where(count > 0, new[each], state[each])", "new[each]"),
            ("jnp.maximum(count - 1, 1)", "(count - 1)"),
            ("wide(x.dtype)\n", "x.dtype\n"),
        ],
    ),
    "fdl/layers/normalization.py": (
        "test_norm.py",
        [
            ("(*range(1, x.ndim - 1), x.ndim)", "(x.ndim,)"),
            ("(*range(1, x.ndim - 1), x.ndim)", "(*range(x.ndim - 1), x.ndim)"),
            ("tuple(range(1, x.ndim - 1))", "tuple(range(x.ndim - 1))"),
            (
                "over_root_mean_square(x, over, epsilon, mask)",
                "deviations(x, over, epsilon, mask).standard(epsilon)",
            ),
            (
                "over_root_mean_square(x, over, epsilon, mask)",
                "over_root_mean_square(x, over, epsilon)",
            ),
            ("deviations(x, over, epsilon, mask)", "deviations(x, over, epsilon)"),
            ("else mask.reshape(shape)", "else None"),
            ("tuple(sorted(map(int, each)))", "tuple(map(int, each))"),
        ],
    ),
    "fdl/layers/normalization.py": (
        "test_norm.py",
        [
            ("subkey(key, leaf)", "key"),
            ("jnp.where(mask, x, 0), mask", "x, mask"),
            ("y if mask is None else jnp.where(mask, y, 0)", "y"),
            ("if axis in self.features else 1", "if True else 1"),
        ],
    ),
    "fdl/ops/numerics.py": (
        "test_norm.py test_losses.py test_reweight.py",
        [
            ("jnp.clip(mean, low, high)", "mean"),
            ("jnp.where(jnp.isfinite(mean), mean, low / 2 + high / 2)", "mean"),
            ("jnp.square(left)", "0"),
            ("(self.apart - self.mean)", "self.apart"),
            (
                "added = in_dtype(epsilon, square.dtype) * inverse * inverse",
                "added = in_dtype(epsilon, square.dtype)",
            ),
            ("low, high = (jnp.where(nothing, 0, end) for end in (low, high))", "pass"),
            ("jnp.where(mask, x, 0).sum(", "x.sum("),
            ("jnp.maximum(high / 2 - half, half - low / 2)", "(high - low) / 2"),
            ("jnp.minimum(variance, most)", "variance"),
            ("x / power_of_two(largest(x, axes, keepdims=True))\n    square", "x\n    square"),
            ("jnp.where(square == 0, 1, square)", "square"),
        ],
    ),
    "fdl/layers/transformer.py": (
        "test_attention.py",
        [
            ("x, context, broken = self.spared(", "_, _, broken = self.spared("),
            ('Pairs(seen["mask"], seen["bias"]).seen()', 'seen["mask"]'),
            ("mask=context_mask, bias=context_bias", "mask=context_mask"),
            ("scale=scale,\n        soft_cap", "soft_cap"),
            ("y if broken is None else jnp.where(broken, jnp.nan, y)", "y"),
            ("q, k = f.q_norm(q), f.k_norm(k)", "q, k = f.q_norm(q), f.q_norm(k)"),
            (
                "_by_head(f.v(context, like=x), self.kv_heads)",
                "_by_head(f.v(x, like=x), self.heads)",
            ),
            ("if positions is None else positions", "if True else positions"),
            ("dropout(dropout_rate, name", "dropout(0.0, name"),
        ],
    ),
    "fdl/ops/attention_scores.py": (
        "test_attention.py",
        [
            ("(ahead <= 0)", "(ahead < 0)"),
            ("(ahead <= 0)", "(ahead <= 1)"),
            ("jnp.abs(ahead) < self.window", "jnp.abs(ahead) <= self.window"),
            ("/ math.sqrt(max(features, 1))", "/ max(features, 1)"),
            (
                "keys.place[-1] > queries.place[0] - self.window",
                "keys.place[-1] > queries.place[0]",
            ),
            ("scores - fall", "scores + fall"),
            ("scores + bias.astype", "scores - bias.astype"),
            ("scores * jnp.asarray(self.scale", "scores / jnp.asarray(self.scale"),
            ("shown if self.mask is None else self.mask & shown", "self.mask"),
            ("shown if self.mask is None else self.mask & shown", "shown"),
            ("UNSEEN = -1e38", "UNSEEN = -1e30"),
        ],
    ),
    "fdl/ops/attention.py": (
        "test_attention.py",
        [
            ("jnp.where(total == 0, 1, total)", "total"),
            ("jnp.where(seen, jnp.exp(scores - largest), 0)", "jnp.exp(scores - largest)"),
            ("v=_finite(v)", "v=v"),
            ("k=_finite(k)", "k=k"),
            ("no_key | jnp.isnan(keys.v)", "jnp.isnan(keys.v)"),
            ("(keys.v == sign * jnp.inf)", "(keys.v == jnp.inf)"),
            ("y = _spoiled(y, queries, keys, pairs, scoring, chunk)", "y = y"),
            ("dataclasses.replace(scoring, alike=True)", "scoring"),
            ("if not (q.shape[-3] and k.shape[-3]):", "if False:"),
        ],
    ),
    "fdl/ops/attention_blocks.py": (
        "test_attention.py",
        [
            ("so_far.total * kept", "so_far.total"),
            ("Pairs(*(y if x is None else x for", "Pairs(*(y for"),
            ("_split_pairs(pairs, -2, rows)", "_split_pairs(pairs, -1, rows)"),
            ("so_far.mixed * _of_rows(kept)", "so_far.mixed"),
            ("    @jax.checkpoint\n    def of_queries", "    def of_queries"),
            ("x[-1] + 1 + jnp.arange", "x[-1] - jnp.arange"),
        ],
    ),
    "fdl/layers/embeddings.py": (
        "test_attention.py",
        [
            ("first * cos - second * sin", "first * cos + second * sin"),
            ("pairs = (features or x.shape[-1]) // 2", "pairs = x.shape[-1] // 2"),
            ("rows(table, positions)", "table[: positions.shape[-1]]"),
            ("(np.arange(count) / count)", "(np.arange(count) / (2 * count))"),
            ("jnp.asarray(fixed % 2**32, jnp.uint32)", "jnp.asarray(fixed + 1, jnp.uint32)"),
            (".astype(dtype) * rest)", ".astype(dtype) * 0 * rest)"),
            ("jax.lax.rem(whole,", "jnp.mod(whole,"),
            ("2 ** (-4 * i / below)", "2 ** (-8 * i / below)"),
        ],
    ),
    "fdl/core/cache.py": (
        "test_decoding.py",
        [
            ('{"count": state["count"] + x.shape[-2]}', '{"count": state["count"] + 1}'),
            ("k.shape[-3] <= state", "k.shape[-3] < state"),
            ("positions = start + jnp.arange", "positions = jnp.arange"),
            ("and positions is None:", "and True:"),
            ("seen[..., x.shape[-2] :, :]", "seen[..., :before, :]"),
            ("return dataclasses.replace(layer, decoding=decoding)", "return layer"),
        ],
    ),
    "fdl/core/decoding.py": (
        "test_decoding.py",
        [
            ("if state else state", ""),
            ("if CALLED in state", "if False"),
            ("jax.tree.map(zeros, after), state)", "jax.tree.map(zeros, after), {})"),
        ],
    ),
    "fdl/generation/sampling.py": (
        "test_generation.py",
        [
            ("logits.astype(jnp.float32) / heat", "logits.astype(jnp.float32) * heat"),
            ("jax.random.fold_in(choice.key, numbers.max(initial=0))", "choice.key"),
            ("jax.lax.top_k(logits, kept)", "jax.lax.top_k(-logits, kept)"),
            ("min(top_k or kinds, kinds)", "min((top_k or kinds) + 1, kinds)"),
            ("lambda t: t > 0", "lambda t: t >= 0"),
            ("(before < top_p)", "(mass < top_p)"),
            (" | (top_p >= 1)", ""),
            ("logits / penalty, logits * penalty", "logits / penalty, logits / penalty"),
            ("jnp.isfinite(highest)", "highest == highest"),
            (
                "jnp.maximum(choice.temperature, bound)",
                "jnp.broadcast_to(choice.temperature, bound.shape)",
            ),
        ],
    ),
    "fdl/generation/prompts.py": (
        "test_generation.py",
        [
            ("(lengths < 1)", "(lengths < 0)"),
            ("(places + before[:, None])", "(places - before[:, None])"),
            ("(mask != (places < lengths[:, None])).any(1)", "lengths < 1"),
            ("each >= kinds", "each > kinds"),
        ],
    ),
    "fdl/generation/token_loop.py": (
        "test_generation.py",
        [
            ("carry[0] + piece < shortest", "carry[0] < shortest"),
            ("at - lengths)", "at + 0 * lengths)"),
            ("done | fails | (~prompted & ends)", "done | fails | ends"),
            ("~prompted & ~done & ~sound", "~done & ~sound"),
            ("jnp.isin(chosen, jnp.array(choice.end, text.dtype)) | over", "over"),
            ('jnp.minimum(newest, loop["at"])', "newest"),
            ('short & ~loop["done"].all() if choice.end else short', "short"),
            ("max(logits.shape[2], *tables, 1)", "logits.shape[2]"),
            ("jnp.pad(tokens, ((0, 0), (steps, 0)))", "jnp.pad(tokens, ((0, 0), (0, steps)))"),
            ("jnp.where(places > at, ", "jnp.where(places < 0, "),
        ],
    ),
    "fdl/generation/tokens.py": (
        "test_generation.py",
        [
            ("not np.all(sound)", "False"),
        ],
    ),
    "fdl/layers/reshaping.py": (
        "test_numbers.py",
        [
            ("* scale + offset", "* scale - offset"),
            ("x.reshape(x.shape[0], ", "x.T.reshape(x.shape[0], "),
        ],
    ),
    "fdl/layers/convolution.py": (
        "test_conv.py test_decoding.py",
        [
            ("if {*extent, *stride} == {1} and each_by_itself:", "if {*extent, *stride} == {1}:"),
            ("if stride == (1,) and padding in", "if padding in"),
            ('("CAUSAL", ((before, 0),))', '("CAUSAL", ((0, before),))'),
            ("    return at_once(layer)", "    return layer"),
            ('return (y + params["b"] if bias else y), state', "return y, state"),
            ("(*kernel, x.shape[-1] // groups, features)", "(*kernel, x.shape[-1], features)"),
            ("**windows, bias=False, w_init=w_init", "**windows, w_init=w_init"),
        ],
    ),
    "fdl/ops/sharding.py": (
        "test_spread.py test_embed.py",
        [
            ("wrap_negative_indices=False", "wrap_negative_indices=True"),
            ('mode="fill",', 'mode="clip",'),
            ("out_sharding=sharding_beside(ids, ids.ndim, w.ndim - 1),", ""),
            ("tuple(axes - _varying(a))", "()"),
            (
                "jnp.full_like(jnp.sum(x, tuple(range(axes, x.ndim))), value, dtype)",
                "jnp.full(x.shape[:axes], value, dtype)",
            ),
            ("jax.typeof(x).sharding.spec[:axes]", "(None,) * axes"),
        ],
    ),
    "fdl/layers/convolution.py": (
        "test_conv.py test_initializers.py",
        [
            ("1 / math.prod(strides)", "1.0"),
            ("jnp.swapaxes(w, -1, -3)", "w"),
            (
                "low, high = total // 2, total - total // 2",
                "low, high = total - total // 2, total // 2",
            ),
            ("max(extent, s) if isinstance", "extent if isinstance"),
            ("(low, high - extra)", "(low, high)"),
        ],
    ),
    "fdl/layers/pooling.py": (
        "test_pool.py",
        [
            ("_padded(x, axis, window, -jnp.inf)", "_padded(x, axis, window, 0)"),
            ("[k if count_padding else inside[i : i + k * d : d].sum() for", "[k for"),
            ("inside[i : i + k * d : d]", "inside[i : i + k]"),
            ("-(-(i + 1) * n // size)", "(i + 1) * n // size"),
            ("in reversed(range(len(window.kernel)))", "in range(len(window.kernel))"),
            ("exact(as_images(x, len(wanted)))", "as_images(x, len(wanted))"),
            (".sum(axis) / (end - start)", ".sum(axis) / size"),
        ],
    ),
    "fdl/ops/pooling.py": (
        "test_pool.py",
        [
            (" & ~jnp.expand_dims(found, axis + 1)", ""),
            ("places, n).min(", "places, -1).max("),
            ("free & ~each", "free"),
            ("min(s, k - q * s)", "s"),
            ("slice_in_dim(x, 0, windows, s, axis)", "slice_in_dim(x, 0, windows, 1, axis)"),
            ("x.shape[axis] - (k - 1) * d", "x.shape[axis] - k * d + 1"),
        ],
    ),
    "fdl/layers/reshaping.py": (
        "test_pool.py",
        [
            ("(number + 0.5) / times - 0.5", "number / times"),
            ("(1 - share) * y + share", "share * y + (1 - share)"),
            ("if share else y", ""),
            ("_interpolated(exact(y)", "_interpolated(y"),
            ("(-2, -1), (-4, -2)", "(-2, -1), (-2, -4)"),
            ("(-4, -2), (-2, -1)", "(-4, -2), (-1, -2)"),
        ],
    ),
    "fdl/core/any_rank.py": (
        "test_conv.py -k one_integer",
        [
            ("(int(size),) * rank", "(int(size),) * 2"),
            ("if kernels and rank not in kernels", "if False"),
            ("one if one.decoding is None else one.decoding(length)", "one"),
            ("if x.ndim - 2 not in AXES", "if False"),
        ],
    ),
    "fdl/ops/windows.py": (
        "test_conv.py",
        [
            ("return total // 2, total - total // 2", "return total - total // 2, total // 2"),
            ("(-(-n // s) - 1) * s + e - n, 0)", "e - 1, 0)"),
            (
                "tuple((e - 1, 0) for e in window.extent)",
                "tuple((k - 1, 0) for k in window.kernel)",
            ),
            ("(k - 1) * d + 1 for", "k * d for"),
        ],
    ),
    "fdl/ops/windows.py": (
        "test_conv.py",
        [('"EDGE": "edge"', '"EDGE": "reflect"'), ("if min(window.output) < 1:", "if False:")],
    ),
    "fdl/ops/convolution.py": (
        "test_conv.py",
        [
            ("(True, False): (WITHIN, None, INPUTS)", "(True, False): (CHANNELS, None, INPUTS)"),
            ("size if None not in axes else 1", "1"),
            (
                "lambda dx, dy, w, *, window: _kernel_gradient.bind(dx, dy",
                "lambda dx, dy, w, *, window: _kernel_gradient.bind(-dx, dy",
            ),
            ("cpu=functools.partial(on_cpu", "cpu=functools.partial(by_xla"),
            ("default=functools.partial(by_xla", "default=functools.partial(on_cpu"),
        ],
    ),
    "fdl/ops/convolution_cpu.py": (
        "test_conv.py",
        [
            ("jnp.float32 if jnp.finfo(a.dtype).bits < 32 else a.dtype", "a.dtype"),
            ("w = jnp.flip(w, tuple(range(rank)))", "pass"),
            ("(below, n + e - 1 - size - below)", "(below, below)"),
            ("start = at * window.dilation[axis]", "start = at"),
            ("return dw + form(", "return form("),
            ("each * dy, (places", "each * dy[:, ::-1], (places"),
            ("if x.shape[0] == 0:", "if False:"),
            ("== 1 and spread == (1,) * len(spread)", "== 1"),
            ("max(low, high) - apart + 1", "low - apart + 1"),
            ("max(low, high) - apart + 1", "high - apart + 1"),
            ("max(low, high) - apart + 1", "max(low, high) - apart"),
            ("- ((size - 1) * apart + 1)", "- size * apart"),
            ("max(size + gap, -(-window.output[-1] * stride // apart))", "size + gap"),
            ("period = -(-period // stride) * stride", "pass"),
            ("period = -(-period // stride) * stride", "period = period // stride * stride"),
            ("edges), 0, -3)", "edges), 0, 1)"),
            ("y, 0, window.output[-1]", "y, each - window.output[-1], each"),
        ],
    ),
    "fdl/activations/rectifiers.py": (
        "test_numbers.py test_activations.py",
        [
            ("jnp.where(x <= 0, jnp.zeros_like(x), x)", "jnp.maximum(x, jnp.zeros_like(x))"),
            ("jnp.where(x <= 0, jnp.zeros_like(x), x)", "jnp.where(x < 0, jnp.zeros_like(x), x)"),
            ("clipped(x, 0.0, 6.0)", "clipped(x, 0.0, 6.5)"),
            ('jax.nn.celu(x, like(x, "celu"', 'jax.nn.elu(x, like(x, "celu"'),
            ("x - size * jnp.sign(x)", "x - size"),
            ('jax.nn.elu(x, like(x, "elu", "alpha", alpha))', "jax.nn.elu(x, alpha)"),
        ],
    ),
    "fdl/activations/sigmoids.py": (
        "test_numbers.py",
        [
            ("clipped(x + 3, 0.0, 6.0) / 6", "clipped(x + 2.5, 0.0, 5.0) / 5"),
            ("x / (1 + jnp.abs(x))", "x / (1 + x)"),
        ],
    ),
    "fdl/activations/smooth.py": (
        "test_numbers.py test_activations.py",
        [
            ("return x * sigmoid(x)", "return x * sigmoid(1.702 * x)"),
            ("if not approximate:", "if False:"),
            ("jnp.clip(y, -12, 12)", "y"),
            ("jnp.clip(y, -12, 12)", "jnp.clip(y, -4, 4)"),
            ("x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x", "x"),
            (
                "jnp.maximum(y, 0) + constant / 2 / (size + root)",
                "(y + jnp.sqrt(jnp.square(y) + constant)) / 2",
            ),
        ],
    ),
    "fdl/activations/vectors.py": (
        "test_numbers.py test_activations.py",
        [
            ("jax.nn.softmax(x, axis=axis)", "jax.nn.softmax(x)"),
            ("deviations(x, (axis,), epsilon)", "deviations(x, (-1,), epsilon)"),
            ("return value * gate(opening)", "return opening * gate(value)"),
            ("(total - 1)", "(jax.lax.stop_gradient(total) - 1)"),
            ("1 + ranks * falling >", "ranks * falling >"),
        ],
    ),
    "fdl/initializers/shapes.py": (
        "test_numbers.py",
        [
            (
                "shape[-2] * field * share, shape[-1] * field",
                "shape[-1] * field, shape[-2] * field",
            ),
            ("shape[-2] * field * share, shape[-1] * field", "shape[-2], shape[-1]"),
        ],
    ),
    "fdl/checks.py": (
        "test_initializers.py test_optimizers.py test_messages.py test_pool.py test_losses.py "
        "test_laws.py "
        "-k option_or_told_or_number_or_refused_or_numpy",
        [
            ("return float(value) if known(value) else jnp.asarray(value, dtype)", "return value"),
            ("if known(value) else jnp.sqrt(value)", "if True else 0"),
            ("return known(value) and value == 0", "return not value"),
            ("bad = all(map(known, pair)) and not order", "bad = not order"),
            ("isinstance(value, Integral)", "isinstance(value, int)"),
            ("and not isinstance(value, bool) and", "and"),
            ("if not jnp.issubdtype(x.dtype, jnp.inexact)", "if False"),
            ("(fits(numbers.min()) and fits(numbers.max()))", "fits(numbers.max())"),
            ("if not is_number(value)", "if False"),
            ("return not isinstance(value, bool)", "return True"),
            ("return float(value) if known(value) else value", "return value"),
        ],
    ),
    "fdl/initializers/distributions.py": (
        "test_numbers.py test_initializers.py",
        [
            ("square_root(3 * variance)", "square_root(variance)"),
            ("he_normal = variance_scaling(2.0", "he_normal = variance_scaling(1.0"),
            ("dtype, -limit, limit)", "dtype, 0, limit)"),
            ("(fan_in + fan_out) / 2}", "(fan_in + fan_out)}"),
            ("key, lower, upper, shape", "key, -upper, upper, shape"),
            ("exact).astype(dtype)", "dtype)"),
        ],
    ),
    "fdl/initializers/structured.py": (
        "test_numbers.py test_initializers.py",
        [
            ("jnp.sign(jnp.diagonal(r))", "1"),
            ("size // 2 for size", "0 for size"),
            ("outputs // groups, dtype", "outputs, dtype"),
            ("math.ceil(zero)", "math.floor(zero)"),
            (".argsort(0)", ".argsort(1)"),
            ("jnp.asarray(scale, dtype) * jnp.eye", "jnp.eye"),
            ("jnp.asarray(scale, dtype) * jnp.eye", "scale * jnp.eye"),
            ("jnp.asarray(factor, w.dtype) * w", "w"),
            ("jnp.asarray(factor, w.dtype) * w", "factor * w"),
        ],
    ),
    "fdl/losses/targets.py": (
        "test_losses.py test_numbers.py",
        [
            ("(targets < 0) | (targets > 1)", "(targets > 1)"),
            ("(targets >= classes),", "(targets > classes),"),
            ("(apart > 0.01)", "(apart > 1)"),
            ("np.abs(targets) != 1", "targets != 1"),
        ],
    ),
    "fdl/losses/classification.py": (
        "test_losses.py",
        [
            ("logits.dtype) * missing)", "logits.dtype) * towards)"),
            ("bounded(jax.nn.softplus(fixed_at_infinity(towards)))", "jax.nn.softplus(towards)"),
            ("-fixed_at_infinity(nats)", "-nats"),
            ("alpha, 1 - alpha)", "1 - alpha, alpha)"),
            ("-jnp.expm1(-fixed_at_infinity(nats))", "jnp.exp(-nats)"),
            ("jnp.where(right, -jnp.inf, scores)", "scores"),
        ],
    ),
    "fdl/losses/contrastive.py": (
        "test_losses.py test_laws.py -k test_losses_or_loss",
        [
            ("jnp.square(jnp.maximum(0, jnp.asarray(", "jnp.square((jnp.asarray("),
            ("jnp.where(together == 0, 0, together *", "(together *"),
            ("jnp.square(a - b).sum(-1))", "norm(a - b, -1) ** 2)"),
            ("near - far + jnp", "near - far - jnp"),
            ("/ jnp.asarray(temperature", "* jnp.asarray(temperature"),
            ("scale * scores + bias", "scale * scores - bias"),
        ],
    ),
    "fdl/losses/cross_entropy.py": (
        "test_losses.py test_numbers.py test_laws.py -k loss_or_entropy_or_numbers",
        [
            ("jax.lax.stop_gradient(logits.max(-1, keepdims=True))", "0 * logits.max()"),
            ("product(1 - targets, jax.nn.softplus(logits))", "jax.nn.softplus(logits)"),
            ("product(1 - targets, jax", "((1 - targets) * jax"),
            ("jnp.expm1(-most)) + others)", "jnp.exp(-most) - 1) + others)"),
            ("jnp.where(never, behind, own)", "own"),
            ("bounded(ahead) - bounded(most)", "ahead - most"),
            ("bounded(logits) - bounded(most), logits - most", "logits - most, logits - most"),
            ("jnp.where(some, nats_of_all(logits), 0)", "nats_of_all(logits)"),
            ("if jnp.broadcast_shapes(weight.shape, logits.shape) != logits.shape:", "if False:"),
            ("1 - share + share / classes", "1 - share"),
            ("_expected_nats(chances * weights", "_expected_nats(chances"),
            ("product(jnp.where(right, weights, 0).sum(-1), ", "("),
            ("jnp.where(some, targets, 1)", "targets"),
        ],
    ),
    "fdl/losses/per_example.py": (
        "test_losses.py test_laws.py -k count_or_where_leaves_or_hides_or_free_in_a",
        [
            ("with free_ranks():", "if True:"),
            ("hidden = dict(zip(arrays, _hidden(mask, found), strict=True))", "hidden = {}"),
            ("return shown(value, mask)", "return value"),
            ("not info.min <= index <= info.max", "False"),
            ("others if where is None else others & where", "others"),
            ("if not isinstance(f, functools.partial) or not", "if True or not"),
        ],
    ),
    "fdl/losses/regression.py": (
        "test_losses.py test_laws.py -k test_losses_or_loss",
        [
            ("jnp.square(predictions - targets)", "jnp.square(predictions - targets) / 2"),
            ("slope * (magnitude", "(magnitude"),
            (
                "jnp.where(far, 0, error), jnp.where(far, delta, 0)",
                "error, jnp.where(far, delta, 0)",
            ),
            ("jnp.where(far, delta, 0)", "delta"),
            ("jnp.square(score)", "score"),
            ("jnp.exp(-log_variance / 2)", "jnp.exp(-log_variance)"),
            ("return magnitude(predictions", "return jnp.abs(predictions"),
            ("jnp.where(far, error + jnp.log1p(jnp.exp(-2 * error)) - math.log(2), near)", "near"),
            ("far = error > 1", "far = error > 0"),
            (
                "error, level = targets - predictions",
                "error, level = predictions - targets",
            ),
            ("largest * (1 - LARGEST_LOG_RATE) + slope", "slope"),
            ("product(targets, near)", "targets * near"),
            ("+ jax.scipy.special.gammaln(targets + 1)", ""),
        ],
    ),
    "fdl/losses/segmentation.py": (
        "test_losses.py",
        [("+ smooth)", ")"), ("+ misses * targets", "")],
    ),
    "fdl/losses/sequence.py": (
        "test_losses.py test_laws.py -k test_losses_or_loss",
        [
            ("(states != blank) & (states != before)", "(states != blank)"),
            ("(frame < lengths)", "(frame <= lengths)"),
            ("jnp.where(inside[..., None], precise(logits), 0)", "precise(logits)"),
            ("-jnp.minimum(nats, -NEVER)", "-nats"),
            ("wrong | (lengths < 0) | (lengths > frames)", "wrong"),
            ("(labels < -1).any(-1) | holes", "(labels < -1).any(-1)"),
            ("jnp.where(count == 0, NEVER, in_label)", "NEVER"),
            ("NEVER = -1e30", "NEVER = -1e4"),
        ],
    ),
    "fdl/losses/shapes.py": (
        "test_numbers.py test_losses.py test_laws.py",
        [
            ("jnp.full_like(loss, jnp.nan)", "jnp.zeros_like(loss)"),
            ("(chances == 0) & jnp.isinf(nats)", "chances == 0"),
            ("return bounded(*primals), tangents[0]", "return bounded(*primals), 0 * tangents[0]"),
            ("labels.dtype.itemsize >= 4", "True"),
            ("x if x.dtype == jnp.float64 else x.astype(jnp.float32)", "x"),
        ],
    ),
    "fdl/losses/vocabulary.py": (
        "test_losses.py",
        [
            ("kept = precise(w)", "kept = w"),
            ("size = min(chunk, max(flat.size, 1))", "size = flat.size"),
            ("jax.checkpoint(one)(*args)", "one(*args)"),
            ("jnp.square(jax", "jnp.abs(jax"),
        ],
    ),
    "fdl/metrics/classification.py": (
        "test_numbers.py test_metrics.py",
        [
            ("jnp.where(jnp.isnan(logits).any(-1), -1, place)", "place"),
            ("labels.astype(np.int64) * classes + pr", "pr"),
            ("((logits == own) & earlier)", "(logits == own)"),
            ("ratio(right, said)", "ratio(right, true)"),
            ('if average != "macro"', 'if average == "binary"'),
            ("cells.at[rows, columns]", "cells.at[columns, rows]"),
            ("if classes not in (None, logits.shape[-1]):", "if False:"),
            ("~said_yes & (targets == 0) & ~jnp.isnan(logits)", "~said_yes"),
            ("if jnp.shape(logits)[-1:] == (1,):", "if False:"),
            ("all - said - true + right, all - true", "all - said - true, all - true"),
            ("logits > _threshold(", "logits >= _threshold("),
            ("jnp.zeros((classes, classes), weight.dtype)", "jnp.zeros((classes, classes))"),
        ],
    ),
    "fdl/metrics/metric.py": (
        "test_metrics.py test_losses.py -k metric_or_another_shape",
        [
            ("self.low + other.low + error", "self.low + other.low"),
            ("jnp.where(jnp.isfinite(low), low, jnp.zeros_like(low))", "low"),
            ("counting(f, targets), values.shape", "None, values.shape"),
            ("if counts is None or shape[: counts.ndim] != counts.shape:", "if counts is None:"),
            (
                "return with_ranks(init, update, merge, computed)",
                "return Metric(init, update, merge, computed)",
            ),
            ("jnp.ones(shape, jnp.int32)", "jnp.ones(shape, jnp.float32)"),
            ("jnp.where(weight == 0, 0, values * weight)", "values * weight"),
        ],
    ),
    "fdl/metrics/regression.py": (
        "test_metrics.py",
        [
            (
                "self.squares.plus(other.squares).plus(between)",
                "self.squares.plus(other.squares)",
            ),
            ("1 - missed.over(whole)", "missed.over(whole)"),
            ("jnp.maximum(self.unit, other.unit)", "self.unit"),
            (
                "ratio(self.total.value(), other.total.value()) * factor * factor",
                "ratio(self.total.value(), other.total.value())",
            ),
            ("jnp.where(size == 0, smallest, ", "jnp.where(size == 0, 1.0, "),
            ("weighted_sum(values / unit, weight)", "weighted_sum(values, weight) / unit"),
        ],
    ),
    "fdl/metrics/probability.py": (
        "test_metrics.py",
        [
            ("/ math.log(2)", ""),
            ("jnp.ceil(sure * bins) - 1", "jnp.round(sure * bins)"),
            ("jnp.where(right, weight, nothing[0])", "weight"),
            ("weighted_sum(lengths, weight)", "weight.sum()"),
        ],
    ),
    "fdl/metrics/ranking.py": (
        "test_metrics.py",
        [
            ("jnp.where(bits >= sign, ~bits, bits | sign)", "bits | sign"),
            ("jnp.cumsum(false) - false / 2", "jnp.cumsum(false)"),
            ("jnp.where(scores == 0, 0, scores)", "scores"),
            ("near = HALF + (HALF - _rank(1 - scores))", "near = place"),
            ('sums["unknown"] > 0', "False"),
            ("np.cumsum(false) - false / 2", "np.cumsum(false)"),
            ("ratio(above, above + wrong)", "ratio(above, wrong)"),
            ("jnp.cumsum(false[::-1])", "jnp.cumsum(false)"),
            ("np.concatenate([[np.inf], thresholds])", "np.concatenate([thresholds, [np.inf]])"),
            ("(true / true[-1])[::-1], [0.0]", "(true / true[-1])[::-1], [1.0]"),
        ],
    ),
    "fdl/look/draw.py": (
        "test_draw.py",
        [
            ("np.append(curve.precision[:-1], curve.precision[-2])", "curve.precision"),
            ('line.set_drawstyle("steps-post")', 'line.set_drawstyle("steps-pre")'),
            ("<= 32 else", "<= 320 else"),
            ('"bottom" if high < 0.1 else "top"', '"top"'),
        ],
    ),
    "fdl/train/reports.py": (
        "test_metrics.py test_train.py test_run.py",
        [
            ("Sum(self.total, self.lost[0])", "Sum(self.total, 0.0)"),
            ("Mean(value * count, jnp.full_like(value, count))", "Mean(value, 1.0)"),
            (
                "return Mean(weighted_sum(values, weight), weight.sum())",
                "return Mean(weighted_sum(values, weight), jnp.float32(values.size))",
            ),
            ("self.metric.merge(self.state, other.state)", "other.state"),
            (
                "self.predictions, self.targets, self.weight)",
                "self.predictions, self.targets, None)",
            ),
        ],
    ),
    "fdl/gradients.py": (
        "test_gradients.py",
        [
            ("(f(above) - f(below)) / (above - below)", "(f(above) - f(x)) / (above - x)"),
            ("_eps(dtype) ** (1 / 3)", "_eps(dtype) ** (1 / 2)"),
            ("* jnp.maximum(jnp.abs(x), 1)", "* 1.0"),
            ("if not error <= allowed", "if error > allowed"),
            ("(params,), (vector,))[1]", "(params,), (vector,))[0]"),
        ],
    ),
    "fdl/optim/chaining.py": (
        "test_optim.py",
        [
            (
                "each.update(updates, own, params, **extra_args)",
                "each.update(updates, own, params)",
            ),
            ("jnp.asarray(p + u, jnp.result_type(p))", "p + u"),
            ("jnp.asarray(p + u,", "jnp.asarray(p - u,"),
            ("jnp.shape(p) != jnp.shape(u)", "False"),
        ],
    ),
    "fdl/optim/lifting.py": (
        "test_optimizers.py test_optim.py test_width.py",
        [
            ('{"count": increment(state.count)}', '{"count": state.count}'),
            (
                "tuple(map(_as, rule(*given, *own[first:]), before))",
                "tuple(rule(*given, *own[first:]))",
            ),
            ("or any(map(_reshaped, new, before))", ""),
            ("count + 1, last)", "count + 2, last)"),
            ("rows.append((None, *own[len(own) - kept :]))", "rows.append((None,) * (1 + kept))"),
        ],
    ),
    "fdl/optim/checks.py": (
        "test_optimizers.py test_optim.py -k told_or_number_or_refused",
        [
            ("lambda value: 0 <= value < 1", "lambda value: 0 <= value <= 1"),
            ("lambda value: 0 <= value < math", "lambda value: -1e9 <= value < math"),
            ("lambda value: least <= value < math.inf", "lambda value: True"),
            ("lambda value: 0 < value < math.inf", "lambda value: 0 < value"),
            ("and not fits(*pair)", "and False"),
            ("if not callable(value):", "if known(value):"),
        ],
    ),
    "fdl/optim/learning_rate.py": (
        "test_optimizers.py test_optim.py",
        [
            ("sign = -1 if flip_sign else 1", "sign = 1 if flip_sign else -1"),
            ("(g + s * w,)", "(g - s * w,)"),
            ("(g + s * w,)", "(g + s,)"),
            ("else masked(whole, mask)", "else whole"),
            ("state._replace(count=increment(state.count)) if", "state if"),
        ],
    ),
    "fdl/optim/masking.py": (
        "test_optimizers.py test_beside_optax.py -k adamw_or_mapped_or_read_or_extra",
        [
            ("mine if keep else other", "mine"),
            ("part if keep else M", "part if not keep else M"),
            ("if is_placeholder(params):", "if False:"),
            ("return callable(value) and not read", "return callable(value)"),
            ("cut(value, wanted) if", "value if"),
        ],
    ),
    "fdl/optim/protocol.py": (
        "test_beside_optax.py -k ranks",
        [("with_free_ranks(update))", "update)")],
    ),
    "fdl/optim/optimizers/sgd_family.py": (
        "test_optimizers.py test_beside_optax.py -k sgd_or_lion_or_rprop_or_dampening",
        [
            ("new = saturated(share + decay * t,", "new = saturated(share - decay * t,"),
            ("new = saturated(share + decay * t,", "new = saturated((1 - decay) * g + decay * t,"),
            ("if nesterov else new, new", "if not nesterov else new, new"),
            ('stateless("scale_by_sign", jnp.sign)', 'stateless("scale_by_sign", jnp.tanh)'),
            ("chain(scale_by_sign(), scale_by", "chain(scale_by"),
            ("c = (1 - b1) * g + b1 * m", "c = b1 * g + (1 - b1) * m"),
            ("signs[mode](c), (1 - b2) * g + b2 * m", "signs[mode](c), (1 - b1) * g + b1 * m"),
            ("jnp.where(count == 1, g,", "jnp.where(count == 0, g,"),
            ("jnp.tanh(smooth_beta * c)", "jnp.tanh(c)"),
            (
                "scale_by_lion(b1, b2, mu_dtype),\n"
                "        add_decayed_weights(weight_decay, mask),",
                "add_decayed_weights(weight_decay, mask),\n"
                "        scale_by_lion(b1, b2, mu_dtype),",
            ),
            ("agreement > 0, eta_plus, eta_minus", "agreement > 0, eta_minus, eta_plus"),
            ("if delayed else u, size, u", "if not delayed else u, size, u"),
            ("agreement == 0, size, resized", "agreement > 0, size, resized"),
        ],
    ),
    "fdl/optim/optimizers/adagrad_family.py": (
        "test_optimizers.py -k adagrad_or_rmsprop_or_adadelta",
        [
            ("rsqrt(v + eps), 0.0)", "rsqrt(v) + eps, 0.0)"),
            ("v = square + jnp.minimum(v,", "v = square + 0 * jnp.minimum(v,"),
            ("else 1 / (jnp.sqrt(v) + eps)", "else jax.lax.rsqrt(v + eps)"),
            ("v = (1 - decay) * square + decay * v", "v = square + decay * v"),
            ("correction(decay, *t)", "correction(decay, t[0] + 1)"),
            ("v_hat - squared_size(unbiased(m))", "v_hat"),
            ("jnp.sqrt(x + eps)", "(jnp.sqrt(x) + eps)"),
            ("(1 - rho) * u**2 + rho * x", "(1 - rho) * g**2 + rho * x"),
            ("rate = 1.0 if", "rate = 0.1 if"),
        ],
    ),
    "fdl/optim/optimizers/adam_family.py": (
        "test_optimizers.py -k adam",
        [
            ("first(m, g) / (jnp.sqrt(", "m / (jnp.sqrt("),
            ("return first(m, g) / (jnp.sqrt(corrected(v, c2)", "return first(m, g) / (jnp.sqrt(v"),
            ("return first(m, g)", "return -first(m, g)"),
            ("corrected(v, c2) + eps_root) + eps), m", "corrected(v, c2) + eps_root + eps)), m"),
            ("m = (1 - b1) * g + b1 * m", "m = g + b1 * m"),
            ("c1_next = correction(b1, t + 1)", "c1_next = c1"),
            ("first_moment(b1, t, nesterov), c", "first_moment(b2, t, nesterov), c"),
            ("return 1 - decay**t", "return 1 - decay ** (t + 1)"),
            (
                "add_decayed_weights(weight_decay, mask),\n"
                "        scale_by_learning_rate(learning_rate),",
                "scale_by_learning_rate(learning_rate),\n"
                "        add_decayed_weights(weight_decay, mask),",
            ),
            (
                "mu_dtype, nesterov=nesterov),\n        add_decayed_weights(weight_decay, mask),",
                "mu_dtype, nesterov=nesterov),",
            ),
        ],
    ),
    "fdl/optim/optimizers/adam_family.py": (
        "test_optimizers.py -k nadam",
        [
            ("momentum_decay * t))", "momentum_decay * t / 2))"),
            ("product = product * now", "product = now"),
            ("nesterov: bool = True", "nesterov: bool = False"),
        ],
    ),
    "fdl/optim/optimizers/adam_family.py": (
        "test_optimizers.py -k amsgrad_or_adamax_or_adabelief",
        [
            ("jnp.maximum(largest, before(v))", "before(v)"),
            ("if correct_maximum else (v_hat", "if not correct_maximum else (v_hat"),
            ("jnp.sqrt(after(largest) + eps_root) + eps)", "jnp.sqrt(after(largest) + eps))"),
            ("jnp.abs(g) + eps, b2 * u", "jnp.abs(g), b2 * u"),
            ("corrected(m, c1) / u", "m / u"),
            ("bounded(g - m)[1]", "bounded(g)[1]"),
            ("b2 * s + eps_root", "b2 * s"),
        ],
    ),
    "fdl/optim/optimizers/adam_family.py": (
        "test_optimizers.py -k radam",
        [
            ("trusted, adapted, m_hat", "trusted, adapted, m"),
            ("rho >= threshold", "rho >= 4.0"),
            ("jnp.where(trusted, squared, 1.0)", "squared"),
            ("rho_inf - 2 * t * b2t", "rho_inf - t * b2t"),
            ("r.astype(m.dtype) * m_hat", "m_hat"),
        ],
    ),
    "fdl/optim/optimizers/layerwise.py": (
        "test_optimizers.py -k lars_or_lamb",
        [
            ("trust_coefficient * w_length /", "trust_coefficient / w_length /"),
            ("jnp.where(none, u, moved)", "moved"),
            ("(u_length + eps / u_size.power)", "u_length"),
            (
                "scale_by_learning_rate(learning_rate),\n        trace(momentum, nesterov),",
                "trace(momentum, nesterov),\n        scale_by_learning_rate(learning_rate),",
            ),
            (
                "add_decayed_weights(weight_decay, mask),\n        scale_by_trust_ratio(),",
                "scale_by_trust_ratio(),\n        add_decayed_weights(weight_decay, mask),",
            ),
        ],
    ),
    "fdl/optim/optimizers/lookahead_family.py": (
        "test_optimizers.py -k lookahead",
        [
            ("sync_period - 1", "sync_period"),
            ("(1 - slow_step_size) * apart", "slow_step_size * apart"),
            ("where(meeting, inner", "where(~meeting, inner"),
        ],
    ),
    "fdl/optim/optimizers/schedule_free_family.py": (
        "test_optimizers.py -k schedule_free_or_weights_to_test",
        [
            ("state.step_count if look_ahead else", "state.step_count + 1 if look_ahead else"),
            ("largest**power", "largest"),
            ("x = (1.0 - c) * x + c * new_z", "x = c * x + (1.0 - c) * new_z"),
            ("b1 * x + (1.0 - b1) * new_z - y", "b1 * x + (1.0 - b1) * z - y"),
            ("bias_correction=True", "bias_correction=False"),
            ("(1.0 - state.b1) * z) / state.b1", "(1.0 - state.b1) * z)"),
        ],
    ),
    "fdl/core/network.py": (
        "test_layer.py test_look.py test_messages.py",
        [
            ('subkey(key, "/forward")', "key"),
            ('"train": train}', '"train": False}'),
            ("check_inputs(child, layer.inputs or (), layer.required, given)", "pass"),
            ("own_key = jax.random.fold_in(own_key, calls[child])", "pass"),
            ("new_state = dict(state)", "new_state = state"),
        ],
    ),
    "fdl/core/inputs.py": (
        "test_layer.py test_messages.py test_pool.py",
        [
            ("if key is not None and not train", "if False"),
            ("if each not in given:", "if False:"),
            ('{"parameters": params, "state": state}', '{"parameters": params}'),
        ],
    ),
    "fdl/core/combinators.py": (
        "test_combinators.py test_products.py test_decoding.py",
        [
            ("inner.apply(jax.lax.stop_gradient(params), state", "inner.apply(params, state"),
            (
                "inner.apply(jax.lax.stop_gradient(params), state, x, **given)",
                "inner.apply(params, state, x, key=key, train=train, **given)",
            ),
            ("leaf.reshape(*lead, *leaf.shape[1:])", "leaf"),
            ("batch_apply(rebuild(others), axes=axes)", "rebuild(others)"),
            ("if axes > 1 else same", ""),
            ("return x + y", "return y"),
            ("f[child](x, **those_of(layer, given))", "f[child](x)"),
            ("policy=policy)(params", "policy=None)(params"),
            ("jax.checkpoint(again, policy=policy)(", "again("),
            ("if _kind(y) != _kind(x)", "if False"),
            ("rebuild and (lambda", "None and (lambda"),
        ],
    ),
    "fdl/core/repeat.py": (
        "test_repeat.py",
        [
            ("_keys(key, names, name)", "_keys(key, names[:1] * n, name)"),
            ("FEW = 16", "FEW = 12"),
            ("f[child](fence(x), **those_of(block, given))", "f[child](fence(x))"),
            ('with at("*"):', 'with at("0"):'),
            ("policy=policy, prevent_cse", "policy=None, prevent_cse"),
            ("if policy is None else remat(inner, policy=policy)", ""),
            ("leaf[number], stacked", "leaf[0], stacked"),
            ("return y, new", "return y, state"),
        ],
    ),
    "fdl/models/transformer.py": (
        "test_transformer.py test_famous_models.py",
        [
            ("        causal=causal,\n", ""),
            ("        kv_heads=kv_heads,\n        causal=causal,", "        causal=causal,"),
            (".swapaxes(2, 3)", ""),
            ("chain(residual(layer), norm)", "residual(layer, norm)"),
            ("if norm_first else identity", "if True else identity"),
            ("f.embed(ids) + f.types(types)", "f.embed(ids)"),
            ("f.embed_norm(f.positions(h))", "f.positions(f.embed_norm(h))"),
            ("h[:, 0] if class_token", "h[:, -1] if class_token"),
            ("        gate=gate,\n        bias=bias,", "        bias=bias,"),
        ],
    ),
    "fdl/ops/fence.py": (
        "test_combinators.py",
        [
            ('set_xla_metadata(inlineable="false")', "set_xla_metadata()"),
            ('platform="cpu")', 'platform="tpu")'),
            ("[other.bind(ct)]", "[other.bind(2 * ct)]"),
        ],
    ),
    "fdl/core/layer.py": (
        "test_layer.py test_laws.py",
        [("zlib.crc32(name.encode())", "0"), ("zlib.crc32(name.encode())", "len(name)")],
    ),
    "fdl/paths.py": (
        "test_paths.py",
        [
            ('f"{name}/{error.path}" if', 'f"{error.path}/{name}" if'),
            ("used = _past_stars(pattern, {0})", "used = {0}"),
            ("_past_stars(pattern, stay | go)", "stay | go"),
            ("_past_stars(pattern, stay | go)", "_past_stars(pattern, go)"),
            ("return len(pattern) in used", "return bool(used)"),
            ("int(level) if level.isdecimal() else 0", "0"),
            ("        if path in levels:", "        if False:"),
            ("[leaves[path_of(keys)] for keys, _ in pairs]", "list(leaves.values())"),
        ],
    ),
    "fdl/data/order.py": (
        "test_stream.py",
        [
            ("for shift in range(0, 32, bits)", "for shift in range(0, 16, bits)"),
            ("epoch + digit * offset_of_digit // examples + offset", "epoch + offset"),
            ("epoch + position // examples, position", "epoch, position"),
            ("epoch + position // examples, position", "epoch * 0, position"),
            ("offset + jnp.arange(batch_size", "offset + 1 + jnp.arange(batch_size"),
            ("ROUNDS = 8", "ROUNDS = 2"),
            ("(hashes < mine)", "(hashes <= mine)"),
            ("32 - examples.bit_length()", "33 - examples.bit_length()"),
        ],
    ),
    "fdl/optim/optimizers/adafactor_family.py": (
        "test_matrix_optimizers.py",
        [
            ("square.mean(columns)", "square.mean(rows)"),
            ("r.mean(rows - (rows > columns)", "r.mean(rows - (rows < columns)"),
            ("count + 1, jnp.float32) ** -", "count + 2, jnp.float32) ** -"),
            ("square = square + epsilon", "pass"),
            ("ema(momentum, False", "ema(momentum, True"),
            ("jnp.maximum(rms.value, min_scale)", "rms.value"),
        ],
    ),
    "fdl/optim/optimizers/muon_family.py": (
        "test_matrix_optimizers.py",
        [
            ("(1 - beta) * g + beta * m", "g + beta * m"),
            ("first_moment(beta, t, nesterov)", "first_moment(beta, t, False)"),
            ("jnp.sum(m_hat.conj() * u) * u", "jnp.sum(m.conj() * u) * u"),
            ("fan_out / fan_in", "fan_in / fan_out"),
            ("found[-steps:]", "found[:steps]"),
        ],
    ),
    "fdl/ops/newton_schulz.py": (
        "test_matrix_optimizers.py",
        [
            ("c * gram @ gram", "c * gram"),
            ("keepdims=True) + eps / power", "keepdims=True)"),
            ("else gram * s**2", "else gram * s"),
            ("rows[0]), rows[1:]", "rows[0]), rows"),
        ],
    ),
    "fdl/optim/optimizers/muon_family.py": (
        "test_matrix_optimizers.py",
        [
            ("transpose(place)", "transpose(self.order)"),
            ("Fold(shape, tuple(positive[:split])", "Fold(shape, tuple(positive[-split:])"),
        ],
    ),
    "fdl/optim/optimizers/sam_family.py": (
        "test_matrix_optimizers.py",
        [
            ("start - w + u, -e)", "start - w + u, e)"),
            ("start - w + u, -e)", "u, -e)"),
            ("jnp.where(whole.part > 0, whole.part, jnp.ones_like(whole.part))", "whole.part"),
            ("if reset_state else up_state", "if reset_state else state.adv_state"),
            ("up.update(updates, up_state, point", "up.update(updates, up_state, params"),
            ("updates = gradient_at(point, i)", "updates = gradient_at(point, 0)"),
        ],
    ),
    "fdl/optim/optimizers/lbfgs_family.py": (
        "test_lbfgs.py",
        [
            ("(state.count - 1) % memory_size", "state.count % memory_size"),
            ("curvature / squared /", "squared / curvature /"),
            ("add_scaled(r, alpha - beta, s)", "add_scaled(r, alpha, s)"),
            ("oldest_first, reverse=True)", "oldest_first)"),
            ("jnp.minimum(1.0, 1.0 / size(", "(1.0 / size("),
            ("lambda u: -u)", "lambda u: u)"),
        ],
    ),
    "fdl/optim/optimizers/line_search.py": (
        "test_lbfgs.py",
        [
            ("retreat = end.failed &", "retreat = ~end.done & (end.count < 0) &"),
            ("turned = (new.slope >= 0)", "turned = (new.slope < 0)"),
            ("beyond = (new.slope * (high.step - low.step) >= 0)", "beyond = (new.slope >= 0)"),
            ("where(above, low, new), high", "where(above, new, low), high"),
            ("new.value < now.safe.value", "new.value > now.safe.value"),
            ("jnp.minimum(jnp.maximum(flat, near), error)", "error"),
            ("c * new.step * start.slope", "c * start.slope"),
            ("rules.curv_rtol * jnp.abs", "jnp.abs"),
            ("scale = (to_b * to_c) ** 2", "scale = to_b * to_c"),
            ("slope / (2.0 * second)", "slope / second"),
        ],
    ),
    "fdl/optim/optimizers/line_search.py": (
        "test_lbfgs.py",
        [
            ("if name in wanted}", "}"),
            ('1.0 if initial_guess_strategy == "one" else', "1.0 if True else"),
            ("jnp.conj, grad), updates)", "jnp.negative, grad), updates)"),
        ],
    ),
    "fdl/optim/optimizers/soap_family.py": (
        "test_soap.py",
        [
            ("+ (1 - beta) * gram(axis)", "+ gram(axis)"),
            ("squared_size(rotate(g, bases))", "squared_size(g)"),
            ("bases, back=True)", "bases)"),
            ("(jnp.sqrt(v) + self.eps)", "jnp.sqrt(v + self.eps)"),
            ("jnp.sqrt(1 - self.b2**t) / (1", "(1 - self.b2**t) / (1"),
            ("(_sorted, _turned)", "((lambda v, L, q: v), _turned)"),
            ("jnp.argsort(-jnp.real(", "jnp.argsort(jnp.real("),
            ("~skipped & (t % k", "~skipped & (count % k"),
            ("(1 - self.b1) * g + self.b1 * m", "g + self.b1 * m"),
        ],
    ),
    "fdl/train/step.py": (
        "test_train.py test_run.py",
        [
            ("step = run.step + jnp.uint32(1)", "step = run.step"),
            ("jax.random.fold_in(jax.random.key(run.seed), run.step)", "jax.random.key(run.seed)"),
            ("draw_batch(data, run.seed, run.step", "draw_batch(data, run.seed, run.step * 0"),
            ("run._replace(state=state)", "run"),
            ("jnp.where(sound, new, old)", "new"),
            ("seed = seed.item()", "pass"),
            (
                "Run(apply_updates(run.params, updates), run.state",
                "Run(updates, run.state",
            ),
            ("copy=True", "copy=False"),
        ],
    ),
    "fdl/train/batches.py": (
        "test_train.py test_run.py",
        [
            ("here & ~jnp.isfinite(leaf)", "False & here"),
            ("here & ~jnp.isfinite(leaf)", "~jnp.isfinite(leaf)"),
        ],
    ),
    "fdl/train/checks.py": (
        "test_first_use.py",
        [
            ("if shapes[0] != shapes[1]:", "if False:"),
            ("isinstance(params[1], dict) and not params[1]", "params[1]"),
            ('getattr(getattr(leaf, "dtype", None), "kind", None)', '"f"'),
        ],
    ),
    "fdl/ops/rank_promotion.py": (
        "test_run.py -k ranks",
        [('None) == "allow"', 'None) != "raise_"')],
    ),
    "fdl/exports.py": (
        "test_rooms.py",
        [("if name in bound and", "if name in bound and name.islower() and")],
    ),
    "fdl/train/objective.py": (
        "test_train.py test_metrics.py test_losses.py -k test_train_or_test_metrics_or_count",
        [
            ("counting(self.loss, y), counting(f, y)", "counting(f, y),"),
            ("counting(self.loss, y), counting(f, y)", "counting(self.loss, y),"),
            ("train = key is not None", "train = False"),
            ("train = key is not None", "train = True"),
            ("handed = key_and_train(self.model, key, train)", "handed = {}"),
            ("Seen(f, y_pred, y, weight)", "Seen(f, y_pred, y)"),
            ("check_targets(self.loss, y_pred, y)", "pass"),
        ],
    ),
    "fdl/train/evaluation.py": (
        "test_train.py test_run.py",
        [
            ("lambda: of(whole=True), lambda", "lambda: of(whole=False), lambda"),
            ("model.apply(params, state, x, **inputs)", "model.apply(params, state, x)"),
            ("jax.tree.map(pairwise_sum, each)", "jax.tree.map(jnp.mean, each)"),
            ("jax.tree.map(pairwise_sum, each)", "jax.tree.map(lambda x: jnp.cumsum(x)[-1], each)"),
            ("if full < examples:", "if False:"),
            ("check_data(spared(data))", "length(data)"),
            ("check_data(spared(data))", "check_data(data)"),
            ("whole = looks_around(objective, params, state, data)", "whole = False"),
            ("seen = 1 if not whole else", "seen = 1 if whole else"),
            ("as_means(loss, metrics, float(length(batch)))", "as_means(loss, metrics)"),
            ("if has_eval_params(opt_state, params):", "if False:"),
        ],
    ),
    "fdl/optim/wrappers/evaluation.py": (
        "test_run.py",
        [
            ("LookaheadParams(params.slow, params.slow)", "params"),
            ("state.steps_since_sync == 0, w, start", "state.steps_since_sync != 0, w, start"),
            ("(1.0 - state.b1) * z", "state.b1 * z"),
            ("found += [part, *_parts(tuple(part), kind)]", "found = [part]"),
        ],
    ),
    "fdl/train/program.py": (
        "test_train.py test_run.py",
        [
            ("added(means, new)", "new"),
            ("jnp.isfinite(x).all() for x in floating", "jnp.isfinite(x).any() for x in floating"),
            ("_sound((run.params, run.state))", "jnp.array(True)"),
        ],
    ),
    "fdl/train/loop.py": (
        "test_train.py test_run.py",
        [
            ("(step // every + 1) * every", "step + every"),
            ("means = own(none_yet) if due else means", "pass"),
            ("first, now, step, data = now, own(now)", "first, now, step, data = now, now"),
            ("Fraction(str(float(epochs)))", "float(epochs)"),
            ("means = host.go_on(before, own(none_yet))", "means = own(none_yet)"),
            ("unfinished = None if due else unfinished", "unfinished = None"),
            ("size = batch_size if whole else BATCH_SIZE", "size = BATCH_SIZE"),
        ],
    ),
    "fdl/train/hooks.py": (
        "test_train.py test_run.py",
        [
            ('1 if mode == "min" else -1', '1 if mode == "max" else -1'),
            ("self.worse += 1", "pass"),
            ("            self.worse = 0\n", ""),
            ("signal.signal(signal.SIGINT, before)", "pass"),
            ("*own(params_and_state(run))", "*params_and_state(run)"),
            ("*own(params_and_state(run))", "*own((run.params, run.state))"),
            ("np.isfinite(value) and (", "("),
            ("elif due and self.patience", "elif self.patience"),
            ("self.best, self.worse = unfinished.best, unfinished.worse", "pass"),
            ("self._fail(error)", "raise"),
            ("warned = bool(self.waiting)", "warned = False"),
            (
                '        self.waiting = ""\n',
                "",
            ),
        ],
    ),
    "fdl/core/compilation.py": (
        "test_run.py",
        [
            ("owner.programs.pop(program.key, None)", "pass"),
            ("self.key = _known_by(static, forget)", "self.key = tuple(static.values())"),
            ("return type(value), value\n", "return value\n"),
            ("self.to() is other.to() is not None", "self.to() is not None"),
            ("self.held.static = before", "pass"),
        ],
    ),
    "fdl/port/weights.py": (
        "test_weights.py",
        [
            ("array.reshape(-1).view", "array.ravel('K').view"),
            ("kept = set(leaves).difference(picked)", "kept = set(leaves)"),
            ("in found.items() if _is_picked(path, only)}", "in found.items()}"),
            ("if isinstance(leaf, jax.ShapeDtypeStruct):", "if False:"),
            ("if path not in found]", "if False]"),
            ("if path not in wanted]", "if False]"),
            ("raw[0::2] | raw[1::2] << 4", "raw[1::2] | raw[0::2] << 4"),
            ('raise _not_whole(file, "a name that', '_not_whole(file, "a name that'),
            ('f"{note} {shape[:-1]}"', "each['kind']"),
            ('raw.astype(bool) if dtype.kind == "b" else', ""),
        ],
    ),
    "fdl/port/files.py": (
        "test_weights.py",
        [
            ("temporary.unlink(missing_ok=True)", "pass"),
            ("            os.fsync(handle)\n", ""),
            ("            os.fsync(folder)\n", "            pass\n"),
            ("os.path.realpath(file)", "file"),
            (
                "        if before is not None:\n            os.chmod",
                "        if False:\n            os.chmod",
            ),
        ],
    ),
    "fdl/data/arrays.py": (
        "test_arrays.py",
        [
            ("changed = narrow != chunk", "changed = narrow < 0"),
            ("np.isfinite(chunk.view(real)) & ", ""),
            ("seen += len(chunk)", "pass"),
            ('if column.dtype.kind not in "biuf"]', "if False]"),
            ("isinstance(node, list) and _is_list", "_is_list"),
            ("shapes[:MOST]", "shapes"),
        ],
    ),
    "fdl/data/datasets/idx.py": (
        "test_idx.py",
        [
            ("_read(content, stream, expected + 1)", "content += stream.read()"),
            ("_read(content, stream, expected + 1)", "_read(content, stream, expected)"),
        ],
    ),
    "fdl/data/datasets/downloading.py": (
        "test_download.py",
        [
            ("if file.tell() + len(block) > size:", "if False:"),
            ("if part.tell() > most:", "if False:"),
            ("size + size // 1000 + 1000", "size"),
        ],
    ),
    "fdl/data/datasets/mnist_like.py": (
        "test_mnist.py",
        [
            ("if given is None:\n        for", "if False:\n        for"),
            (" and not _is_known(source, labels)", " and False"),
            ("(above / source.name, above)", "(above, above / source.name)"),
            ("unpack=not source.packed", "unpack=True"),
            ("if not above.is_dir():", "if False:"),
        ],
    ),
    "fdl/look/representations.py": (
        "test_look.py test_repeat.py",
        [
            ("if number else path", "if False else path"),
            ("(*state.get(OUTPUTS, ()), y)", "(y,)"),
            ("if name != OUTPUTS}", "}"),
            (" and any(each.startswith(above) for each in wanted)", ""),
        ],
    ),
    "fdl/look/representations.py": (
        "test_look.py",
        [
            ("/ curvature, w", "/ curvature * 1e-3, w"),
            ("rows - rows.mean(0)", "rows"),
            ("[:count].T", "[-count:].T"),
            ("rows = rows / unit", "unit = 1"),
            ("h, h_test = h / unit, h_test / unit", "h = h"),
            ("* spread * unit", "* unit"),
        ],
    ),
    "fdl/train/hooks.py": (
        "test_progress.py",
        [
            ("values(means) | self.validated", "values(means)"),
            ("self.bar.update(self.task, seen=", "str("),
        ],
    ),
    "fdl/look/panels.py": (
        "test_draw.py",
        [
            ("(last - before) / 2", "(last - before) / 3"),
            (
                "order = [name for column in range(ncols) for name in names[column::ncols]]",
                "order = names",
            ),
            ("MaxNLocator(nbins=6, integer=high - low >= 3)", "MaxNLocator(integer=True)"),
            ("_spread(middles / unit, apart) * unit", "middles"),
            ('"#ee0011"', '"#881111"'),
        ],
    ),
    "fdl/look/checks.py": (
        "test_draw.py",
        [("if least < 0", "if False"), ("== np.rint(array.astype(np.float64))", "== array")],
    ),
    "fdl/look/differences.py": (
        "test_compare.py",
        [
            ("np.where(bits < 0, lowest - bits, bits)", "bits"),
            ("max(apart, key", "min(apart, key"),
            ("np.where(same, 0.0, np.where(gap != gap, np.inf, gap))", "gap"),
            ("x.view(x.real.dtype) if np.iscomplexobj(x) else x", "x.real"),
        ],
    ),
    "fdl/optim/schedules/decay.py": (
        "test_schedules.py",
        [
            ("left = jnp.maximum(1 - part, 0)", "left = jnp.maximum(1 - part**power, 0)"),
            ("(init - end) * left**power + end", "init * left**power + end"),
            ("jnp.maximum(value, end), jnp.minimum", "jnp.minimum(value, end), jnp.maximum"),
            ("t // as_count(steps, t)", "jnp.floor(fraction(t, steps))"),
            ("(1 - alpha) * cosine**exponent + alpha", "cosine**exponent + alpha"),
            ("cosine = 0.5 * (1 + ", "cosine = 0.5 * (1 - "),
            ("up / jnp.sqrt(beyond)", "up / beyond"),
            (
                "since(count, transition_begin, transition_steps)",
                "since(count, 0, transition_steps)",
            ),
        ],
    ),
    "fdl/optim/schedules/counting.py": (
        "test_schedules.py",
        [
            ("jnp.maximum(count, whole) - whole", "count - whole"),
            ("return count >= ", "return count > "),
            ("count = jnp.asarray(count)\n    whole", "count = scalar(count)\n    whole"),
            ("scalar(elapsed), scalar(most)", "elapsed, as_count(most, elapsed)"),
            ("- scalar(begin % 1)", "- 0"),
            ("(scalar(boundary % 1) == 0)", "True"),
        ],
    ),
    "fdl/optim/schedules/piecewise.py": (
        "test_schedules.py",
        [
            ("begin, start = boundary, end", "begin = boundary"),
            ("(jnp.cos(jnp.pi * part) + 1)", "(jnp.cos(jnp.pi * part) - 1)"),
            ("(div_factor * final_div_factor)", "final_div_factor"),
            ("(int(pct_final * t), 1.0 / div_factor)", "(int(pct_final * t), div_factor)"),
        ],
    ),
    "fdl/optim/schedules/warmup.py": (
        "test_schedules.py",
        [
            ("scalar(following(elapsed))", "scalar(following(count))"),
            ("decay_steps - warmup_steps, alpha", "decay_steps, alpha"),
            ("ends.append(end)", "ends.append(cycle['decay_steps'])"),
            ("if known(warmup_steps) and warmup_steps == 0:", "if False:"),
        ],
    ),
    "fdl/train/sweeps.py": (
        "test_compare_optimizers.py",
        [
            ("np.where(_finite(trained.curves).all(1), score, np.inf)", "score"),
            ("curve <= sign * target", "curve <= target"),
            ('1 if mode == "min" else -1', "1"),
            ("records[there.argmax(-1)]", "there.argmax(-1)"),
        ],
    ),
    "fdl/train/sweeps.py": (
        "test_compare_optimizers.py",
        [
            ("np.int32(step - taken)", "np.int32(step)"),
            ("jnp.asarray(seeds, jnp.uint32)", "jnp.zeros(len(seeds), jnp.uint32)"),
            ("make(rate).init(params), (None, 0)", "make(rates[0]).init(params), (None, 0)"),
            ("jax.vmap(jax.vmap(eval_params))(run.opt_state, run.params)", "run.params"),
        ],
    ),
    "fdl/look/optimizer_comparison.py": (
        "test_compare_optimizers.py",
        [
            ("ends.std(ddof=1)", "ends.std()"),
            ("values.min(-1), values.max(-1)", "values.mean(-1), values.max(-1)"),
            ("met.mean():.0f", "met.min():.0f"),
        ],
    ),
    "fdl/ops/widths.py": (
        "test_width.py test_optimizers.py",
        [
            (
                "return cast_like(new, updates), cast_like(new_state, state)",
                "return new, new_state",
            ),
            ("update(widened_tree(updates), state", "update(updates, state"),
            ("jnp.where(jnp.isinf(x), x, jnp.clip(x, -most, most))", "x"),
            ("jnp.where(jnp.isinf(g), g, jnp.clip(g, -limit, limit))", "g"),
            ("jnp.minimum(squared_size(g), most)", "squared_size(g)"),
            ("jnp.real(g.conj() * g) if jnp.iscomplexobj(g) else g * g", "g * g"),
            ("jnp.where(size > most, g / (size / most).astype(g.dtype), g)", "g"),
            ("jnp.where(finite, jnp.clip(x, -most, most), x)", "x"),
        ],
    ),
    "fdl/optim/tree_vectors.py": (
        "test_width.py -k length",
        [
            ("(squares > limits.tiny * 2.0**66)", "(squares >= 0)"),
            ("& (squares <= limits.max)", ""),
            ("return x * (1 / self.power).astype(x.dtype)", "return x / self.value"),
        ],
    ),
    "fdl/optim/wrappers/precision.py": (
        "test_width.py -k coarse_or_steps_below_or_master_or_bits",
        [
            ("jnp.asarray(narrowed(m, p.dtype), m.dtype) - jnp.asarray(p, m.dtype)", "u"),
            ("else m + jnp.asarray(u, m.dtype)", "else jnp.asarray(p, m.dtype) + u"),
            ('"value_fn": rounding', '"value_fn": lambda f: f'),
            (
                "MasterWeightsState(master, inner_state)\n\n",
                "MasterWeightsState(state.master, inner_state)\n\n",
            ),
            ("return updates, cast_like(new_state, state)", "return updates, new_state"),
        ],
    ),
    "fdl/optim/wrappers/clipping.py": (
        "test_transformations.py test_width.py -k clip_or_length_or_centr_or_norm",
        [
            (
                "jnp.where(part * whole.power < max_norm, g,",
                "jnp.where(part * whole.power > max_norm, g,",
            ),
            ("clipping * jnp.maximum(w_length, eps)", "clipping * (w_length + eps)"),
            ("axis != out_axis % g.ndim", "axis == out_axis % g.ndim"),
            ("(whole.of(g) / part)", "(g / part)"),
            ("jnp.maximum(1 / rms.power,", "jnp.minimum(1 / rms.power,"),
        ],
    ),
    "fdl/optim/wrappers/non_finite.py": (
        "test_transformations.py",
        [
            ("in_a_row > max_consecutive_errors", "in_a_row >= max_consecutive_errors"),
            (
                "jnp.where(finite, 0, increment",
                "jnp.where(finite, state.notfinite_count, increment",
            ),
            ("lambda: (zeros, inner_state)", "lambda: (zeros, step()[1])"),
        ],
    ),
    "fdl/optim/wrappers/accumulation.py": (
        "test_transformations.py",
        [
            ("(state.mini_step + 1) if", "(state.mini_step + 2) if"),
            ("jnp.where(last, jnp.zeros_like(mean), new)", "new"),
            ("jnp.where(left_out, mean, ", "jnp.where(False, mean, "),
            ("state.mini_step >= k - 1", "state.mini_step >= k"),
        ],
    ),
    "fdl/optim/wrappers/averaging.py": (
        "test_transformations.py",
        [
            ("corrected(m, correction) if debias else m, m", "m, m"),
            ("(w - average)", "(w - u - average)"),
            ("jax.tree.map(filled(), params)", "jax.tree.map(jnp.zeros_like, params)"),
            ("average / jnp.where(weight > 0, weight, 1)", "average / jnp.where(weight > 0, 1, 1)"),
        ],
    ),
    "fdl/optim/wrappers/partitioning.py": (
        "test_transformations.py",
        [
            ("label == number", "label <= number"),
            ("if left is not None and not has_rest:", "if False:"),
            ("if path in picked:", "if False:"),
        ],
    ),
    "fdl/ops/double_float.py": (
        "test_hyperparams.py",
        [
            ("lost + (a.low + b.low)", "a.low + b.low"),
            ("_sum(part, a2 * b1)", "(part + a2 * b1, jnp.zeros_like(part))"),
            ("jnp.full(jnp.shape(high), 0.0).at[...].set(high)", "high"),
            ("low = (exact - high.astype(np.float64))", "low = 0 * (exact - high)"),
        ],
    ),
    "fdl/optim/wrappers/injection.py": (
        "test_hyperparams.py test_beside_optax.py",
        [
            ("jnp.where(rest.of == high, rest.low, jnp.zeros_like(rest.low))", "rest.low"),
            (
                "spread(number), None if rest is None else jax.tree.map(spread, kept)",
                "number, rest",
            ),
            ("state._replace(count=increment(state.count))", "state"),
            ("not isinstance(value, bool | type)", "not isinstance(value, bool)"),
            ('return f"remainder of {name}"', "return name"),
        ],
    ),
}


def main() -> None:
    words = sys.argv[1:]
    missed = []
    for file, (tests, bugs) in BUGS.items():
        for old, new in bugs:
            if words and not any(word in file for word in words):
                continue
            caught = is_caught(file, old, new, tests)
            print("caught" if caught else "MISSED", file, repr(old), "->", repr(new), flush=True)
            if not caught:
                missed.append((file, old, new))
    print(f"{len(missed)} bugs were missed")
    raise SystemExit(bool(missed))


def is_caught(file, old, new, tests):
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fdl"
        skip = shutil.ignore_patterns(".git", ".venv", "out", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=skip)
        text = (copy / file).read_text()
        if old not in text:
            raise SystemExit(f"{file}: expected the text {old!r}, got none; mend the list of bugs")
        (copy / file).write_text(text.replace(old, new))
        files, _, words = tests.partition(" -k ")
        paths = [str(copy / "tests" / test) for test in files.split()]
        chosen = ["-k", words.replace("_or_", " or ")] if words else []
        quiet = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *quiet, *chosen, *paths]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    if done.returncode not in (0, 1, 2):
        raise SystemExit(
            f"{file}: pytest itself failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.returncode != 0


if __name__ == "__main__":
    main()
