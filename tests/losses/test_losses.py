"""All losses against torch, optax and float64 formulas; options, messages, ignored elements."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdl
from fdl.losses import check_targets
from tests.losses import oracles
from tests.programs import array, compiled
from tests.registry import LOSSES


@pytest.mark.parametrize("size", [0.1, 40.0])
@pytest.mark.parametrize("name", [name for name, case in LOSSES.items() if case.optax])
def test_a_loss_matches_optax(name, size):
    case = LOSSES[name]
    args = case.data(7, size=size)
    (_, ours), our_gradients = oracles.weighted(case.loss, case.moved)(*args)
    with jax.numpy_dtype_promotion("standard"):
        (_, theirs), their_gradients = oracles.weighted(case.optax, case.moved)(*args)
    np.testing.assert_allclose(ours, theirs, **oracles.BOUNDS["float32"])
    for a, b in zip(our_gradients, their_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_slopes_match_the_formula(name):
    """In float64, the slopes by differences of the formula."""
    case = LOSSES[name]
    with jax.enable_x64(True):
        args = case.data(7, dtype=np.float64)
        (_, values), gradients = oracles.weighted(case.loss, case.moved)(*args)
    values, args, gradients = jax.tree.map(np.asarray, (values, args, gradients))
    np.testing.assert_allclose(values, case.exact(args), **oracles.BOUNDS["float64"])
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
    weight = torch.tensor(oracles.CLASS_WEIGHT)

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
def test_losses_match_torch(dtype):
    import torch

    for name, theirs in torch_cases().items():
        case = LOSSES[name]
        with jax.enable_x64(dtype == "float64"):
            args = case.data(11, dtype=dtype)
            (_, values), gradients = oracles.weighted(case.loss, case.moved)(*args)
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
            values, expected.detach(), **oracles.BOUNDS[dtype], err_msg=f"{name} values"
        )
        for place, gradient in zip(case.moved, gradients, strict=True):
            np.testing.assert_allclose(
                gradient, tensors[place].grad, **oracles.BOUNDS[dtype], err_msg=f"{name} by {place}"
            )


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint8"])
def test_targets_of_0_and_1_in_any_dtype(dtype):
    targets, logits = array([[1, 0, 1]], dtype), array([[0.3, -2.0, 5.0]])
    same = array([[1, 0, 1]])
    for loss in (fdl.sigmoid_cross_entropy, fdl.sigmoid_focal, fdl.dice):
        np.testing.assert_array_equal(loss(logits, targets), loss(logits, same))


# Where a formula has a corner, or cancels.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slopes_at_zero_match_torch(dtype):
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
            t = np.asarray(0 * targets if name == "absolute_error" else targets, dtype)
            t = 0 * t if getattr(loss, "func", None) is fdl.huber else t
            z = torch.zeros(3, dtype=getattr(torch, dtype), requires_grad=True)
            other(z, torch.tensor(np.asarray(targets, dtype))).backward()
            slope = jax.jit(jax.grad(lambda z, t, loss=loss: loss(z, t).sum()))
            found = slope(np.zeros(3, dtype), t)
            np.testing.assert_allclose(found, z.grad, rtol=1e-6, atol=1e-7, err_msg=name)


# Messages.


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda e: fdl.huber(e, e, delta=-1.0), "huber: expected delta > 0, got -1.0; pass 1"),
        (lambda e: fdl.huber(e, e, delta=jnp.nan), "huber: expected delta > 0, got nan; pass 1"),
        (lambda e: fdl.quantile(e, e, level=1.5), "quantile: expected level in (0, 1), got 1.5;"),
        (
            lambda e: fdl.gaussian_nll(jnp.stack([e, e], -1), e, epsilon=0.0),
            "gaussian_nll: expected epsilon > 0, got 0.0; pass the smallest variance",
        ),
        (
            lambda e: fdl.softmax_cross_entropy(e, jnp.array(0), smoothing=2.0),
            "softmax_cross_entropy: expected smoothing in [0, 1), got 2.0; pass a number such as",
        ),
        (
            lambda e: fdl.softmax_cross_entropy(e, jnp.array(0), class_weight=[-1.0, 1.0]),
            "softmax_cross_entropy: expected class_weight >= 0, got [-1.  1.]; pass weights >= 0",
        ),
        (
            lambda e: fdl.sigmoid_cross_entropy(e, e, positive_weight=-1.0),
            "sigmoid_cross_entropy: expected positive_weight >= 0, got -1.0; pass a weight",
        ),
        (
            lambda e: fdl.sigmoid_cross_entropy(e, e, positive_weight=jnp.ones((4, 2))),
            "sigmoid_cross_entropy: expected positive_weight to broadcast to [2], got [4, 2]; pass",
        ),
        (lambda e: fdl.info_nce(jnp.eye(2), jnp.eye(2), temperature=0), "info_nce: expected temp"),
        (
            lambda e: fdl.sigmoid_contrastive(jnp.eye(2), jnp.eye(2), scale=-1.0),
            "sigmoid_contrastive: expected scale > 0, got -1.0; pass 10, the usual value",
        ),
        (
            lambda e: fdl.sigmoid_focal(e, e, alpha=2.0),
            "sigmoid_focal: expected alpha in [0, 1], got 2.0; ",
        ),
        (lambda e: fdl.sigmoid_focal(e, e, gamma=-1.0), "sigmoid_focal: expected gamma >= 0, got"),
        (
            lambda e: fdl.softmax_focal(e, jnp.array(0), gamma=-1.0),
            "softmax_focal: expected gamma >= 0, got -1.0; pass 2, the usual value",
        ),
        (
            lambda e: fdl.triplet(e, e, e, margin=0.0),
            "triplet: expected margin > 0, got 0.0; pass 1",
        ),
        (
            lambda e: fdl.contrastive(e, e, jnp.array(1), margin=-1.0),
            "contrastive: expected margin > 0, got -1.0; pass 1, the usual value",
        ),
        (
            lambda e: fdl.dice(e, e, smooth=0.0),
            "dice: expected smooth > 0, got 0.0; pass 1, the usual value",
        ),
        (
            lambda e: fdl.dice(e, e, axis=5),
            "dice: expected axis to be an axis of predictions [2], got 5; pass an",
        ),
        (
            lambda e: fdl.squared_error([1.0, 2.0], e),
            "squared_error: expected predictions to be an array, got a list; convert it with",
        ),
        (
            lambda e: fdl.softmax_cross_entropy(e, [0]),
            "softmax_cross_entropy: expected labels to be an array, got a list; convert it with",
        ),
        (
            lambda e: fdl.softmax_cross_entropy(e[0], jnp.array(0)),
            "softmax_cross_entropy: expected logits [..., C] with C >= 1, got []; pass one logit",
        ),
        (
            lambda e: fdl.cosine_distance(e[0], e[0]),
            "cosine_distance: expected predictions [..., D], got []; pass arrays with an",
        ),
        (
            lambda e: fdl.squared_error(e + 1j, e),
            "squared_error: expected real predictions, got complex64; pass the real part,",
        ),
        (
            lambda e: fdl.ctc(jnp.zeros((3, 4)), jnp.array([1]), blank=0.5),
            "ctc: expected blank in [0, 4), got 0.5; pass the number of the class that is the "
            "blank",
        ),
        (
            lambda e: fdl.ctc(jnp.zeros((3, 4)), jnp.array([1]), lengths=jnp.array(1.5)),
            "ctc: expected integer lengths [] for logits [3, 4], got float32 []; pass the number",
        ),
        (
            lambda e: fdl.linear_cross_entropy(jnp.eye(2), [[1.0]], jnp.array([0, 1])),
            "linear_cross_entropy: expected w to be an array, got a list; convert it with",
        ),
    ],
)
def test_options_out_of_range_and_non_arrays_are_refused(call, told, standard_promotion):
    for run in (call, jax.jit(call)):
        with pytest.raises(ValueError, match="^" + re.escape(told)):
            run(jnp.array([0.5, -2.0]))


def test_a_traced_option_passes():
    e = array([0.5, -2.0])
    losses = (
        lambda v: fdl.huber(e, 0 * e, delta=v),
        lambda v: fdl.quantile(e, 0 * e, level=v),
        lambda v: fdl.softmax_cross_entropy(e, jnp.array(0), smoothing=v),
        lambda v: fdl.gaussian_nll(jnp.stack([e, e], -1), e, epsilon=v),
        lambda v: fdl.sigmoid_cross_entropy(e, jnp.abs(jnp.sign(e)), positive_weight=v),
    )
    traced = compiled(lambda v: [loss(v) for loss in losses])(np.float32(0.25))
    known = compiled(lambda: [loss(0.25) for loss in losses])()
    for found, expected in zip(traced, known, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda x: fdl.softmax_cross_entropy(x, jnp.zeros(2, int), class_weight=[1.0, 2.0]),
            r"^softmax_cross_entropy: expected class weights \[3\] for logits \[2, 3\], got \[2\]; "
            r"pass one weight for each class$",
        ),
        (
            lambda x: fdl.huber(x[:, :1], x[:, 0]),
            r"^huber: expected targets with the shape of the predictions, \[2, 1\], got \[2\]; "
            r"reshape one of them$",
        ),
        (
            lambda x: fdl.gaussian_nll(x, x[:, 0]),
            r"^gaussian_nll: expected predictions \[2, 2\] for targets \[2\], got \[2, 3\]; pass a "
            r"mean and a log-variance for each target$",
        ),
        (
            lambda x: fdl.contrastive(x, x, x),
            r"^contrastive: expected same \[2\] for pairs of \[2, 3\], got \[2, 3\]; pass one "
            r"number for each pair$",
        ),
        (
            lambda x: fdl.info_nce(x[0], x[0]),
            r"^info_nce: expected two arrays \[B, D\], got \[3\]; pass one row for each example$",
        ),
        (
            lambda x: fdl.linear_cross_entropy(x, x, jnp.zeros(2, int)),
            r"^linear_cross_entropy: expected w \[3, V\] for hidden \[2, 3\], got \[2, 3\]; "
            r"if w is an embedding \[V, D\], pass w\.T$",
        ),
        (
            lambda x: fdl.linear_cross_entropy(x, x.T, jnp.zeros((2, 1), int)),
            r"^linear_cross_entropy: expected integer labels \[2\] for hidden \[2, 3\], got int32 "
            r"\[2, 1\]; pass one label for each row of hidden$",
        ),
        (
            lambda x: fdl.ctc(x, jnp.zeros((2, 1), int)),
            r"^ctc: expected integer labels \[S\] for logits \[2, 3\], got int32 \[2, 1\]; "
            r"pass one text, padded with -1, for each sequence of frames \[T, C\]$",
        ),
        (
            lambda x: fdl.ctc(x, jnp.ones(1, int), blank=3),
            r"^ctc: expected blank in \[0, 3\), got 3; pass the number of the class that is the "
            r"blank$",
        ),
    ],
)
def test_the_message_for_wrong_arguments(call, told):
    for run in (call, jax.jit(call)):
        # The notes that JAX adds below the message are in what pytest matches.
        with pytest.raises(fdl.PathError, match=re.compile(told, re.MULTILINE)) as caught:
            run(np.ones((2, 3), np.float32))
        assert re.fullmatch(told, str(caught.value))


@pytest.mark.parametrize(
    ("loss", "targets", "told"),
    [
        ("softmax_focal", [0, 3], r"labels in \[0, 3\), got 3 at row 1; give the last layer one"),
        ("multiclass_hinge", [-1, 0], r"labels in \[0, 3\), got -1 at row 0; give the last "),
        (
            "sigmoid_focal",
            [0.0, 0.5],
            r"targets 0 or 1, got 0\.5 at row 1; round the targets to 0 or 1$",
        ),
        ("hinge", [1.0, 0.0], r"targets -1 or 1, got 0\.0 at row 1; for targets 0 and 1, pass"),
        ("poisson_nll", [2.0, -1.0], r"targets >= 0, got -1\.0 at row 1; pass counts, which"),
        ("dice", [0.0, 2.0], r"targets in \[0, 1\], got 2\.0 at row 1; rescale the targets to"),
        (
            "soft_cross_entropy",
            [[0.5, 0.5, 0.0], [0.5, 0.4, 0.0]],
            r"targets >= 0 that sum to 1 over the classes, got 0\.5 at row 1; divide the targets "
            r"by their sum over the classes$",
        ),
        (
            "kl_divergence",
            [[1.5, -0.5, 0.0]],
            r"targets >= 0 that sum to 1 over the classes, got -0\.5 at row 0; divide the targets "
            r"by ",
        ),
        ("ctc", [[1, 2], [-1, 1]], r"labels in \[0, 3\), then -1 as padding, got 1 at row 1"),
        ("ctc", [[1, 3]], r"labels in \[0, 3\), then -1 as padding, got 3 at row 0; give the"),
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


# At infinity.

# Not the losses of several vectors, which have no limit there, nor `linear_cross_entropy`, which
# multiplies first, nor z_loss, whose slope is 0 * inf.
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
    args = [np.asarray(x) for x in case.data()]

    def far(args, place, value):
        first = args[0].copy()
        first[place] = value
        return [first, *args[1:]]

    places = [(row, column) for row in range(2) for column in range(min(2, args[0].shape[1]))]
    if name == "gaussian_nll":
        places = [(0, 0), (1, 0), (0, 1)]
    found = {}
    slopes = jax.jit(slope_of)
    for place in places:
        for sign in (1.0, -1.0):
            found[place, sign] = slopes(*far(args, place, sign * np.inf))
    with jax.enable_x64(True):
        args = [np.float64(x) if x.dtype == np.float32 else x for x in args]
        slopes = jax.jit(slope_of)
        for (place, sign), (slope, value) in found.items():
            near = far(args, place, sign * 1e9)
            for got, exact in ((value, case.exact(near)), (slope, slopes(*near)[0])):
                got, exact = np.asarray(got, np.float64), np.asarray(exact)
                out = np.isinf(got)
                assert (got[out] * exact[out] > 0).all() and (abs(exact[out]) > 1e6).all()
                np.testing.assert_allclose(got[~out], exact[~out], rtol=1e-5, atol=1e-6)


def test_losses_at_infinity_by_hand():
    inf = np.inf
    yes_and_no = np.float32([1.0, 0.0, 1.0, 0.0])
    logits = np.float32([inf, -inf, -inf, inf])

    def both(loss):
        return compiled(
            lambda *args: (loss(*args), jax.grad(lambda *args: loss(*args).sum())(*args))
        )

    focal = (fdl.sigmoid_focal, fdl.sigmoid_focal(gamma=0.0))
    for loss in (fdl.sigmoid_cross_entropy, *focal):
        values, slopes = both(loss)(logits, yes_and_no)
        assert values.tolist() == [0, 0, inf, inf]
        assert slopes.tolist() == [0, 0, -1, 1]
    # A weight of 0 leaves out even an infinite loss.
    for loss in (fdl.sigmoid_cross_entropy(positive_weight=0.0), fdl.sigmoid_focal(alpha=0.0)):
        assert jax.jit(loss)(np.float32(-inf), np.float32(1.0)) == 0
    rows = np.float32([[inf, 0.0, 1.0], [0.0, -inf, 1.0], [0.0, inf, 1.0]])
    labels = np.int32([0, 1, 0])
    none = np.float32([1.0, 0.0, 1.0])
    weighted = compiled(fdl.softmax_cross_entropy(class_weight=none))(rows, labels)
    assert weighted.tolist() == [0, 0, inf]
    for loss in (fdl.softmax_cross_entropy, fdl.softmax_focal):
        values, slopes = both(loss)(rows, labels)
        assert values.tolist() == [0, inf, inf]
        share = 1 / (1 + np.e)
        expected = [[0, 0, 0], [share, -1, 1 - share], [-1, 1, 0]]
        np.testing.assert_allclose(slopes, expected, rtol=1e-6)
    assert np.isnan(jax.jit(fdl.softmax_cross_entropy)(np.float32([inf, inf]), np.int32(0)))


def test_focal_losses_at_infinity_have_slopes_in_forward_mode():
    inf = np.inf
    slopes = compiled(jax.vmap(jax.jacfwd(fdl.sigmoid_focal)))
    found = slopes(np.float32([inf, -inf, -inf, inf]), np.float32([1, 0, 1, 0]))
    assert found.tolist() == [0, 0, -1, 1]
    slopes = compiled(jax.vmap(jax.jacfwd(fdl.softmax_focal)))
    rows = np.float32([[inf, 0.0, 1.0], [0.0, -inf, 1.0], [0.0, inf, 1.0]])
    share = 1 / (1 + np.e)
    expected = [[0, 0, 0], [share, -1, 1 - share], [-1, 1, 0]]
    np.testing.assert_allclose(slopes(rows, np.int32([0, 1, 0])), expected, rtol=1e-6)


# Elements that are left out: `where` and `ignore_index`.


def tokens(seed=0, rows=7, length=3):
    """(x [B, T, 4], labels [B, T]) of 5 classes; some labels, and all of row 2, are -100."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, (rows, length))
    labels[rng.random(labels.shape) < 0.4] = -100
    labels[2], labels[0, 0] = -100, 3
    x = array(rng.standard_normal((rows, length, 4)))
    return x, array(labels, np.int32)


