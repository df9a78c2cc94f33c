"""Optimizers as plain NumPy float64 loops, written from the papers: no JAX, no optax, no fdl.

Every oracle has the same protocol:

    oracle = ORACLES["adam"](learning_rate=0.1, b1=0.8)
    oracle.init(params)                 # dict of arrays, any shape
    params = oracle.step(gradients)     # dict of float64 arrays, new ones at every step

Names and defaults of the hyper-parameters are optax 0.2.8's. A learning rate or a weight decay is a
float or a function of the step count, from 0. A mask is a dict of booleans or a function of params.
Options that only choose a dtype (mu_dtype and the like) do not exist: everything is float64.

Where optax and the paper differ, `reading` chooses one. The default is that of optax, except where
optax is thought to be wrong: rprop (it applies each update one step late), schedule_free
(under a schedule, the weights of the average look one step ahead) and adadelta's
learning_rate=None (optax climbs), where the default is the paper's.

Letters: w parameters, g gradient, m first and v second moment, t step from 1, s a leaf's state.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]
Schedule = float | Callable[[int], float]
Mask = None | bool | Mapping[str, bool] | Callable[[Arrays], Mapping[str, bool]]

DION = (  # arXiv 2504.05295; optax's preset "dion"
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


@dataclasses.dataclass(kw_only=True)
class Oracle:
    """The protocol. A subclass has its hyper-parameters and the `rule` for one leaf."""

    def init(self, params: Arrays) -> None:
        self.params = {name: np.array(w, np.float64) for name, w in params.items()}
        self.state: dict[str, dict] = {name: {} for name in params}
        self.t = 0

    def step(self, gradients: Arrays) -> dict[str, np.ndarray]:
        self.t += 1
        self.params = {
            name: np.asarray(
                self.rule(name, w, np.asarray(gradients[name], np.float64), self.state[name])
            )
            for name, w in self.params.items()
        }
        return dict(self.params)

    def rule(self, name, w, g, s):
        raise NotImplementedError

    @property
    def rate(self) -> float:
        return now(self.learning_rate, self.t - 1)

    def decay_of(self, name, mask: Mask = None, strength: Schedule | None = None) -> float:
        """The weight decay of one leaf at this step: 0 where the mask is false."""
        strength = now(self.weight_decay if strength is None else strength, self.t - 1)
        mask = mask(self.params) if callable(mask) else mask
        wanted = mask[name] if isinstance(mask, Mapping) else mask is not False
        return strength if wanted else 0.0


def now(value: Schedule, count: int) -> float:
    return value(count) if callable(value) else value


def average(s, key, new, decay, start=0.0):
    """The exponential moving average `s[key]`, moved towards `new`."""
    s[key] = decay * s.get(key, start) + (1 - decay) * new
    return s[key]


def norm(x) -> float:
    return float(np.sqrt(np.sum(x * x)))


def rms(x) -> float:
    return float(np.sqrt(np.mean(x * x)))


# --- gradient descent ----------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Sgd(Oracle):
    """m = g + mu m; w -= rate m, or with Nesterov w -= rate (g + mu m).

    Sutskever et al. 2013, eq. (3)-(4), put the rate inside: u = mu u - rate grad(w + mu u). With a
    constant rate that is this rule in the variable w + mu u; under a schedule they differ.
    """

    learning_rate: Schedule
    momentum: float | None = None
    nesterov: bool = False

    def rule(self, name, w, g, s):
        if self.momentum is None:
            return w - self.rate * g
        return w - self.rate * trace(s, g, self.momentum, self.nesterov)


def trace(s, g, momentum, nesterov):
    s["trace"] = g + momentum * s.get("trace", 0.0)
    return g + momentum * s["trace"] if nesterov else s["trace"]


@dataclasses.dataclass(kw_only=True)
class SignSgd(Oracle):
    """w -= rate sign(g). Bernstein et al. 2018, Algorithm 1."""

    learning_rate: Schedule

    def rule(self, name, w, g, s):
        return w - self.rate * np.sign(g)


# --- squared gradients ---------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Adagrad(Oracle):
    """Duchi et al. 2011.

    reading "paper": H = delta + sqrt(sum g^2) (Figure 1), eps outside of the root, as torch.
    reading "optax": sqrt(sum g^2 + eps), and no movement where the sum is 0.
    """

    learning_rate: Schedule
    initial_accumulator_value: float = 0.1
    eps: float = 1e-7
    reading: str = "optax"

    def rule(self, name, w, g, s):
        total = s["sum"] = s.get("sum", self.initial_accumulator_value) + g * g
        if self.reading == "paper":
            return w - self.rate * g / (np.sqrt(total) + self.eps)
        moved = np.where(total > 0, total, 1.0)
        return w - self.rate * np.where(total > 0, g / np.sqrt(moved + self.eps), 0.0)


@dataclasses.dataclass(kw_only=True)
class Adadelta(Oracle):
    """Zeiler 2012, Algorithm 1; its rate is 1. The decay is added to the gradient (L2).

    The running average of squared updates is of the update before the rate, as in optax and torch.
    learning_rate=None is rate 1 downhill; in optax it is rate 1 uphill (reading "optax").
    """

    learning_rate: Schedule | None = None
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: Schedule = 0.0
    weight_decay_mask: Mask = None
    reading: str = "paper"

    def rule(self, name, w, g, s):
        g = g + self.decay_of(name, self.weight_decay_mask) * w
        before = s.get("x", 0.0)
        change = np.sqrt(before + self.eps) / np.sqrt(average(s, "g", g * g, self.rho) + self.eps)
        change = change * g
        average(s, "x", change * change, self.rho)
        if self.learning_rate is None:
            return w - change if self.reading == "paper" else w + change
        return w - self.rate * change


@dataclasses.dataclass(kw_only=True)
class Rmsprop(Oracle):
    """Hinton 2012, lecture 6e; Graves 2013, eq. (38)-(45), centered with eps in the root.

    The rate is inside of the momentum, as Graves eq. (44) has it (torch: outside; equal when the
    rate is constant). torch is eps_in_sqrt=False.
    Centered with bias_correction, the variance of the first step is exactly 0, and by rounding
    sometimes below: NaN with eps outside, unless initial_scale lifts it.
    """

    learning_rate: Schedule
    decay: float = 0.9
    eps: float = 1e-8
    initial_scale: float = 0.0
    eps_in_sqrt: bool = True
    centered: bool = False
    momentum: float | None = None
    nesterov: bool = False
    bias_correction: bool = False

    def rule(self, name, w, g, s):
        correction = 1 - self.decay**self.t if self.bias_correction else 1.0
        v = average(s, "v", g * g, self.decay, self.initial_scale) / correction
        if self.centered:
            v = v - (average(s, "m", g, self.decay) / correction) ** 2
        root = np.sqrt(v + self.eps) if self.eps_in_sqrt else np.sqrt(v) + self.eps
        change = self.rate * g / root
        if self.momentum is None:
            return w - change
        return w - trace(s, change, self.momentum, self.nesterov)


@dataclasses.dataclass(kw_only=True)
class Rprop(Oracle):
    """Steps by the sign of the gradient, with a size for every weight; the rate is the first size.

    reading "irprop-": Igel and Huesken 2003, section 2.4, and torch: on a change of sign the
    gradient is taken as 0, so nothing moves. "rprop+": Riedmiller and Braun 1993, with weight
    backtracking: on a change of sign the last update is taken back. "optax": irprop-, but every
    step applies the update of the step before, or nothing where the sign has just changed.
    """

    learning_rate: float
    eta_minus: float = 0.5
    eta_plus: float = 1.2
    min_step_size: float = 1e-6
    max_step_size: float = 50.0
    reading: str = "irprop-"

    def rule(self, name, w, g, s):
        agreement = g * s.get("g", 0.0)
        size = s.get("size", np.full_like(w, self.learning_rate))
        factor = np.where(agreement > 0, self.eta_plus, self.eta_minus)
        resized = np.clip(size * factor, self.min_step_size, self.max_step_size)
        s["size"] = np.where(agreement == 0, size, resized)
        s["g"] = np.where(agreement < 0, 0.0, g)
        last, s["last"] = s.get("last", np.zeros_like(w)), s["size"] * np.sign(s["g"])
        if self.reading == "irprop-":
            return w - s["last"]
        if self.reading == "optax":
            return w - np.where(agreement < 0, 0.0, last)
        s["last"] = np.where(agreement < 0, -last, s["last"])
        return w - s["last"]


# --- Adam and its family -------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Adam(Oracle):
    """Kingma and Ba 2015.

    reading "algorithm1" (optax, torch): m^ / (sqrt(v^ + eps_root) + eps). reading "section2" (the
    sentence before section 2.1; TensorFlow, Keras): rate sqrt(1 - b2^t) / (1 - b1^t) m /
    (sqrt(v) + eps), where eps counts for more in the first steps.
    nesterov=True is Dozat's rule with a constant momentum (see Nadam).
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0
    nesterov: bool = False
    reading: str = "algorithm1"

    def rule(self, name, w, g, s):
        return w - self.rate * self.direction(g, s)

    def direction(self, g, s):
        m = first_moment(s, g, self.b1, self.t, self.nesterov)
        v = average(s, "v", g * g, self.b2)
        correction = 1 - self.b2**self.t
        if self.reading == "section2":
            return np.sqrt(correction) * m / (np.sqrt(v + self.eps_root) + self.eps)
        return m / (np.sqrt(v / correction + self.eps_root) + self.eps)


