"""Losses against torch, optax and float64, and what each of them promises beyond the laws."""

import functools
import math
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

import fdl
from fdl.losses import check_targets
from tests.cases import LossCase

CLASS_WEIGHT = np.array([0.5, 2.0, 1.0, 0.25, 3.0])


def _picked(values, labels):
    return np.take_along_axis(values, labels[..., None], -1)[..., 0]


def _nats(logits):
    return -scipy.special.log_softmax(logits, axis=-1)


def _softmax_cross_entropy(logits, labels):
    return _picked(_nats(logits), labels)


def _log_chances(rng, rows, classes, size):
    return -_nats(size * rng.standard_normal((rows, classes))), rng.integers(0, classes, rows)


def _some_left_out(rng, rows, classes, size):
    """Labels of which a third does not count; the first one does."""
    labels = rng.integers(0, classes, rows)
    labels[1::3] = -100
    return size * rng.standard_normal((rows, classes)), labels


def _ignoring(logits, labels):
    return np.where(labels < 0, 0, _softmax_cross_entropy(logits, np.maximum(labels, 0)))


def _smoothed_and_weighted(logits, labels):
    chances = 0.8 * np.eye(5)[labels] + 0.2 / 5
    return (chances * CLASS_WEIGHT * _nats(logits)).sum(-1)


def _sigmoid_cross_entropy(logits, targets, weight=1.0):
    log, log_not = scipy.special.log_expit(logits), scipy.special.log_expit(-logits)
    return -(weight * targets * log + (1 - targets) * log_not)


def _sigmoid_focal(logits, targets, gamma=2.0, alpha=None):
    chance = scipy.special.expit(np.where(targets == 1, logits, -logits))
    nats = _sigmoid_cross_entropy(logits, targets)
    weight = 1 if alpha is None else np.where(targets == 1, alpha, 1 - alpha)
    return weight * (1 - chance) ** gamma * nats


def _softmax_focal(logits, labels, gamma=2.0):
    nats = _softmax_cross_entropy(logits, labels)
    return nats * (-np.expm1(-nats)) ** gamma


def _multiclass_hinge(scores, labels):
    own = np.eye(scores.shape[-1], dtype=bool)[labels]
    return np.maximum(0, 1 + np.where(own, -np.inf, scores).max(-1) - _picked(scores, labels))


def _huber(predictions, targets, delta=1.0):
    error = np.abs(predictions - targets)
    return np.where(error <= delta, error**2 / 2, delta * (error - delta / 2))


def _log_cosh(predictions, targets):
    error = np.abs(predictions - targets)
    return np.logaddexp(error, -error) - math.log(2)


def _quantile(predictions, targets, level=0.5):
    error = targets - predictions
    return np.maximum(level * error, (level - 1) * error)


def _of_two(rng, rows, classes, size):
    # Variances between 1/4 and 4: the small ones would ask for more than float32 has.
    predictions = np.stack([size * rng.standard_normal(rows), rng.uniform(-1.4, 1.4, rows)], -1)
    return predictions, size * rng.standard_normal(rows)


def _gaussian_nll(predictions, targets, epsilon=1e-6):
    log_variance = np.logaddexp(predictions[..., 1], math.log(epsilon))
    error = targets - predictions[..., 0]
    return (math.log(2 * math.pi) + log_variance + error**2 * np.exp(-log_variance)) / 2


def _poisson_nll(predictions, targets):
    low = np.minimum(predictions, 60)
    rate = np.exp(low) * (1 + predictions - low)
    return rate - targets * predictions + scipy.special.gammaln(targets + 1)


def _dice(logits, targets, smooth=1.0):
    chances = scipy.special.expit(logits)
    both = 2 * (chances * targets).sum(-1) + smooth
    return 1 - both / (chances.sum(-1) + targets.sum(-1) + smooth)


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-8)


def _cosine_distance(predictions, targets):
    return 1 - (_unit(predictions) * _unit(targets)).sum(-1)


def _pairs(rng, rows, classes, size):
    a = rng.standard_normal((rows, classes))
    # Some nearer than the margin, some farther.
    b = a + rng.standard_normal((rows, classes)) * np.linspace(0.2, 2, rows)[:, None]
    return a, b, np.arange(rows) % 2


def _contrastive(a, b, same, margin=1.0):
    distance = np.linalg.norm(a - b, axis=-1)
    return np.where(same == 1, distance**2, np.maximum(0, margin - distance) ** 2) / 2


def _triples(rng, rows, classes, size):
    return tuple(rng.standard_normal((rows, classes)) for _ in range(3))


def _triplet(anchor, positive, negative, margin=1.0):
    near, far = (np.linalg.norm(anchor - other, axis=-1) for other in (positive, negative))
    return np.maximum(0, near - far + margin)


def _two_views(rng, rows, classes, size):
    a = rng.standard_normal((rows, classes))
    return a, a + 0.7 * rng.standard_normal((rows, classes))


def _info_nce(queries, keys, temperature=0.07):
    scores = _unit(queries) @ _unit(keys).T / temperature
    return np.diagonal(_nats(scores))


def _sigmoid_contrastive(a, b, scale=10.0, bias=-10.0):
    own = np.eye(len(a))
    return _sigmoid_cross_entropy(scale * _unit(a) @ _unit(b).T + bias, own).sum(-1)