IGNORING = fdl.softmax_cross_entropy(ignore_index=-100, smoothing=0.1)


def token_objective(**metrics):
    return fdl.supervised(lambda w, x: x @ w, IGNORING, **metrics)


@pytest.mark.parametrize("weighs", [False, True])
def test_the_mean_over_labels_that_count_matches_torch(weighs):
    torch = pytest.importorskip("torch", reason="no torch: means without ignored labels unseen")
    (x, y), w = tokens(), array(np.random.default_rng(1).standard_normal((4, 5)))
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
    batch = (x, y, weight) if weighs else (x, y)
    score = token_objective(accuracy=fdl.accuracy, perplexity=fdl.metrics.perplexity)
    slopes = jax.jit(jax.value_and_grad(score, has_aux=True))
    (loss, _), gradient = slopes(w, {}, batch, None)
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-4, atol=1e-6)
    logits = np.asarray(x) @ np.asarray(w)
    right = logits.argmax(-1) == np.asarray(y)
    plain = compiled(fdl.softmax_cross_entropy)(logits, np.maximum(y, 0))
    for size in (2, 7):
        found = fdl.evaluate(score, w, batch, batch_size=size)
        assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
        assert found["accuracy"] == pytest.approx((known * right).sum() / known.sum(), rel=1e-5)
        mean = (known * plain).sum() / known.sum()
        assert found["perplexity"] == pytest.approx(np.exp(mean), rel=1e-5)