def first_moment(s, g, b1, t, nesterov=False):
    """Kingma's m^ = m / (1 - b1^t), or Dozat's b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)."""
    m = average(s, "m", g, b1)
    if not nesterov:
        return m / (1 - b1**t)
    return b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)


@dataclasses.dataclass(kw_only=True)
class Nadam(Adam):
    """Dozat 2016.

    momentum_decay=None: mu_t = b1 always (optax). A number psi (Dozat and Keras 1/250, torch
    0.004): mu_t = b1 (1 - 0.96^(psi t) / 2), in the step's two weights and in the products of the
    bias corrections; the average m itself keeps b1.
    """

    nesterov: bool = True
    momentum_decay: float | None = None

    def direction(self, g, s):
        if self.momentum_decay is None or not self.nesterov:
            return super().direction(g, s)
        mu, following = (
            self.b1 * (1 - 0.5 * 0.96 ** (self.momentum_decay * t)) for t in (self.t, self.t + 1)
        )
        product = s["product"] = s.get("product", 1.0) * mu
        m = average(s, "m", g, self.b1)
        m = following * m / (1 - product * following) + (1 - mu) * g / (1 - product)
        v = average(s, "v", g * g, self.b2) / (1 - self.b2**self.t)
        return m / (np.sqrt(v + self.eps_root) + self.eps)