def _texts(rng, rows, classes, size):
    """Texts of 0 to 3 letters, some with a letter twice in a row."""
    labels = rng.integers(1, classes, (rows, 3))
    labels[: rows // 2, 1] = labels[: rows // 2, 0]
    labels[np.arange(3) >= (np.arange(rows) % 4)[:, None]] = -1
    return size * rng.standard_normal((rows, 6, classes)), labels, 6 - np.arange(rows) % 2


def _ctc(logits, labels, lengths, blank=0):
    """Graves et al. 2006, one text and one state at a time."""
    if logits.ndim > 2:
        rows = zip(logits, labels, lengths, strict=True)
        return np.array([_ctc(*row, blank=blank) for row in rows])
    says = -_nats(logits)[: int(lengths)]
    letters = [int(each) for each in labels if each >= 0]
    states = [blank, *(state for letter in letters for state in (letter, blank))]
    at = np.full(len(states), -np.inf)
    at[0] = 0.0
    for frame in says:
        before, at = at, np.full(len(states), -np.inf)
        for i, state in enumerate(states):
            come = [before[i], before[i - 1] if i else -np.inf]
            if i > 1 and state != blank and state != states[i - 2]:
                come.append(before[i - 2])
            at[i] = scipy.special.logsumexp(come) + frame[state]
    return -scipy.special.logsumexp(at[-2:])


def _tokens(rng, rows, classes, size):
    hidden, w = rng.standard_normal((rows, 4)), size * rng.standard_normal((4, classes)) / 2
    return hidden, w, rng.integers(0, classes, rows)


LOSSES = {
    "softmax_cross_entropy": LossCase(
        fdl.softmax_cross_entropy,
        "labels",
        _softmax_cross_entropy,
        optax.softmax_cross_entropy_with_integer_labels,
    ),
    "softmax_cross_entropy_smoothed_and_weighted": LossCase(
        functools.partial(fdl.softmax_cross_entropy, smoothing=0.2, class_weight=CLASS_WEIGHT),
        "labels",
        _smoothed_and_weighted,
    ),
    "softmax_cross_entropy_ignoring": LossCase(
        fdl.softmax_cross_entropy(ignore_index=-100),
        _some_left_out,
        _ignoring,
        told=r"expected integer labels \[6\] for logits \[6, 5\], got int32 \[5\]; one class ",
    ),
    "categorical_nll": LossCase(
        functools.partial(fdl.categorical_nll, class_weight=CLASS_WEIGHT),
        _log_chances,
        lambda logs, labels: -CLASS_WEIGHT[labels] * _picked(logs, labels),
        lowest=-math.inf,
        told=r"expected integer labels \[6\] for logits \[6, 5\], got int32 \[5\]; one class ",
    ),
    "soft_cross_entropy": LossCase(
        fdl.soft_cross_entropy,
        "distributions",
        lambda logits, targets: (targets * _nats(logits)).sum(-1),
        optax.softmax_cross_entropy,
    ),
    "kl_divergence": LossCase(
        fdl.kl_divergence,
        "distributions",
        lambda logits, targets: (targets * _nats(logits) - scipy.special.entr(targets)).sum(-1),
        lambda logits, targets: optax.kl_divergence(jax.nn.log_softmax(logits), targets),
        lowest=-1e-6,
    ),
    "sigmoid_cross_entropy": LossCase(
        fdl.sigmoid_cross_entropy,
        "chances",
        _sigmoid_cross_entropy,
        optax.sigmoid_binary_cross_entropy,
    ),
    "sigmoid_cross_entropy_weighted": LossCase(
        functools.partial(fdl.sigmoid_cross_entropy, positive_weight=CLASS_WEIGHT),
        "chances",
        functools.partial(_sigmoid_cross_entropy, weight=CLASS_WEIGHT),
    ),
    "sigmoid_focal": LossCase(
        functools.partial(fdl.sigmoid_focal, gamma=1.5, alpha=0.3),
        "zero or one",
        functools.partial(_sigmoid_focal, gamma=1.5, alpha=0.3),
        functools.partial(optax.sigmoid_focal_loss, gamma=1.5, alpha=0.3),
    ),
    "sigmoid_focal_as_it_comes": LossCase(
        fdl.sigmoid_focal, "zero or one", _sigmoid_focal, optax.sigmoid_focal_loss
    ),
    "softmax_focal": LossCase(fdl.softmax_focal, "labels", _softmax_focal),
    "softmax_focal_half": LossCase(
        functools.partial(fdl.softmax_focal, gamma=0.5),
        "labels",
        functools.partial(_softmax_focal, gamma=0.5),
    ),
    "hinge": LossCase(fdl.hinge, "signs", lambda s, t: np.maximum(0, 1 - s * t), optax.hinge_loss),
    "multiclass_hinge": LossCase(
        fdl.multiclass_hinge, "labels", _multiclass_hinge, optax.losses.multiclass_hinge_loss
    ),
    "squared_error": LossCase(
        fdl.squared_error, "numbers", lambda p, t: (p - t) ** 2, optax.squared_error, moved=(0, 1)
    ),
    "absolute_error": LossCase(
        fdl.absolute_error, "numbers", lambda p, t: np.abs(p - t), moved=(0, 1)
    ),
    "huber": LossCase(
        functools.partial(fdl.huber, delta=1.7),
        "numbers",
        functools.partial(_huber, delta=1.7),
        functools.partial(optax.huber_loss, delta=1.7),
        moved=(0, 1),
    ),
    "log_cosh": LossCase(fdl.log_cosh, "numbers", _log_cosh, optax.log_cosh, lowest=-1e-6),
    "quantile": LossCase(
        functools.partial(fdl.quantile, level=0.85),
        "numbers",
        functools.partial(_quantile, level=0.85),
    ),
    "gaussian_nll": LossCase(
        fdl.gaussian_nll,
        _of_two,
        _gaussian_nll,
        lowest=-math.inf,
        told=r"expected predictions \[5, 2\] for targets \[5\], got \[6, 2\]; a mean and a ",
        near=3e-6,
    ),
    "poisson_nll": LossCase(fdl.poisson_nll, "counts", _poisson_nll, lowest=-1e-6),
    "dice": LossCase(
        functools.partial(fdl.dice, smooth=0.5),
        "chances",
        functools.partial(_dice, smooth=0.5),
    ),
    "cosine_distance": LossCase(
        fdl.cosine_distance,
        "numbers",
        _cosine_distance,
        functools.partial(optax.cosine_distance, epsilon=1e-8),
        moved=(0, 1),
        lowest=-1e-6,
    ),
    "contrastive": LossCase(
        functools.partial(fdl.contrastive, margin=1.5),
        _pairs,
        functools.partial(_contrastive, margin=1.5),
        moved=(0, 1),
        told=r"expected same \[6\] for pairs of \[6, 5\], got \[5\]; one number for each pair",
    ),
    "triplet": LossCase(
        functools.partial(fdl.triplet, margin=1.5),
        _triples,
        functools.partial(_triplet, margin=1.5),
        moved=(0, 1, 2),
        near=4e-3,  # the difference of two distances of 20,000, each to the nearest 0.002
    ),
    "info_nce": LossCase(
        functools.partial(fdl.info_nce, temperature=0.3),
        _two_views,
        functools.partial(_info_nce, temperature=0.3),
        moved=(0, 1),
        alone=False,
    ),
    "sigmoid_contrastive": LossCase(
        functools.partial(fdl.sigmoid_contrastive, scale=5.0, bias=-3.0),
        _two_views,
        functools.partial(_sigmoid_contrastive, scale=5.0, bias=-3.0),
        moved=(0, 1),
        alone=False,
    ),
    "ctc": LossCase(
        lambda logits, labels, lengths, **more: fdl.ctc(logits, labels, lengths=lengths, **more),
        _texts,
        _ctc,
        told=r"expected integer lengths \[6\] for logits \[6, 6, 5\], got int32 \[5\]; a number of "
        r"frames for ",
    ),
    "linear_cross_entropy": LossCase(
        functools.partial(fdl.linear_cross_entropy, chunk=4),
        _tokens,
        lambda hidden, w, labels: _softmax_cross_entropy(hidden @ w, labels),
        moved=(0, 1),
        shared=(1,),
        told=r"expected integer labels \[6\] for hidden \[6, 4\], got int32 \[5\]; one class ",
        near=1e-5,
    ),
    "z_loss": LossCase(
        fdl.z_loss,
        lambda rng, rows, classes, size: (size * rng.standard_normal((rows, classes)),),
        lambda logits: scipy.special.logsumexp(logits, -1) ** 2,
        told="",
    ),
}


BOUNDS = {"float32": {"rtol": 1e-5, "atol": 1e-5}, "float64": {"rtol": 1e-10, "atol": 1e-12}}


def weighted(loss, moved):
    """Loss and gradients of a sum in which every example counts differently."""

    def total(*args):
        values = loss(*args)
        weight = jnp.sin(1 + jnp.arange(values.size, dtype=values.dtype)).reshape(values.shape)
        return (weight * values).sum(), values

    return jax.jit(jax.value_and_grad(total, moved, has_aux=True))


@pytest.mark.parametrize("size", [0.1, 40.0])
@pytest.mark.parametrize("name", [name for name, case in LOSSES.items() if case.optax])
def test_a_loss_is_that_of_optax(name, size, standard_promotion):
    case = LOSSES[name]
    args = case.data(7, size=size)
    (_, ours), our_gradients = weighted(case.loss, case.moved)(*args)
    (_, theirs), their_gradients = weighted(case.optax, case.moved)(*args)
    np.testing.assert_allclose(ours, theirs, **BOUNDS["float32"])
    for a, b in zip(our_gradients, their_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_slopes_are_the_formula(name):
    """In float64, the slopes by differences of the formula."""
    case = LOSSES[name]
    with jax.enable_x64(True):
        args = case.data(7, dtype=np.float64)
        (_, values), gradients = weighted(case.loss, case.moved)(*args)
    values, args, gradients = jax.tree.map(np.asarray, (values, args, gradients))
    np.testing.assert_allclose(values, case.exact(args), **BOUNDS["float64"])
    weight = np.sin(1 + np.arange(values.size)).reshape(values.shape)
    for place, gradient in zip(case.moved, gradients, strict=True):
        direction = np.random.default_rng(place).standard_normal(gradient.shape)
        moved = [[np.array(x) for x in args] for _ in range(2)]
        for given, step in zip(moved, (1e-6, -1e-6), strict=True):
            given[place] = given[place] + step * direction
        high, low = (case.oracle(*given) for given in moved)
        slope = (weight * (high - low)).sum() / 2e-6
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-7)


def torch_cases():
    torch = pytest.importorskip(
        "torch", reason="without torch no loss was held against torch's, only against formulas"
    )
    f = torch.nn.functional
    none = {"reduction": "none"}
    weight = torch.tensor(CLASS_WEIGHT)

    def with_weight(logits, labels):
        return f.cross_entropy(
            logits, labels, weight=weight.to(logits), label_smoothing=0.2, **none
        )

    def kl(logits, targets):
        return f.kl_div(logits.log_softmax(-1), targets, **none).sum(-1)

    def gaussian(predictions, targets):
        variance = predictions[..., 1].exp() + 1e-6
        return f.gaussian_nll_loss(predictions[..., 0], targets, variance, full=True, **none)

    def poisson(predictions, targets):
        return f.poisson_nll_loss(predictions, targets, **none) + torch.lgamma(targets + 1)

    def ctc(logits, labels, lengths):
        return f.ctc_loss(
            logits.log_softmax(-1).movedim(0, 1),
            labels.clamp(min=1),
            lengths,
            (labels >= 0).sum(-1),
            **none,
        )

    return {
        "softmax_cross_entropy": lambda p, t: f.cross_entropy(p, t, **none),
        "softmax_cross_entropy_smoothed_and_weighted": with_weight,
        "softmax_cross_entropy_ignoring": lambda p, t: f.cross_entropy(p, t, **none),
        "categorical_nll": lambda p, t: f.nll_loss(p, t, weight=weight.to(p), **none),
        "soft_cross_entropy": lambda p, t: f.cross_entropy(p, t, **none),
        "kl_divergence": kl,
        "sigmoid_cross_entropy_weighted": lambda p, t: f.binary_cross_entropy_with_logits(
            p, t, pos_weight=weight.to(p), **none
        ),
        "squared_error": lambda p, t: f.mse_loss(p, t, **none),
        "absolute_error": lambda p, t: f.l1_loss(p, t, **none),
        "huber": lambda p, t: f.huber_loss(p, t, delta=1.7, **none),
        "gaussian_nll": gaussian,
        "poisson_nll": poisson,
        "cosine_distance": lambda p, t: 1 - f.cosine_similarity(p, t, dim=-1),
        "triplet": lambda a, p, n: f.triplet_margin_loss(a, p, n, margin=1.5, eps=0, **none),
        "info_nce": lambda a, b: f.cross_entropy(
            f.normalize(a) @ f.normalize(b).T / 0.3, torch.arange(len(a)), **none
        ),
        "ctc": ctc,
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_are_those_of_torch(dtype):
    import torch

    for name, theirs in torch_cases().items():
        case = LOSSES[name]
        with jax.enable_x64(dtype == "float64"):
            args = case.data(11, dtype=dtype)
            (_, values), gradients = weighted(case.loss, case.moved)(*args)
        tensors = [
            torch.tensor(np.array(x)).to(torch.int64 if x.dtype.kind == "i" else None)
            for x in map(np.asarray, args)
        ]
        for place in case.moved:
            tensors[place].requires_grad_()
        expected = theirs(*tensors)
        weight = torch.sin(1 + torch.arange(expected.numel(), dtype=expected.dtype))
        (weight.view_as(expected) * expected).sum().backward()
        np.testing.assert_allclose(
            values, expected.detach(), **BOUNDS[dtype], err_msg=f"{name} values"
        )
        for place, gradient in zip(case.moved, gradients, strict=True):
            np.testing.assert_allclose(
                gradient, tensors[place].grad, **BOUNDS[dtype], err_msg=f"{name} by {place}"
            )


def test_ctc_is_that_of_optax_with_another_blank(standard_promotion):
    import optax

    logits, labels, _ = LOSSES["ctc"].data(5)
    labels = jnp.where(labels < 0, labels, labels - 1)
    missing = (labels < 0).astype(jnp.float32)
    expected = jax.jit(functools.partial(optax.ctc_loss, blank_id=4))(
        logits, jnp.zeros((6, 6)), labels, missing
    )
    found = jax.jit(functools.partial(fdl.ctc, blank=4))(logits, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_text_that_its_frames_cannot_spell():
    """Two equal letters need a blank between them, so three frames."""
    labels = jnp.array([1, 1])
    loss = jax.jit(jax.value_and_grad(lambda logits: fdl.ctc(logits, labels)))
    value, gradient = loss(jnp.ones((2, 3)))
    assert value == np.inf and (gradient == 0).all()
    value, gradient = loss(jnp.zeros((3, 3)))
    assert (gradient != 0).any()
    np.testing.assert_allclose(value, 3 * math.log(3), rtol=1e-6)
    many = jax.jit(lambda *args: fdl.ctc(jnp.ones((4, 4, 3)), args[0], lengths=args[1]))
    losses = many(jnp.array([[-1, -1], [2, 0], [2, 3], [2, -1]]), jnp.array([0, 4, 4, 4]))
    assert losses[0] == 0 and losses[3] > 0
    assert np.isnan(losses).tolist() == [False, True, True, False]


def test_a_text_of_almost_no_chance_has_a_finite_loss():
    """Three alignments, of which two say the label once."""
    logits = jnp.array([[0.0, -2e4], [0.0, -2e4]])
    np.testing.assert_allclose(fdl.ctc(logits, jnp.array([1])), 2e4 - math.log(2), rtol=1e-6)


# What is promised beyond the numbers.


def sizes_of(jaxpr):
    """The sizes of all values that a program makes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (math.prod(out.aval.shape) for out in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes_of(inner)


def test_linear_cross_entropy_never_holds_all_logits():
    tokens, width, vocabulary, chunk = 96, 3, 128, 16
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((2, tokens // 2, width)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((width, vocabulary)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, vocabulary, (2, tokens // 2)))
    whole = weighted(lambda h, w: fdl.softmax_cross_entropy(h @ w, labels), (0, 1))
    parts = weighted(lambda h, w: fdl.linear_cross_entropy(h, w, labels, chunk=chunk), (0, 1))
    (_, expected), expected_gradients = whole(hidden, w)
    (_, found), found_gradients = parts(hidden, w)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for a, b in zip(found_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert max(sizes_of(jax.make_jaxpr(whole)(hidden, w).jaxpr)) == tokens * vocabulary
    assert max(sizes_of(jax.make_jaxpr(parts)(hidden, w).jaxpr)) == chunk * vocabulary


def test_linear_cross_entropy_sums_the_gradient_by_w_in_float32():
    """In bfloat16 the 257th summand of size 1 would be lost."""
    hidden = jnp.ones((1024, 1), jnp.bfloat16)
    w = jnp.zeros((1, 2), jnp.bfloat16)
    loss = lambda w: fdl.linear_cross_entropy(hidden, w, jnp.zeros(1024, int), chunk=2).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(w)
    assert gradient.dtype == jnp.bfloat16
    assert gradient.astype(jnp.float32).tolist() == [[-512.0, 512.0]]


def test_the_second_derivative_of_linear_cross_entropy():
    hidden, w, labels = LOSSES["linear_cross_entropy"].data(3)
    loss = lambda w: fdl.linear_cross_entropy(hidden, w, labels, chunk=4).sum()  # noqa: E731
    whole = lambda w: fdl.softmax_cross_entropy(hidden @ w, labels).sum()  # noqa: E731
    found, expected = (jax.jit(jax.hessian(f))(w) for f in (loss, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_quantile_is_what_its_loss_is_least_at():
    targets = jnp.asarray(np.random.default_rng(0).gumbel(size=1001), jnp.float32)
    total = lambda q: fdl.losses.quantile(jnp.full_like(targets, q), targets, level=0.8).sum()  # noqa: E731
    candidates = jnp.sort(targets)
    best = candidates[jnp.argmin(jax.vmap(total)(candidates))]
    assert best == np.quantile(targets, 0.8, method="inverted_cdf")


def test_likelihoods_are_those_of_scipy():
    mean, log_variance, seen = 0.7, -0.4, jnp.array([-1.0, 0.5, 2.0])
    found = fdl.losses.gaussian_nll(jnp.array([[mean, log_variance]] * 3), seen)
    expected = -scipy.stats.norm(mean, math.exp(log_variance / 2)).logpdf(seen)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    counts = jnp.array([0.0, 3.0, 11.0])
    found = fdl.losses.poisson_nll(jnp.log(jnp.full(3, 2.5)), counts)
    np.testing.assert_allclose(found, -scipy.stats.poisson(2.5).logpmf(counts), rtol=1e-5)


def test_rates_beyond_float32_go_on_as_a_straight_line():
    found = jax.value_and_grad(fdl.poisson_nll)(jnp.float32(100.0), jnp.float32(3.0))
    np.testing.assert_allclose(found, (41 * math.exp(60), math.exp(60)), rtol=1e-5)


def test_smoothing_takes_from_the_label_what_all_classes_get():
    logits, labels = LOSSES["softmax_cross_entropy"].data(2)
    smoothed = fdl.softmax_cross_entropy(logits, labels, smoothing=0.3)
    targets = 0.7 * jax.nn.one_hot(labels, 5) + 0.3 / 5
    np.testing.assert_allclose(smoothed, fdl.soft_cross_entropy(logits, targets), rtol=1e-5)


def test_a_class_of_no_chance_may_have_the_logit_minus_infinity():
    logits = jnp.array([[0.5, -np.inf, 1.0]])
    for loss, target in [
        (fdl.softmax_cross_entropy, jnp.array([0])),
        (fdl.soft_cross_entropy, jnp.array([[1.0, 0.0, 0.0]])),
        (fdl.kl_divergence, jnp.array([[1.0, 0.0, 0.0]])),
    ]:
        value, gradient = jax.value_and_grad(lambda x: loss(x, target).sum())(logits)
        assert float(value) == pytest.approx(math.log1p(math.exp(0.5)), rel=1e-6)
        assert np.isfinite(gradient).all()


def test_the_divergence_moves_its_targets_too():
    """From a class of no chance, where the slope of t log t has no bound, it is taken as 0."""
    logits, targets = jnp.array([[1.0, 2.0, -1.0]]), jnp.array([[0.0, 0.4, 0.6]])
    gradient = jax.grad(lambda t: fdl.kl_divergence(logits, t).sum())(targets)
    logs = np.array([1.0, 2.0, -1.0]) - np.log(np.exp([1.0, 2.0, -1.0]).sum())
    exact = [0, math.log(0.4) + 1 - logs[1], math.log(0.6) + 1 - logs[2]]
    np.testing.assert_allclose(gradient[0], exact, rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax_focal", "multiclass_hinge"])
def test_labels_out_of_range_give_nan(name):
    loss = jax.jit(getattr(fdl, name))(jnp.ones((4, 3)), jnp.array([0, 3, -1, 2]))
    assert np.isnan(loss).tolist() == [False, True, True, False]
    assert np.isnan(fdl.sigmoid_focal(jnp.ones(3), jnp.array([0.0, 0.5, 1.0]))).tolist() == [
        False,
        True,
        False,
    ]


def test_focus_of_zero_is_the_cross_entropy():
    logits, labels = LOSSES["softmax_focal"].data(4)
    np.testing.assert_allclose(
        fdl.softmax_focal(logits, labels, gamma=0.0),
        fdl.softmax_cross_entropy(logits, labels),
        rtol=1e-6,
    )
    logits, targets = LOSSES["sigmoid_focal"].data(4)
    np.testing.assert_allclose(
        fdl.sigmoid_focal(logits, targets, gamma=0.0),
        fdl.sigmoid_cross_entropy(logits, targets),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint8"])
def test_targets_of_yes_and_no_in_any_dtype(dtype):
    targets = jnp.array([[1, 0, 1]], dtype)
    logits = jnp.array([[0.3, -2.0, 5.0]])
    same = targets.astype(jnp.float32)
    for loss in (fdl.sigmoid_cross_entropy, fdl.sigmoid_focal, fdl.dice):
        np.testing.assert_array_equal(loss(logits, targets), loss(logits, same))


def test_equal_vectors_and_empty_ones_have_finite_slopes():
    x = jnp.zeros((3, 4))
    for loss in (
        lambda x: fdl.contrastive(x, x, jnp.array([0, 1, 0])),
        lambda x: fdl.triplet(x, x, x),
        lambda x: fdl.cosine_distance(x, x + 1),
        lambda x: fdl.info_nce(x, x),
        lambda x: fdl.sigmoid_contrastive(x, x),
    ):
        gradient = jax.jit(jax.grad(lambda x: loss(x).sum()))(x)
        assert np.isfinite(gradient).all()


# Where a formula has a corner, or cancels.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slopes_at_zero_are_those_of_torch(dtype):
    torch = pytest.importorskip("torch", reason="no torch: slopes at 0 not compared")
    f = torch.nn.functional
    targets = np.array([0.0, 1.0, 0.3])
    theirs = {
        fdl.sigmoid_cross_entropy: lambda z, t: f.binary_cross_entropy_with_logits(
            z, t, reduction="sum"
        ),
        fdl.absolute_error: lambda z, t: f.l1_loss(z, 0 * t, reduction="sum"),
        functools.partial(fdl.huber, delta=0.5): lambda z, t: f.huber_loss(
            z, 0 * t, reduction="sum", delta=0.5
        ),
        fdl.hinge: lambda z, t: (1 - z * t).clamp(min=0).sum(),
        functools.partial(fdl.sigmoid_cross_entropy, positive_weight=3.0): (
            lambda z, t: f.binary_cross_entropy_with_logits(
                z, t, reduction="sum", pos_weight=torch.tensor(3.0)
            )
        ),
    }
    with jax.enable_x64(dtype == "float64"):
        for loss, other in theirs.items():
            name = getattr(loss, "__name__", "")
            t = jnp.asarray(0 * targets if name == "absolute_error" else targets, dtype)
            t = 0 * t if getattr(loss, "func", None) is fdl.huber else t
            z = torch.zeros(3, dtype=getattr(torch, dtype), requires_grad=True)
            other(z, torch.tensor(np.asarray(targets, dtype))).backward()
            found = jax.grad(lambda z, t=t, loss=loss: loss(z, t).sum())(jnp.zeros(3, dtype))
            np.testing.assert_allclose(found, z.grad, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("delta", [1e-3, 1.0, 2.7, 1e6])
def test_the_slope_of_huber_is_the_clipped_error(delta):
    error = jnp.array([-3e4, -2.0, -1e-3, 0.0, 1e-7, 0.01, 2.7, 5e6])
    slope = jax.grad(lambda e: fdl.huber(e, 0 * e, delta=delta).sum())(error)
    np.testing.assert_allclose(slope, np.clip(error, -delta, delta), rtol=1e-6)


def test_log_cosh_is_right_to_the_last_digits_at_any_size():
    error = np.array([1e-15, 1e-4, 1e-3, 0.3, 0.999, 1.001, 5.0, 80.0, -200.0, -3e38], np.float32)
    wide = np.abs(error.astype(np.float64))
    near = np.log1p(2 * np.sinh(np.minimum(wide, 20) / 2) ** 2)
    exact = np.where(wide > 20, wide - np.log(2), near)
    np.testing.assert_allclose(fdl.log_cosh(error, 0 * error), exact, rtol=1e-6)
    slope = jax.grad(lambda e: fdl.log_cosh(e, 0 * e).sum())(jnp.asarray(error))
    np.testing.assert_allclose(slope, np.tanh(error.astype(np.float64)), rtol=1e-6)


def test_a_small_cross_entropy_has_all_its_digits():
    logits = np.array([[17.0, 0.0, 5.0], [40.0, 0.0, 1.0], [3.0, 2.0, 3.0], [-1e4, 1e4, 0.0]])
    gaps = logits - logits[:, :1]
    most = gaps.max(-1)
    exact = most + np.log1p(np.exp(gaps - most[:, None]).sum(-1) - 1)
    exact[:2] = np.log1p(np.exp(gaps[:2, 1:]).sum(-1))
    labels = jnp.zeros(4, int)
    narrow = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(fdl.softmax_cross_entropy(narrow, labels), exact, rtol=1e-6)
    gradient = jax.grad(lambda z: fdl.softmax_cross_entropy(z, labels).sum())(narrow)
    chances = np.exp(gaps[:2, 1:]) / (1 + np.exp(gaps[:2, 1:]).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient[:2, 1:], chances, rtol=1e-6)
    np.testing.assert_allclose(gradient[:2, 0], -chances.sum(-1), rtol=1e-6)


def test_a_label_of_no_chance_has_an_infinite_loss_and_finite_slopes():
    logits = jnp.array([[0.0, -jnp.inf, 1.0], [jnp.inf, 0.0, 1.0]])
    labels = jnp.array([1, 0])
    np.testing.assert_array_equal(fdl.softmax_cross_entropy(logits, labels), [jnp.inf, 0.0])
    gradient = jax.grad(lambda z: fdl.softmax_cross_entropy(z, labels).sum())(logits)
    assert np.isfinite(gradient).all()


def test_the_second_derivative_of_a_cross_entropy_where_all_logits_are_equal():
    hessian = jax.hessian(lambda z: fdl.softmax_cross_entropy(z, jnp.array(1)))(jnp.zeros(3))
    np.testing.assert_allclose(hessian, np.eye(3) / 3 - 1 / 9, atol=1e-6)


def test_soft_targets_move_by_what_their_class_costs():
    targets = jnp.array([0.5, 0.5, 0.0])
    logits = jnp.array([0.0, 1.0, -2.0])
    by_target = jax.grad(lambda q: fdl.soft_cross_entropy(logits, q))(targets)
    np.testing.assert_allclose(by_target, -jax.nn.log_softmax(logits), rtol=1e-6)
    never = logits.at[2].set(-jnp.inf)
    for loss in (fdl.soft_cross_entropy, fdl.kl_divergence):
        for each in jax.grad(loss, (0, 1))(never, targets):
            assert np.isfinite(each).all()


def test_pairs_that_coincide_or_lie_far_apart():
    pull = jax.hessian(lambda a: fdl.contrastive(a, jnp.zeros(2), jnp.array(1.0)))(jnp.zeros(2))
    np.testing.assert_array_equal(pull, np.eye(2))
    far = jnp.array([1e20, 0.0])
    loss, slope = jax.value_and_grad(lambda a: fdl.contrastive(a, 0 * a, jnp.array(0.0)))(far)
    assert loss == 0 and not slope.any()
    assert np.isnan(fdl.contrastive(far, far, jnp.array(2)))


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1.0, 1e20])
def test_the_cosine_asks_for_no_length(size):
    a, b = jnp.array([3.0, 4.0]), jnp.array([4.0, -3.0])
    found = [fdl.cosine_distance(size * a, other) for other in (size * a, size * b, -a)]
    np.testing.assert_allclose(found, [0, 1, 2], atol=1e-6)


def test_frames_past_the_end_of_a_text_are_not_read():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
    labels, lengths = jnp.array([1]), jnp.array(2)
    loss = lambda z: fdl.ctc(z, labels, lengths=lengths)  # noqa: E731
    clean = jax.value_and_grad(loss)(logits)
    spoilt = jax.value_and_grad(loss)(logits.at[2:].set(jnp.nan))
    for a, b in zip(clean, spoilt, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(fdl.ctc(logits, labels, lengths=jnp.array(5)))
    assert np.isnan(fdl.ctc(logits, jnp.array([1, -1, 2])))
    assert np.isnan(fdl.ctc(logits, jnp.array([1, -2])))


# Messages.


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda e: fdl.huber(e, e, delta=-1.0), "huber: expected delta > 0, got -1.0; 1 is"),
        (lambda e: fdl.huber(e, e, delta=jnp.nan), "huber: expected delta > 0, got nan; 1 is"),
        (lambda e: fdl.quantile(e, e, level=1.5), "quantile: expected level in (0, 1), got 1.5;"),
        (
            lambda e: fdl.gaussian_nll(jnp.stack([e, e], -1), e, epsilon=0.0),
            "gaussian_nll: expected epsilon > 0, got 0.0; it is the smallest variance",
        ),
        (
            lambda e: fdl.softmax_cross_entropy(e, jnp.array(0), smoothing=2.0),
            "softmax_cross_entropy: expected smoothing in [0, 1), got 2.0; 0.1 is usual",
        ),
        (
            lambda e: fdl.softmax_cross_entropy(e, jnp.array(0), class_weight=[-1.0, 1.0]),
            "softmax_cross_entropy: expected class_weight >= 0, got [-1.  1.]; a weight of 0",
        ),
        (
            lambda e: fdl.sigmoid_cross_entropy(e, e, positive_weight=-1.0),
            "sigmoid_cross_entropy: expected positive_weight >= 0, got -1.0; above 1",
        ),
        (
            lambda e: fdl.sigmoid_cross_entropy(e, e, positive_weight=jnp.ones((4, 2))),
            "sigmoid_cross_entropy: expected a positive_weight that broadcasts to [2], got [4, 2];",
        ),
        (lambda e: fdl.info_nce(jnp.eye(2), jnp.eye(2), temperature=0), "info_nce: expected temp"),
        (
            lambda e: fdl.sigmoid_contrastive(jnp.eye(2), jnp.eye(2), scale=-1.0),
            "sigmoid_contrastive: expected scale > 0, got -1.0; the paper begins at 10",
        ),
        (lambda e: fdl.sigmoid_focal(e, e, alpha=2.0), "sigmoid_focal: expected alpha in [0, 1]"),
        (lambda e: fdl.sigmoid_focal(e, e, gamma=-1.0), "sigmoid_focal: expected gamma >= 0, got"),
        (
            lambda e: fdl.softmax_focal(e, jnp.array(0), gamma=-1.0),
            "softmax_focal: expected gamma >= 0, got -1.0; 2 is usual",
        ),
        (lambda e: fdl.triplet(e, e, e, margin=0.0), "triplet: expected margin > 0, got 0.0; 1 is"),
        (
            lambda e: fdl.contrastive(e, e, jnp.array(1), margin=-1.0),
            "contrastive: expected margin > 0, got -1.0; 1 is usual",
        ),
        (lambda e: fdl.dice(e, e, smooth=0.0), "dice: expected smooth > 0, got 0.0; 1 is usual"),
        (lambda e: fdl.dice(e, e, axis=5), "dice: expected axis in the predictions, got 5; it is"),
        (
            lambda e: fdl.squared_error([1.0, 2.0], e),
            "squared_error: expected predictions as an array, got a list; convert it with",
        ),
        (
            lambda e: fdl.softmax_cross_entropy(e, [0]),
            "softmax_cross_entropy: expected labels as an array, got a list; convert it with",
        ),
        (
            lambda e: fdl.softmax_cross_entropy(e[0], jnp.array(0)),
            "softmax_cross_entropy: expected logits [..., C] with C >= 1, got []; give a number",
        ),
        (
            lambda e: fdl.cosine_distance(e[0], e[0]),
            "cosine_distance: expected predictions with an axis of numbers that belong together",
        ),
        (
            lambda e: fdl.squared_error(e + 1j, e),
            "squared_error: expected real predictions, got complex64; score the real and the",
        ),
        (
            lambda e: fdl.ctc(jnp.zeros((3, 4)), jnp.array([1]), blank=0.5),
            "ctc: expected a blank in [0, 4), got 0.5; it is one of the classes",
        ),
        (
            lambda e: fdl.ctc(jnp.zeros((3, 4)), jnp.array([1]), lengths=jnp.array(1.5)),
            "ctc: expected integer lengths [] for logits [3, 4], got float32 []; a number of",
        ),
        (
            lambda e: fdl.linear_cross_entropy(jnp.eye(2), [[1.0]], jnp.array([0, 1])),
            "linear_cross_entropy: expected w as an array, got a list; convert it with",
        ),
    ],
)
def test_options_out_of_range_and_what_is_no_array_are_refused(call, told, standard_promotion):
    for run in (call, jax.jit(call)):
        with pytest.raises(ValueError, match="^" + re.escape(told)):
            run(jnp.array([0.5, -2.0]))


@pytest.mark.parametrize("chunk", [0, 2.5, "a", None])
def test_a_chunk_is_a_number_of_tokens(chunk):
    told = f"linear_cross_entropy: expected chunk >= 1, an integer, got {chunk!r}; it counts tokens"
    with pytest.raises(ValueError, match=f"^{told}$"):
        fdl.linear_cross_entropy(jnp.eye(2), jnp.eye(2), jnp.zeros(2, int), chunk=chunk)


def test_a_traced_option_passes():
    e = jnp.array([0.5, -2.0])
    for loss in (
        lambda v: fdl.huber(e, 0 * e, delta=v),
        lambda v: fdl.quantile(e, 0 * e, level=v),
        lambda v: fdl.softmax_cross_entropy(e, jnp.array(0), smoothing=v),
        lambda v: fdl.gaussian_nll(jnp.stack([e, e], -1), e, epsilon=v),
        lambda v: fdl.sigmoid_cross_entropy(e, jnp.abs(jnp.sign(e)), positive_weight=v),
    ):
        np.testing.assert_allclose(jax.jit(loss)(jnp.float32(0.25)), loss(0.25), rtol=1e-6)


def test_dice_over_the_pixels_of_images():
    logits, targets = LOSSES["dice"].data(3, rows=2, classes=24)
    flat = fdl.dice(logits, targets)
    images = [x.reshape(2, 4, 6, 1) for x in (logits, targets)]
    np.testing.assert_allclose(fdl.dice(*images, axis=(1, 2))[:, 0], flat, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda x: fdl.softmax_cross_entropy(x, jnp.zeros(2, int), class_weight=[1.0, 2.0]),
            r"^softmax_cross_entropy: expected class weights \[3\] for logits \[2, 3\], got \[2\]; "
            r"one weight for each class$",
        ),
        (
            lambda x: fdl.huber(x[:, :1], x[:, 0]),
            r"^huber: expected targets \[2, 1\] as the predictions, got \[2\]; reshape one of "
            r"them$",
        ),
        (
            lambda x: fdl.gaussian_nll(x, x[:, 0]),
            r"^gaussian_nll: expected predictions \[2, 2\] for targets \[2\], got \[2, 3\]; a mean "
            r"and a log-variance for each target$",
        ),
        (
            lambda x: fdl.contrastive(x, x, x),
            r"^contrastive: expected same \[2\] for pairs of \[2, 3\], got \[2, 3\]; one number "
            r"for each pair$",
        ),
        (
            lambda x: fdl.info_nce(x[0], x[0]),
            r"^info_nce: expected two arrays \[B, D\], got \[3\]; one row for each example$",
        ),
        (
            lambda x: fdl.linear_cross_entropy(x, x, jnp.zeros(2, int)),
            r"^linear_cross_entropy: expected w \[3, V\] for hidden \[2, 3\], got \[2, 3\]; "
            r"transpose a tied embedding$",
        ),
        (
            lambda x: fdl.linear_cross_entropy(x, x.T, jnp.zeros((2, 1), int)),
            r"^linear_cross_entropy: expected integer labels \[2\] for hidden \[2, 3\], got int32 "
            r"\[2, 1\]; one class number for each token$",
        ),
        (
            lambda x: fdl.ctc(x, jnp.zeros((2, 1), int)),
            r"^ctc: expected integer labels \[S\] for logits \[2, 3\], got int32 \[2, 1\]; a "
            r"text for each run of frames \[T, C\], filled up with -1$",
        ),
        (
            lambda x: fdl.ctc(x, jnp.ones(1, int), blank=3),
            r"^ctc: expected a blank in \[0, 3\), got 3; it is one of the classes$",
        ),
    ],
)
def test_what_is_said_of_wrong_arguments(call, told):
    for run in (call, jax.jit(call)):
        # The notes that JAX adds below the message are in what pytest matches.
        with pytest.raises(fdl.PathError, match=re.compile(told, re.MULTILINE)) as caught:
            run(jnp.ones((2, 3)))
        assert re.fullmatch(told, str(caught.value))


@pytest.mark.parametrize(
    ("loss", "targets", "told"),
    [
        ("softmax_focal", [0, 3], r"labels in \[0, 3\), got 3 at row 1; give the last layer as "),
        ("multiclass_hinge", [-1, 0], r"labels in \[0, 3\), got -1 at row 0; give the last "),
        ("sigmoid_focal", [0.0, 0.5], r"targets 0 or 1, got 0\.5 at row 1; round them$"),
        ("hinge", [1.0, 0.0], r"targets -1 or 1, got 0\.0 at row 1; take 2 \* target - 1 of 0 and"),
        ("poisson_nll", [2.0, -1.0], r"targets >= 0, got -1\.0 at row 1; counts cannot be neg"),
        ("dice", [0.0, 2.0], r"targets in \[0, 1\], got 2\.0 at row 1; divide by the largest "),
        (
            "soft_cross_entropy",
            [[0.5, 0.5, 0.0], [0.5, 0.4, 0.0]],
            r"targets >= 0 that sum to 1 over the classes, got 0\.5 at row 1; divide by their sum$",
        ),
        (
            "kl_divergence",
            [[1.5, -0.5, 0.0]],
            r"targets >= 0 that sum to 1 over the classes, got -0\.5 at row 0; divide by their ",
        ),
        ("ctc", [[1, 2], [-1, 1]], r"labels in \[0, 3\), and -1 only behind them, got 1 at row 1"),
        ("ctc", [[1, 3]], r"labels in \[0, 3\), and -1 only behind them, got 3 at row 0; give the"),
    ],
)
def test_targets_that_a_loss_cannot_score_are_refused(loss, targets, told):
    logits = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    given = functools.partial(getattr(fdl, loss))
    with pytest.raises(ValueError, match=rf"^{loss}: expected {told}"):
        check_targets(given, logits, np.array(targets))
    good = {"hinge": [1.0, -1.0], "ctc": [[1, 2], [1, -1], [-1, -1]]}
    fine = [[0.25, 0.75, 0.0]] if np.ndim(targets) == 2 else [0, 1]
    assert check_targets(given, logits, np.array(good.get(loss, fine))) is None


def test_class_weights_without_smoothing_weigh_the_loss_of_the_own_class():
    logits, labels = jnp.array([[0.5, -2.0, 1.0], [3.0, 0.0, -1.0]]), jnp.array([2, 0])
    weight = jnp.array([0.25, 1.0, 4.0])
    expected = weight[labels] * fdl.softmax_cross_entropy(logits, labels)
    got = fdl.softmax_cross_entropy(logits, labels, class_weight=weight)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    traced = jax.jit(functools.partial(fdl.softmax_cross_entropy, class_weight=weight))
    np.testing.assert_allclose(traced(logits, labels, smoothing=0.0), expected, rtol=1e-6)


def test_an_infinite_error_has_the_slope_of_a_far_one_in_huber():
    assert jax.grad(lambda x: fdl.huber(x, jnp.float32(0), delta=2.0))(jnp.float32(jnp.inf)) == 2


# At infinity, and at the ends of float32.

# Those of vectors have no limit there, `linear_cross_entropy` is a product first, and the slope of
# z_loss is infinite and 0 times infinity.
AT_INFINITY = [
    name for name, case in LOSSES.items() if case.moved == (0,) and name not in ("ctc", "z_loss")
]


@pytest.mark.parametrize("name", AT_INFINITY)
def test_a_loss_at_infinity_is_its_limit(name):
    """Value and slope, against float64 at a billion; infinite where that is beyond a million."""
    case = LOSSES[name]

    def both(predictions, *rest):
        value = case.loss(predictions, *rest)
        return value.sum(), value

    slope_of = jax.grad(both, has_aux=True)
    args = case.data()
    places = [(row, column) for row in range(2) for column in range(min(2, args[0].shape[1]))]
    if name == "gaussian_nll":
        places = [(0, 0), (1, 0), (0, 1)]
    found = {}
    compiled = jax.jit(slope_of)
    for place in places:
        for sign in (1.0, -1.0):
            found[place, sign] = compiled(args[0].at[place].set(sign * jnp.inf), *args[1:])
    with jax.enable_x64(True):
        args = [jnp.asarray(x, np.float64 if x.dtype == np.float32 else x.dtype) for x in args]
        compiled = jax.jit(slope_of)
        for (place, sign), (slope, value) in found.items():
            near = [args[0].at[place].set(sign * 1e9), *args[1:]]
            for got, exact in ((value, case.exact(near)), (slope, compiled(*near)[0])):
                got, exact = np.asarray(got, np.float64), np.asarray(exact)
                far = np.isinf(got)
                assert (got[far] * exact[far] > 0).all() and (abs(exact[far]) > 1e6).all()
                np.testing.assert_allclose(got[~far], exact[~far], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_losses_at_infinity_by_hand():
    inf = jnp.inf
    yes_and_no = jnp.array([1.0, 0.0, 1.0, 0.0])
    logits = jnp.array([inf, -inf, -inf, inf])
    for loss in (fdl.sigmoid_cross_entropy, fdl.sigmoid_focal):
        assert loss(logits, yes_and_no).tolist() == [0, 0, inf, inf]
        slopes = jax.grad(lambda x, f=loss: f(x, yes_and_no).sum())(logits)
        assert slopes.tolist() == [0, 0, -1, 1]
    # A weight of 0 leaves even that out.
    assert fdl.sigmoid_cross_entropy(jnp.array(-inf), jnp.array(1.0), positive_weight=0.0) == 0
    assert fdl.sigmoid_focal(jnp.array(-inf), jnp.array(1.0), alpha=0.0) == 0
    rows = jnp.array([[inf, 0.0, 1.0], [0.0, -inf, 1.0], [0.0, inf, 1.0]])
    labels = jnp.array([0, 1, 0])
    none = jnp.array([1.0, 0.0, 1.0])
    weighted = fdl.softmax_cross_entropy(rows, labels, class_weight=none)
    assert weighted.tolist() == [0, 0, inf]
    for loss in (fdl.softmax_cross_entropy, fdl.softmax_focal):
        assert loss(rows, labels).tolist() == [0, inf, inf]
        slopes = jax.grad(lambda x, f=loss: f(x, labels).sum())(rows)
        share = 1 / (1 + np.e)
        expected = [[0, 0, 0], [share, -1, 1 - share], [-1, 1, 0]]
        np.testing.assert_allclose(slopes, expected, rtol=1e-6)
    assert np.isnan(fdl.softmax_cross_entropy(jnp.array([inf, inf]), jnp.array(0)))


def test_a_class_that_a_frame_surely_is_or_is_not():
    logits = jnp.zeros((3, 3)).at[0, 2].set(-jnp.inf)
    surely = jnp.zeros((3, 3)).at[:, 1].set(jnp.inf)
    for frames, expected in ((logits, -np.log(6 / 18)), (surely, 0.0)):
        loss, slope = jax.value_and_grad(fdl.ctc)(frames, jnp.array([1]))
        np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-6)
        assert np.isfinite(slope).all()
    never = jnp.zeros((3, 3)).at[0, 2].set(jnp.inf)
    loss, slope = jax.value_and_grad(fdl.ctc)(never, jnp.array([1]))
    assert loss == jnp.inf and (slope == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_huber_without_bound_is_the_parabola(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.array([2.0, -3.0, 0.0], dtype)
        for delta in (jnp.inf, np.float64(np.inf), 1e30):
            both = jax.value_and_grad(
                lambda x, d=delta: fdl.huber(x, jnp.zeros_like(x), delta=d).sum()
            )
            for call in (both, jax.jit(both)):
                loss, slope = call(x)
                assert (loss, slope.tolist()) == (6.5, [2, -3, 0])


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("float32", 1e25),
        ("float32", 1e-25),
        ("bfloat16", 1e25),
        ("float64", 1e200),
        ("float64", 1e-200),
    ],
)
def test_distances_of_any_size(dtype, size):
    """Of numbers whose squares overflow or vanish."""
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        plain = [jnp.asarray(rng.integers(-8, 9, (4, 3)) / 8, dtype) for _ in range(3)]
        exact = [np.asarray(x, np.float64) for x in plain]
        large = [x * jnp.asarray(size, dtype) for x in plain]
        unit = float(jnp.asarray(size, dtype))
        near, far = (np.linalg.norm(exact[0] - other, axis=-1) for other in exact[1:])
        margin = 2.0 * unit
        value, slopes = jax.jit(
            jax.value_and_grad(lambda *a: fdl.triplet(*a, margin=margin).sum(), (0, 1, 2))
        )(*large)
        np.testing.assert_allclose(value / unit, np.maximum(0, near - far + 2).sum(), rtol=1e-5)
        active = (near - far + 2 > 0)[:, None]
        to_near = active * (exact[0] - exact[1]) / near[:, None]
        to_far = active * (exact[0] - exact[2]) / far[:, None]
        bound = 8 * float(jnp.finfo(dtype).eps)
        for found, wanted in zip(slopes, (to_near - to_far, -to_near, to_far), strict=True):
            np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=bound)
        apart = fdl.contrastive(large[0], large[1], jnp.zeros(4), margin=margin)
        if size < 1:
            assert (apart == 0).all()  # 1e-50 is no float32, and 1e-400 no float64
        cosine = (exact[0] * exact[1]).sum(-1) / np.linalg.norm(exact[0], axis=-1)
        cosine = cosine / np.linalg.norm(exact[1], axis=-1)
        np.testing.assert_allclose(fdl.cosine_distance(*large[:2]), 1 - cosine, atol=1e-6)
        for loss in (fdl.info_nce, fdl.sigmoid_contrastive):
            np.testing.assert_allclose(loss(*large[:2]), loss(*plain[:2]), rtol=1e-5)


def test_a_far_target_of_a_wide_gaussian_is_likely():
    predictions = jnp.array([[1e25, 115.0], [-3e30, 140.0]])
    loss, slope = jax.jit(jax.value_and_grad(lambda p: fdl.gaussian_nll(p, jnp.zeros(2)).sum()))(
        predictions
    )
    mean, log_variance = np.asarray(predictions, np.float64).T
    square = mean**2 * np.exp(-log_variance)
    np.testing.assert_allclose(
        loss, (np.log(2 * np.pi) + log_variance + square).sum() / 2, rtol=1e-5
    )
    exact = np.stack([mean * np.exp(-log_variance), (1 - square) / 2], -1)
    np.testing.assert_allclose(slope, exact, rtol=1e-4)


# Elements that do not count.


def tokens(seed=0, rows=7, length=3):
    """(x [B, T, 4], labels [B, T]) of 5 classes; some labels, and all of row 2, are -100."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, (rows, length))
    labels[rng.random(labels.shape) < 0.4] = -100
    labels[2], labels[0, 0] = -100, 3
    x = jnp.asarray(rng.standard_normal((rows, length, 4)), jnp.float32)
    return x, jnp.asarray(labels, jnp.int32)


IGNORING = fdl.softmax_cross_entropy(ignore_index=-100, smoothing=0.1)


def token_objective(**metrics):
    return fdl.supervised(lambda w, x: x @ w, IGNORING, **metrics)


@pytest.mark.parametrize("weighs", [False, True])
def test_the_mean_over_labels_that_count_is_that_of_torch(weighs):
    torch = pytest.importorskip("torch", reason="no torch: means without ignored labels unseen")
    (x, y), w = tokens(), jnp.asarray(np.random.default_rng(1).standard_normal((4, 5)), jnp.float32)
    weight = np.array([1.0, 2.0, 0.5, 0.0, 1.0, 3.0, 1.0], np.float32)
    known = (np.asarray(y) >= 0) * (weight[:, None] if weighs else 1.0)
    theirs = torch.tensor(np.asarray(w)).requires_grad_()
    logits = torch.tensor(np.asarray(x)) @ theirs
    nats = torch.nn.functional.cross_entropy(
        *(logits.reshape(-1, 5), torch.tensor(np.asarray(y)).long().reshape(-1)),
        ignore_index=-100,
        label_smoothing=0.1,
        reduction="none" if weighs else "mean",
    )
    expected = (nats * torch.tensor(known).reshape(-1)).sum() / known.sum() if weighs else nats
    expected.backward()
    batch = (x, y, jnp.asarray(weight)) if weighs else (x, y)
    score = token_objective(accuracy=fdl.accuracy, perplexity=fdl.metrics.perplexity)
    (loss, _), gradient = jax.value_and_grad(score, has_aux=True)(w, {}, batch, None)
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-4, atol=1e-6)
    right = np.asarray(x @ w).argmax(-1) == np.asarray(y)
    plain = np.asarray(fdl.softmax_cross_entropy(x @ w, jnp.maximum(y, 0)))
    for size in (2, 7):
        found = fdl.evaluate(score, w, batch, batch_size=size)
        assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
        assert found["accuracy"] == pytest.approx((known * right).sum() / known.sum(), rel=1e-5)
        mean = (known * plain).sum() / known.sum()
        assert found["perplexity"] == pytest.approx(np.exp(mean), rel=1e-5)


def test_a_metric_of_another_shape_counts_all_of_it_and_its_own_options_hold():
    (x, y), w = tokens(), jnp.ones((4, 5))
    rows = lambda logits, labels: logits.sum((1, 2))  # noqa: E731
    one = fdl.metrics.mean_of(fdl.accuracy(ignore_index=3))
    score = token_objective(rows=rows, others=fdl.accuracy(ignore_index=3), same=one)
    found = fdl.evaluate(score, w, (x, y))
    assert found["rows"] == pytest.approx(float(rows(x @ w, y).mean()), rel=1e-5)
    known = (np.asarray(y) >= 0) & (np.asarray(y) != 3)
    assert found["others"] == pytest.approx((np.asarray(y) == 0)[known].mean(), rel=1e-6)
    assert found["same"] == pytest.approx(found["others"], rel=1e-6)


def test_fit_takes_labels_that_do_not_count_and_refuses_others():
    (x, y), optimizer = tokens(), fdl.sgd(0.1)
    run = fdl.start(jnp.zeros((4, 5)), optimizer)
    result = fdl.fit(token_objective(), optimizer, run, (x, y), steps=2, batch_size=7)
    loss, w = [], np.zeros((4, 5), np.float32)
    for _ in range(2):
        (value, _), gradient = jax.value_and_grad(token_objective(), has_aux=True)(
            jnp.asarray(w), {}, (x, y), None
        )
        loss, w = [*loss, float(value)], w - 0.1 * np.asarray(gradient)
    np.testing.assert_allclose(result.run.params, w, rtol=1e-5, atol=1e-6)
    assert [each["loss"] for each in result.history] == pytest.approx(loss, rel=1e-5)
    for labels, told in [
        (y.at[0, 1].set(-1), r"labels in \[0, 5\), got -1 at row 0; give the last layer"),
        (
            jnp.full_like(y, -100),
            r"a target that counts, got none among \[7, 3\]; see its ignore_index and where$",
        ),
    ]:
        with pytest.raises(ValueError, match=rf"^softmax_cross_entropy: expected {told}"):
            fdl.evaluate(token_objective(), jnp.ones((4, 5)), (x, labels))


@pytest.mark.parametrize(
    "name",
    ["softmax_cross_entropy", "categorical_nll", "softmax_focal", "multiclass_hinge", "accuracy"],
)
@pytest.mark.parametrize(("ignored", "dtype"), [(-100, "int32"), (3, "uint8"), (-100, "uint8")])
def test_a_label_that_does_not_count_hides_its_row(name, ignored, dtype):
    logits, labels = LOSSES["softmax_cross_entropy"].data(2)
    labels = labels.at[1].set(3)
    f, out = getattr(fdl, name), np.asarray(labels) == ignored
    if dtype == "int32":
        labels, out = labels.at[1].set(ignored), np.arange(6) == 1
    spoilt = jnp.where(out[:, None], jnp.nan, logits)
    kept = jnp.where(out, 0, labels).astype(dtype)
    found = f(spoilt, labels.astype(dtype), ignore_index=ignored)
    np.testing.assert_allclose(found, jnp.where(out, 0, f(logits, kept)), rtol=1e-6)
    assert out.any() == ((ignored, dtype) != (-100, "uint8"))
    slope = jax.grad(lambda z: f(z, labels.astype(dtype), ignore_index=ignored).sum())(spoilt)
    assert np.isfinite(slope).all() and (slope[out] == 0).all()


def test_tokens_without_weight_reach_neither_the_hidden_nor_the_weights():
    hidden, w, labels = LOSSES["linear_cross_entropy"].data(3)
    labels = labels.at[2].set(-100)

    def total(hidden, w, out):
        if out is None:
            rows = np.arange(6) != 2
            return fdl.linear_cross_entropy(hidden[rows], w, labels[rows], chunk=4).sum()
        return fdl.linear_cross_entropy(hidden, w, labels, chunk=4, **out).sum()

    both = jax.value_and_grad(total, (0, 1))
    expected = both(hidden, w, None)
    for out in ({"ignore_index": -100}, {"where": labels >= 0}):
        found = both(hidden.at[2].set(jnp.nan), w, out)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_log_chance_of_nothing_is_infinite_and_a_weight_of_0_leaves_it_out():
    logs, labels = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]]), jnp.array([1, 1])
    loss, slope = jax.value_and_grad(lambda z: fdl.categorical_nll(z, labels).sum())(logs)
    assert loss == jnp.inf and slope.tolist() == [[0, -1], [0, -1]]
    assert fdl.categorical_nll(logs, labels, class_weight=[1.0, 0.0]).tolist() == [0, 0]
    assert np.isnan(fdl.categorical_nll(logs, jnp.array([2, -1]))).all()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda e: fdl.huber(e, e, where=e),
            r"huber: expected where of bool, True for what counts, got float32; write mask > 0",
        ),
        (
            lambda e: fdl.huber(e, e, where=e[0] > 0),
            r"huber: expected where of the loss's shape, a bool for each of its values, got \[3\] "
            r"for \[2, 3\]; see jnp\.broadcast_to",
        ),
        (
            lambda e: fdl.hinge(e, e, where=e[:, 0] > 0),
            r"hinge: expected where of the loss's shape, a bool for each of its values, got \[2\] "
            r"for \[2, 3\]; see jnp\.broadcast_to",
        ),
        (
            lambda e: fdl.linear_cross_entropy(e, e.T, jnp.zeros(2, int), ignore_index=0.5),
            r"linear_cross_entropy: expected ignore_index as an integer, got 0\.5; it is the label "
            r"that does not count, as -100",
        ),
    ],
)
def test_what_is_said_of_elements_that_cannot_be_left_out(call, told):
    for run in (call, jax.jit(call)):
        with pytest.raises(ValueError, match="^" + told) as caught:
            run(jnp.ones((2, 3)))
        assert re.fullmatch(told, str(caught.value))