def test_a_weight_leaves_out_what_a_function_around_a_loss_hides():
    (x, y), w = map(np.asarray, tokens()), np.ones((4, 5), np.float32)
    around = lambda logits, labels: IGNORING(logits, labels)  # noqa: E731
    objectives = [
        fdl.supervised(lambda w, x: x @ w, loss, right=fdl.accuracy) for loss in (IGNORING, around)
    ]
    expected = fdl.evaluate(objectives[0], w, (x, y))
    assert fdl.evaluate(objectives[1], w, (x, y, y != -100)) == expected
    assert fdl.evaluate(objectives[1], w, (x, y))["loss"] < expected["loss"]


def test_a_metric_of_another_shape_counts_all_of_it_and_its_own_options_hold():
    (x, y), w = map(np.asarray, tokens()), np.ones((4, 5), np.float32)
    rows = lambda logits, labels: logits.sum((1, 2))  # noqa: E731
    one = fdl.metrics.mean_of(fdl.accuracy(ignore_index=3))
    score = token_objective(rows=rows, others=fdl.accuracy(ignore_index=3), same=one)
    found = fdl.evaluate(score, w, (x, y))
    assert found["rows"] == pytest.approx(float(rows(x @ w, y).mean()), rel=1e-5)
    known = (y >= 0) & (y != 3)
    assert found["others"] == pytest.approx((y == 0)[known].mean(), rel=1e-6)
    assert found["same"] == pytest.approx(found["others"], rel=1e-6)