@dataclasses.dataclass(kw_only=True)
class AdamW(Adam):
    """Loshchilov and Hutter 2019, Algorithm 2, line 12.

    decay_reading "optax" (and torch): w -= rate (Adam + lambda w), lambda times the whole rate.
    decay_reading "paper": w -= eta_t (alpha Adam + lambda w): the rate alpha does not touch the
    decay, only the schedule multiplier eta_t does.
    """

    weight_decay: Schedule = 1e-4
    mask: Mask = None
    decay_reading: str = "optax"
    schedule_multiplier: Schedule = 1.0

    def rule(self, name, w, g, s):
        pull = self.decay_of(name, self.mask) * w
        if self.decay_reading == "paper":
            eta = now(self.schedule_multiplier, self.t - 1)
            return w - eta * (self.rate * self.direction(g, s) + pull)
        return w - self.rate * (self.direction(g, s) + pull)


@dataclasses.dataclass(kw_only=True)
class NadamW(AdamW):
    """AdamW with Dozat's first moment (constant momentum)."""

    nesterov: bool = True


@dataclasses.dataclass(kw_only=True)
class Amsgrad(Oracle):
    """Reddi et al. 2018, Algorithm 2: the largest second moment so far.

    reading "after" (optax): v_max = max(v_max, v / (1 - b2^t)). reading "before" (torch, Keras):
    v_max = max(v_max, v), then v_max / (1 - b2^t). The paper corrects nothing: both
    bias_correction_* false, where the two readings are one.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0
    bias_correction_mu: bool = True
    bias_correction_nu: bool = True
    reading: str = "after"

    def rule(self, name, w, g, s):
        m = average(s, "m", g, self.b1)
        v = average(s, "v", g * g, self.b2)
        m = m / (1 - self.b1**self.t) if self.bias_correction_mu else m
        correction = 1 - self.b2**self.t if self.bias_correction_nu else 1.0
        before, after = (correction, 1.0) if self.reading == "after" else (1.0, correction)
        s["max"] = np.maximum(s.get("max", 0.0), v / before)
        return w - self.rate * m / (np.sqrt(s["max"] / after + self.eps_root) + self.eps)


@dataclasses.dataclass(kw_only=True)
class Adamax(Oracle):
    """Kingma and Ba 2015, Algorithm 2, u = max(b2 u, |g|); eps joins |g| as in optax and torch."""

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def rule(self, name, w, g, s):
        s["u"] = np.maximum(self.b2 * s.get("u", 0.0), np.abs(g) + self.eps)
        return w - self.rate * first_moment(s, g, self.b1, self.t) / s["u"]


@dataclasses.dataclass(kw_only=True)
class Radam(Oracle):
    """Liu et al. 2020, Algorithm 2: Adam where the variance is tractable, else momentum alone.

    The paper adapts for rho_t > 4 and has no eps; optax for rho_t >= threshold, torch for
    rho_t > 5. reading "optax": m^ / (sqrt(v^ + eps_root) + eps). reading "torch":
    m^ sqrt(1 - b2^t) / (sqrt(v) + eps), Adam's "section2".
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0
    threshold: float = 5.0
    nesterov: bool = False
    reading: str = "optax"

    def rule(self, name, w, g, s):
        m = first_moment(s, g, self.b1, self.t, self.nesterov)
        v = average(s, "v", g * g, self.b2)
        correction = 1 - self.b2**self.t
        longest = 2 / (1 - self.b2) - 1
        length = longest - 2 * self.t * self.b2**self.t / correction
        if length < self.threshold:
            return w - self.rate * m
        r = np.sqrt(
            ((length - 4) * (length - 2) * longest) / ((longest - 4) * (longest - 2) * length)
        )
        if self.reading == "torch":
            return w - self.rate * r * np.sqrt(correction) * m / (np.sqrt(v) + self.eps)
        return w - self.rate * r * m / (np.sqrt(v / correction + self.eps_root) + self.eps)