SEEDED_BUGS = {
    "fdl/losses/targets.py": (
        "losses/test_losses.py test_numbers.py",
        [
            ("(targets < 0) | (targets > 1)", "(targets > 1)"),
            ("(targets >= classes),", "(targets > classes),"),
            ("(apart > 0.01)", "(apart > 1)"),
            ("np.abs(targets) != 1", "targets != 1"),
        ],
    ),
    "fdl/losses/classification.py": (
        "losses/test_losses.py",
        [
            ("logits.dtype) * missing)", "logits.dtype) * towards)"),
            ("bounded(jax.nn.softplus(fixed_at_infinity(towards)))", "jax.nn.softplus(towards)"),
            ("-fixed_at_infinity(nats)", "-nats"),
            ("alpha, 1 - alpha)", "1 - alpha, alpha)"),
            ("-jnp.expm1(-fixed_at_infinity(nats))", "jnp.exp(-nats)"),
            ("jnp.where(right, -jnp.inf, scores)", "scores"),
        ],
    ),
    "fdl/losses/metric_learning.py": (
        "losses/test_losses.py test_laws.py -k test_losses_or_loss",
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
        "losses/test_losses.py test_numbers.py test_laws.py -k loss_or_entropy_or_numbers",
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
        "losses/test_losses.py test_laws.py -k count_or_where_leaves_or_hides_or_free_in_a",
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
        "losses/test_losses.py test_laws.py -k test_losses_or_loss",
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
            ("error, level = targets - predictions", "error, level = predictions - targets"),
            ("largest * (1 - LARGEST_LOG_RATE) + slope", "slope"),
            ("product(targets, near)", "targets * near"),
            ("+ jax.scipy.special.gammaln(targets + 1)", ""),
        ],
    ),
    "fdl/losses/segmentation.py": (
        "losses/test_losses.py",
        [("+ smooth)", ")"), ("+ misses * targets", "")],
    ),
    "fdl/losses/sequence.py": (
        "losses/test_losses.py test_laws.py -k test_losses_or_loss",
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
    "fdl/losses/vocabulary.py": (
        "losses/test_losses.py",
        [
            ("kept = precise(w)", "kept = w"),
            ("size = min(chunk, max(flat.size, 1))", "size = flat.size"),
            ("jax.checkpoint(one)(*args)", "one(*args)"),
            ("jnp.square(jax", "jnp.abs(jax"),
        ],
    ),
}