def test_fit_takes_labels_that_do_not_count_and_refuses_others():
    (x, y), optimizer = map(np.asarray, tokens()), fdl.sgd(0.1)
    run = fdl.start(array(np.zeros((4, 5))), optimizer)
    result = fdl.fit(token_objective(), optimizer, run, (x, y), steps=2, batch_size=7)
    loss, w = [], np.zeros((4, 5), np.float32)
    slopes = jax.jit(jax.value_and_grad(token_objective(), has_aux=True))
    for _ in range(2):
        (value, _), gradient = slopes(w, {}, (x, y), None)
        loss, w = [*loss, float(value)], w - 0.1 * np.asarray(gradient)
    np.testing.assert_allclose(result.run.params, w, rtol=1e-5, atol=1e-6)
    assert [each["loss"] for each in result.history] == pytest.approx(loss, rel=1e-5)
    wrong = y.copy()
    wrong[0, 1] = -1
    for labels, told in [
        (wrong, r"labels in \[0, 5\), got -1 at row 0; give the last layer"),
        (
            np.full_like(y, -100),
            r"at least one target that is not ignored, got none among targets \[7, 3\]; check "
            r"ignore_index and where$",
        ),
    ]:
        with pytest.raises(ValueError, match=rf"^softmax_cross_entropy: expected {told}"):
            fdl.evaluate(token_objective(), array(np.ones((4, 5))), (x, labels))