@dataclasses.dataclass(kw_only=True)
class Adabelief(Oracle):
    """Zhuang et al. 2020, Algorithm 2: the variance around the moving average.

    v = b2 v + (1 - b2) (g - m)^2 + eps_root, so eps_root accumulates, then m^ / (sqrt(v^) + eps).
    The paper has one eps for both places.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-16
    eps_root: float = 1e-16
    nesterov: bool = False

    def rule(self, name, w, g, s):
        hat = first_moment(s, g, self.b1, self.t, self.nesterov)
        s["v"] = average(s, "v", (g - s["m"]) ** 2, self.b2) + self.eps_root
        return w - self.rate * hat / (np.sqrt(s["v"] / (1 - self.b2**self.t)) + self.eps)


@dataclasses.dataclass(kw_only=True)
class Lion(Oracle):
    """Chen et al. 2023, Program 1: the sign of one average, the memory of another."""

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: Schedule = 1e-3
    mask: Mask = None

    def rule(self, name, w, g, s):
        direction = np.sign(self.b1 * s.get("m", 0.0) + (1 - self.b1) * g)
        average(s, "m", g, self.b2)
        return w - self.rate * (direction + self.decay_of(name, self.mask) * w)


# --- one rate per leaf ---------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Lamb(Oracle):
    """You et al. 2020, Algorithm 2, with phi(z) = z: ||w|| / ||u|| times u = Adam + lambda w.

    The ratio is 1 where either norm is 0, which the paper does not treat.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    eps_root: float = 0.0
    weight_decay: Schedule = 0.0
    mask: Mask = None

    def rule(self, name, w, g, s):
        m = first_moment(s, g, self.b1, self.t)
        v = average(s, "v", g * g, self.b2) / (1 - self.b2**self.t)
        u = m / (np.sqrt(v + self.eps_root) + self.eps) + self.decay_of(name, self.mask) * w
        ratio = norm(w) / norm(u) if norm(w) > 0 and norm(u) > 0 else 1.0
        return w - self.rate * ratio * u


@dataclasses.dataclass(kw_only=True)
class Lars(Oracle):
    """You et al. 2017, Algorithm 1; the rate is inside of the momentum.

    reading "paper", eq. (6): trust = eta ||w|| / (||g|| + beta ||w||).
    reading "optax": trust = eta ||w|| / (||g + beta w|| + eps), or 1 where a norm is 0.
    """

    learning_rate: Schedule
    weight_decay: Schedule = 0.0
    weight_decay_mask: Mask = True
    trust_coefficient: float = 0.001
    eps: float = 0.0
    trust_ratio_mask: Mask = True
    momentum: float = 0.9
    nesterov: bool = False
    reading: str = "optax"

    def rule(self, name, w, g, s):
        beta = self.decay_of(name, self.weight_decay_mask)
        u = g + beta * w
        below = norm(u) if self.reading == "optax" else norm(g) + beta * norm(w)
        trust = 1.0
        if self.decay_of(name, self.trust_ratio_mask, 1.0) and norm(w) > 0 and below > 0:
            trust = self.trust_coefficient * norm(w) / (below + self.eps)
        return w - trace(s, self.rate * trust * u, self.momentum, self.nesterov)


@dataclasses.dataclass(kw_only=True)
class Adafactor(Oracle):
    """Shazeer and Stern 2018, Algorithms 4 (matrix) and 5 (vector), b2_t = 1 - t^-0.8 (eq. 7.2).

    The paper's rate is rho_t = min(0.01, 1/sqrt(t)); None is 1 here, as in optax. Row and column
    statistics are means where the paper has sums: the same estimate. Of more than two dimensions
    the two largest are factored (optax; torch: the last two). The decay is not multiplied by the
    rate, and momentum averages the finished update (optax; the paper has neither).
    """

    learning_rate: Schedule | None = None
    min_dim_size_to_factor: int = 128
    decay_rate: float = 0.8
    decay_offset: int = 0
    multiply_by_parameter_scale: bool = True
    clipping_threshold: float | None = 1.0
    momentum: float | None = None
    weight_decay_rate: Schedule | None = None
    eps: float = 1e-30
    factored: bool = True
    weight_decay_mask: Mask = None

    def rule(self, name, w, g, s):
        b2 = 1 - float(self.t - self.decay_offset) ** -self.decay_rate
        square = g * g + self.eps
        large = sorted(range(w.ndim), key=lambda axis: w.shape[axis])[-2:]
        if self.factored and w.ndim > 1 and w.shape[large[0]] >= self.min_dim_size_to_factor:
            rows = average(s, "rows", square.mean(axis=large[1], keepdims=True), b2)
            columns = average(s, "columns", square.mean(axis=large[0], keepdims=True), b2)
            v = rows * columns / rows.mean(axis=large[0], keepdims=True)
        else:
            v = average(s, "v", square, b2)
        u = g / np.sqrt(v)
        if self.clipping_threshold is not None:
            u = u / max(1.0, rms(u) / self.clipping_threshold)
        if self.learning_rate is not None:
            u = self.rate * u
        if self.multiply_by_parameter_scale:
            u = u * max(1e-3, rms(w))
        if self.momentum is not None:
            u = average(s, "m", u, self.momentum)
        if self.weight_decay_rate is not None:
            u = u + self.decay_of(name, self.weight_decay_mask, self.weight_decay_rate) * w
        return w - u