@pytest.mark.parametrize(
    "name",
    ["softmax_cross_entropy", "categorical_nll", "softmax_focal", "multiclass_hinge", "accuracy"],
)
@pytest.mark.parametrize(("ignored", "dtype"), [(-100, "int32"), (3, "uint8"), (-100, "uint8")])
def test_a_label_that_does_not_count_hides_its_row(name, ignored, dtype):
    logits, labels = map(np.array, LOSSES["softmax_cross_entropy"].data(2))
    labels[1] = 3
    f, out = getattr(fdl, name), labels == ignored
    if dtype == "int32":
        labels[1], out = ignored, np.arange(6) == 1
    spoilt = np.where(out[:, None], np.float32(np.nan), logits)
    kept, labels = np.where(out, 0, labels).astype(dtype), labels.astype(dtype)

    def ignoring(z):
        values = f(z, labels, ignore_index=ignored)
        return values.sum(), values

    @compiled
    def every(spoilt, logits):
        return *jax.grad(ignoring, has_aux=True)(spoilt), f(logits, kept)

    slope, found, expected = every(spoilt, logits)
    np.testing.assert_allclose(found, np.where(out, 0, expected), rtol=1e-6)
    assert out.any() == ((ignored, dtype) != (-100, "uint8"))
    assert np.isfinite(slope).all() and (slope[out] == 0).all()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda e: fdl.huber(e, e, where=e),
            r"huber: expected where to be bool, got float32; write mask > 0, which is True for the "
            r"elements to keep",
        ),
        (
            lambda e: fdl.huber(e, e, where=e[0] > 0),
            r"huber: expected where to have the shape of the loss, \[2, 3\], got \[3\]; use "
            r"jnp\.broadcast_to",
        ),
        (
            lambda e: fdl.hinge(e, e, where=e[:, 0] > 0),
            r"hinge: expected where to have the shape of the loss, \[2, 3\], got \[2\]; use "
            r"jnp\.broadcast_to",
        ),
        (
            lambda e: fdl.linear_cross_entropy(e, e.T, jnp.zeros(2, int), ignore_index=0.5),
            r"linear_cross_entropy: expected ignore_index to be an integer, got 0\.5; pass the "
            r"label to leave out, such as -100",
        ),
    ],
)
def test_the_message_for_a_wrong_where_or_ignore_index(call, told):
    for run in (call, jax.jit(call)):
        with pytest.raises(ValueError, match="^" + told) as caught:
            run(np.ones((2, 3), np.float32))
        assert re.fullmatch(told, str(caught.value))


SEEDED_BUGS = {
    "fdl/losses/targets.py": (
        "losses/test_losses.py test_numbers.py",
        [
            ("(targets < 0) | (targets > 1)", "(targets > 1)"),
            ("(targets >= classes),", "(targets > classes),"),
            ("(error > 0.01)", "(error > 1)"),
            ("np.abs(targets) != 1", "targets != 1"),
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
}