# --- averages and wrappers -----------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class ScheduleFree(Oracle):
    """Defazio et al. 2024, eq. (3)-(5): params are y; `oracle.x` is the average to evaluate at.

    z follows the base optimizer with gradients at y; x = (1 - c) x + c z; y = b1 x + (1 - b1) z;
    c = gamma_t^2 / sum gamma_i^2, gamma the largest rate so far.
    reading "paper" (and the authors' code): gamma_t is the rate of this very step. reading "optax":
    it is the schedule's rate of the next step. Equal when the rate is constant.
    """

    base_optimizer: Oracle
    learning_rate: Schedule
    b1: float = 0.9
    weight_lr_power: float = 2.0
    reading: str = "paper"

    def init(self, params):
        super().init(params)
        self.base_optimizer.init(params)
        self.x, self.z = dict(self.params), dict(self.params)
        self.largest = self.total = 0.0

    def step(self, gradients):
        self.base_optimizer.params = y = self.params
        moved = self.base_optimizer.step(gradients)
        self.z = {name: np.asarray(z + (moved[name] - y[name])) for name, z in self.z.items()}
        gamma = now(self.learning_rate, self.t + (self.reading == "optax"))
        self.largest = max(self.largest, gamma)
        weight = self.largest**self.weight_lr_power
        self.total += weight
        c = weight / self.total if self.total > 0 else 0.0
        self.x = {name: np.asarray((1 - c) * x + c * self.z[name]) for name, x in self.x.items()}
        self.params = {
            name: np.asarray(self.b1 * x + (1 - self.b1) * self.z[name])
            for name, x in self.x.items()
        }
        self.t += 1
        return dict(self.params)


@dataclasses.dataclass(kw_only=True)
class _Scaled(Oracle):
    """The base of a schedule-free method: no momentum, decay towards 0 from y, b2=None for SGD."""

    learning_rate: Schedule
    b2: float | None
    eps: float
    weight_decay: float
    correct: bool = True

    def rule(self, name, w, g, s):
        u = g
        if self.b2 is not None:
            v = average(s, "v", g * g, self.b2)
            u = g / (np.sqrt(v / (1 - self.b2**self.t) if self.correct else v) + self.eps)
        return w - self.rate * (u + self.weight_decay * w)


def warmed(rate, steps, reading):
    """Linear warmup: optax from 0 at the first step, the paper from rate / steps."""
    if steps is None:
        return rate
    return lambda count: rate * min((count + (reading == "paper")) / steps, 1.0)


def schedule_free_sgd(
    *,
    learning_rate=1.0,
    warmup_steps=None,
    b1=0.9,
    weight_decay=None,
    weight_lr_power=2.0,
    reading="paper",
):
    """z -= gamma_t (g + lambda y). The decay is at y, as in the paper's Algorithm 1."""
    rate = warmed(learning_rate, warmup_steps, reading)
    base = _Scaled(learning_rate=rate, b2=None, eps=0.0, weight_decay=weight_decay or 0.0)
    return ScheduleFree(
        base_optimizer=base,
        learning_rate=rate,
        b1=b1,
        weight_lr_power=weight_lr_power,
        reading=reading,
    )


def schedule_free_adamw(
    *,
    learning_rate=0.0025,
    warmup_steps=None,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    weight_lr_power=2.0,
    reading="paper",
    correction="moment",
):
    """z -= gamma_t (g / (sqrt(v^) + eps) + lambda y): Defazio et al. 2024, Algorithm 1.

    correction "moment": v^ = v / (1 - b2^t) (optax). correction "rate": the authors' first code,
    gamma_t sqrt(1 - b2^t) and v uncorrected, so that the factor also enters the decay and c.
    """
    rate = warmed(learning_rate, warmup_steps, reading)
    if correction == "rate":
        plain = rate
        rate = lambda count: now(plain, count) * np.sqrt(1 - b2 ** (count + 1))  # noqa: E731
    base = _Scaled(
        learning_rate=rate,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        correct=correction == "moment",
    )
    return ScheduleFree(
        base_optimizer=base,
        learning_rate=rate,
        b1=b1,
        weight_lr_power=weight_lr_power,
        reading=reading,
    )


@dataclasses.dataclass(kw_only=True)
class Lookahead(Oracle):
    """Zhang et al. 2019, Algorithm 1: params are the fast weights, `oracle.slow` the slow ones."""

    fast_optimizer: Oracle
    sync_period: int
    slow_step_size: float
    reset_state: bool = False

    def init(self, params):
        super().init(params)
        self.fast_optimizer.init(params)
        self.slow = dict(self.params)

    def step(self, gradients):
        self.t += 1
        self.params = self.fast_optimizer.step(gradients)
        if self.t % self.sync_period == 0:
            self.slow = {
                name: np.asarray(slow + self.slow_step_size * (self.params[name] - slow))
                for name, slow in self.slow.items()
            }
            self.params = dict(self.slow)
            if self.reset_state:
                self.fast_optimizer.init(self.params)
            self.fast_optimizer.params = dict(self.params)
        return dict(self.params)


@dataclasses.dataclass(kw_only=True)
class Sam(Oracle):
    """Foret et al. 2021, Algorithm 1: step by the gradient at w + rho g / ||g|| (eq. 2).

    One `step` is one true step. `gradient_function(params, i)` gives the gradients at the i-th of
    sync_period - 1 adversarial points; the norm is over all leaves together. `adv_optimizer`, an
    oracle, replaces the normalised ascent: its updates are applied with the opposite sign.
    """

    optimizer: Oracle
    gradient_function: Callable[[Arrays, int], Arrays]
    rho: float = 0.05
    adv_optimizer: Oracle | None = None
    sync_period: int = 2
    reset_state: bool = True

    def init(self, params):
        super().init(params)
        self.optimizer.init(params)
        if self.adv_optimizer is not None:
            self.adv_optimizer.init(params)

    def step(self, gradients):
        self.t += 1
        if self.adv_optimizer is not None and self.reset_state:
            self.adv_optimizer.init(self.params)
        point = dict(self.params)
        for i in range(self.sync_period - 1):
            point = self.ascend(point, gradients)
            gradients = self.gradient_function(point, i)
        self.params = self.optimizer.step(gradients)
        return dict(self.params)

    def ascend(self, point, gradients):
        if self.adv_optimizer is not None:
            self.adv_optimizer.params = dict(point)
            below = self.adv_optimizer.step(gradients)
            return {name: w - (below[name] - w) for name, w in point.items()}
        length = np.sqrt(sum(np.sum(np.asarray(g) ** 2) for g in gradients.values()))
        return {name: w + self.rho * gradients[name] / length for name, w in point.items()}


# --- matrices ------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Muon(Oracle):
    """Jordan et al. 2024: momentum, orthogonalised by Newton-Schulz; AdamW for what is no matrix.

    reading "optax": Dozat's bias-corrected first moment. reading "jordan" (and torch): u =
    (1 - beta) g + beta m, uncorrected. A common factor vanishes in the orthogonalisation, but with
    Nesterov the two weigh g and m differently in the first steps; without, they agree up to eps.
    Then u is scaled by sqrt(max(1, fan_out / fan_in)), or by sqrt(max(fan_in, fan_out)) times
    consistent_rms.

    `muon_weight_dimension_numbers`: None (matrices are Muon's, w is [in, out]) or a dict of
    (reduction_axes, output_axes), or None for AdamW; the other axes are a batch.
    """

    learning_rate: Schedule
    ns_coeffs: tuple | str = (3.4445, -4.775, 2.0315)
    ns_steps: int = 5
    beta: float = 0.95
    eps: float = 1e-8
    weight_decay: Schedule = 0.0
    weight_decay_mask: Mask = None
    nesterov: bool = True
    adaptive: bool = False
    preconditioning: str = "frobenius"
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps_root: float = 0.0
    adam_weight_decay: Schedule = 0.0
    adam_learning_rate: Schedule | None = None
    muon_weight_dimension_numbers: Mapping | None = None
    consistent_rms: float | None = None
    reading: str = "optax"

    def init(self, params):
        super().init(params)
        rate = self.adam_learning_rate
        self.adam = AdamW(
            learning_rate=self.learning_rate if rate is None else rate,
            b1=self.adam_b1,
            b2=self.adam_b2,
            eps=self.eps,
            eps_root=self.adam_eps_root,
            weight_decay=self.adam_weight_decay,
            nesterov=self.nesterov,
        )
        coefficients = {"standard": (3.4445, -4.775, 2.0315), "dion": DION}.get(
            self.ns_coeffs if isinstance(self.ns_coeffs, str) else "", self.ns_coeffs
        )
        several = isinstance(coefficients[0], (tuple, list))
        self.coefficients = (
            list(coefficients)[-self.ns_steps :] if several else [coefficients] * self.ns_steps
        )

    def rule(self, name, w, g, s):
        axes = ((0,), (1,)) if w.ndim == 2 else None
        if self.muon_weight_dimension_numbers is not None:
            axes = self.muon_weight_dimension_numbers[name]
        if axes is None:
            self.adam.t, self.adam.params = self.t, self.params
            return self.adam.rule(name, w, g, s)
        if self.reading == "optax":
            u = first_moment(s, g, self.beta, self.t, self.nesterov)
        else:
            m = average(s, "m", g, self.beta)
            u = (1 - self.beta) * g + self.beta * m if self.nesterov else m
        orthogonal, fan_in, fan_out = self.orthogonalise(u, *axes)
        if self.adaptive:
            orthogonal = np.sum(u * orthogonal) * orthogonal
        scale = np.sqrt(max(1.0, fan_out / fan_in))
        if self.consistent_rms is not None:
            scale = np.sqrt(max(fan_in, fan_out)) * self.consistent_rms
        return w - self.rate * (
            scale * orthogonal + self.decay_of(name, self.weight_decay_mask) * w
        )

    def orthogonalise(self, u, reduction, output):
        batch = [axis for axis in range(u.ndim) if axis not in (*reduction, *output)]
        order = (*batch, *reduction, *output)
        sizes = [int(np.prod([u.shape[a] for a in axes])) for axes in (batch, reduction, output)]
        stack = u.transpose(order)
        flat = [
            newton_schulz(x, self.coefficients, self.eps, self.preconditioning)
            for x in stack.reshape(sizes)
        ]
        back = np.stack(flat).reshape(stack.shape).transpose(np.argsort(order))
        return back, sizes[1], sizes[2]


def newton_schulz(x, coefficients, eps=1e-8, preconditioning="frobenius"):
    """x [m, n] with its singular values pushed towards 1: x = a x + (b A + c A A) x, A = x x^T.

    First scaled below 1 by a norm: Frobenius, spectral, Schatten-4 (arXiv 2506.10935) or the row
    sums of |A| ("aol", arXiv 2512.04632). Applied to the wide one of x and x^T, which matters for
    "aol" alone.
    """
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, coefficients, eps, preconditioning).T
    gram = x @ x.T
    if preconditioning == "frobenius":
        x = x / (norm(x) + eps)
    elif preconditioning == "spectral":
        x = x / (np.linalg.svd(x, compute_uv=False)[0] + eps)
    elif preconditioning == "schatten":
        x = x / np.sqrt(max(norm(gram), 1e-8))
    else:
        x = x / np.sqrt(np.maximum(np.abs(gram).sum(axis=1, keepdims=True), 1e-8))
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@dataclasses.dataclass(kw_only=True)
class Soap(Oracle):
    """Vyas et al. 2024 (arXiv 2409.11321): Adam in the eigenbasis of Shampoo's Kronecker factors.

    Names and defaults of the authors' soap.py, with b1, b2 for betas and shampoo_beta=None for -1.

    For each axis of size at most max_precond_dim, a factor L = E[G G^T] over the other axes, an
    average with shampoo_beta (None: b2) from zero without correction, and an orthogonal basis Q.
    The first gradient makes L = (1 - beta) G G^T and Q by eigh, largest eigenvalue first. A step
    (Algorithm 3) rotates g, runs Adam on it with v in the rotated and m in the original axes (the
    authors keep m rotated and rotate it anew with the basis: the same), rotates back, and only then
    moves L and, when the count of Adam steps divides precondition_frequency, Q = qr(L Q), one
    power iteration (Algorithm 4). Leaves with fewer than two axes have no basis and get Adam,
    unless precondition_1d.

    reading "authors": the first gradient moves nothing (skip_first); columns of Q are sorted by
    diag(Q^T L Q), descending, before the power iteration, and v with them; Adam's "section2" eps;
    the decay after the step: w = (w - rate u) (1 - rate lambda).
    reading "paper": the first gradient makes the basis and is also stepped with; Q = qr(L Q), v as
    it is; Adam's "algorithm1" eps; the decay beside the step: w -= rate (u + lambda w).
    `skip_first`, `sort`, `adam_reading` and `decay_after` set each of the four apart.
    refresh "eigh": a full decomposition instead of the power iteration.

    What a comparison must know: unsorted power iteration keeps an exact basis in exact arithmetic
    only; where a later column's eigenvalue overtakes an earlier one's, rounding errors grow by
    their ratio at every refresh, until the columns have changed places and v has not.
    Further, u does not depend on the signs of Q's columns, but it does on Q where eigenvalues are
    equal. The first L of an [m, n] leaf has min(m, n) nonzero ones, so for
    m != n Q is arbitrary in the null space: compare square leaves, or set
    `oracle.state[name]["bases"]`.
    """

    learning_rate: Schedule = 3e-3
    b1: float = 0.95
    b2: float = 0.95
    shampoo_beta: float | None = None
    eps: float = 1e-8
    weight_decay: Schedule = 0.01
    precondition_frequency: int = 10
    max_precond_dim: int = 10000
    precondition_1d: bool = False
    normalize_grads: bool = False
    correct_bias: bool = True
    mask: Mask = None
    reading: str = "authors"
    refresh: str = "qr"
    skip_first: bool | None = None
    sort: bool | None = None
    adam_reading: str | None = None
    decay_after: bool | None = None

    def __post_init__(self):
        theirs = self.reading == "authors"
        self.skip_first = theirs if self.skip_first is None else self.skip_first
        self.sort = theirs if self.sort is None else self.sort
        self.decay_after = theirs if self.decay_after is None else self.decay_after
        self.adam_reading = self.adam_reading or ("section2" if theirs else "algorithm1")

    def rule(self, name, w, g, s):
        beta = self.b2 if self.shampoo_beta is None else self.shampoo_beta
        first = "factors" not in s
        if first:
            axes = range(g.ndim) if g.ndim > 1 or self.precondition_1d else ()
            axes = [axis for axis in axes if g.shape[axis] <= self.max_precond_dim]
            s["factors"] = {axis: (1 - beta) * outer(g, axis) for axis in axes}
            s["bases"] = {axis: eigenvectors(factor) for axis, factor in s["factors"].items()}
            s["count"] = 0
            if self.skip_first:
                return w
        count = s["count"] = s["count"] + 1
        m = average(s, "m", g, self.b1)
        v = average(s, "v", rotate(g, s["bases"]) ** 2, self.b2)
        corrections = (1 - self.b1**count, 1 - self.b2**count) if self.correct_bias else (1.0, 1.0)
        size, eps = 1 / corrections[0], self.eps
        if self.adam_reading == "section2":
            size, root = size * np.sqrt(corrections[1]), np.sqrt(v)
        else:
            root = np.sqrt(v / corrections[1])
        u = rotate(rotate(m, s["bases"]) / (root + eps), s["bases"], back=True)
        if self.normalize_grads:
            u = u / (1e-30 + rms(u))
        pull = self.rate * self.decay_of(name, self.mask)
        moved = w - self.rate * size * u
        moved = moved - pull * (moved if self.decay_after else w)
        if not first:
            for axis in s["factors"]:
                average(s["factors"], axis, outer(g, axis), beta)
        if count % self.precondition_frequency == 0:
            for axis in s["factors"]:
                self.turn(s, axis)
        return moved

    def turn(self, s, axis):
        """A new basis of one axis; `v` follows the order of its columns."""
        factor, basis = s["factors"][axis], s["bases"][axis]
        if self.refresh == "eigh":
            s["bases"][axis] = eigenvectors(factor)
            return
        if self.sort:
            order = np.argsort(-np.diag(basis.T @ factor @ basis), kind="stable")
            basis = basis[:, order]
            s["v"] = np.take(s["v"], order, axis=axis)
        s["bases"][axis] = np.linalg.qr(factor @ basis)[0]


def outer(g, axis):
    """The Gram matrix [n, n] of one axis: g times itself, summed over every other axis."""
    others = [other for other in range(g.ndim) if other != axis]
    return np.tensordot(g, g, axes=(others, others))


def eigenvectors(factor):
    """Orthonormal columns, by descending eigenvalue."""
    return np.linalg.eigh(factor)[1][:, ::-1]


def rotate(x, bases, back=False):
    """x times Q (back: Q^T) along every axis that has a basis."""
    for axis, basis in bases.items():
        x = np.moveaxis(np.tensordot(x, basis, axes=(axis, 1 if back else 0)), -1, axis)
    return x


ORACLES: dict[str, Callable[..., Oracle]] = {
    "sgd": Sgd,
    "sign_sgd": SignSgd,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "rmsprop": Rmsprop,
    "rprop": Rprop,
    "adam": Adam,
    "amsgrad": Amsgrad,
    "adamax": Adamax,
    "nadam": Nadam,
    "adamw": AdamW,
    "nadamw": NadamW,
    "radam": Radam,
    "adabelief": Adabelief,
    "lion": Lion,
    "lamb": Lamb,
    "lars": Lars,
    "adafactor": Adafactor,
    "schedule_free": ScheduleFree,
    "schedule_free_sgd": schedule_free_sgd,
    "schedule_free_adamw": schedule_free_adamw,
    "lookahead": Lookahead,
    "sam": Sam,
    "muon": Muon,
    "soap": Soap,
}
