"""The Newton-Schulz iteration, which makes a matrix orthogonal by matrix products only."""

from typing import Any

import jax
import jax.numpy as jnp

from fdl.ops.numerics import largest, power_of_two, widened

COEFFICIENTS = {
    "standard": (3.4445, -4.7750, 2.0315),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
PRECONDITIONINGS = ("frobenius", "spectral", "aol", "schatten")
LEAST = 1e-8  # keeps a matrix of zeros at zero


def orthogonalize(
    x: jax.Array,
    ns_coeffs: Any = COEFFICIENTS["standard"],
    ns_steps: int = 5,
    preconditioning: str = "frobenius",
    eps: float = 1e-8,
) -> jax.Array:
    """Moves the singular values of x towards 1 by products of matrices.

    Each step maps every singular value s of x to a s + b s^3 + c s^5:

        A = x x^H,    x = a x + (b A + c A A) x

    The standard coefficients increase small singular values fastest. After five steps, all singular
    values that the scaling (see `preconditioning`) leaves above 0.002 are between 0.68 and 1.21.

    Args:
      x: [..., m, n].
      ns_coeffs: (a, b, c) for all steps, or an array [i, 3] with one row for each step.
      ns_steps: i, the number of steps, if ns_coeffs is one triple; otherwise it is not used.
      preconditioning: what x is divided by before the first step. "frobenius": its Frobenius norm.
        "spectral": its largest singular value, which needs a decomposition. "schatten": the square
        root of the Frobenius norm of A. "aol": each row of x is divided by the square root of the
        sum of |A| over the same row of A. "schatten" and "aol" cost almost nothing, because the
        first step computes A anyway.
      eps: a number that is added to the Frobenius or spectral norm.

    Returns:
      [..., m, n].

    Example:
      >>> orthogonalize(jnp.diag(jnp.array([1.0, 7.0])), COEFFICIENTS["dion"]).round(1)
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    Source: Jordan et al. 2024, "Muon"; Ahn et al. 2025, arXiv 2504.05295, for "dion"; Boissin et
    al. 2025, arXiv 2512.04632, for "aol"; Grishina et al. 2025, arXiv 2506.10935, for "schatten".
    """
    if not x.size:
        return x
    if x.shape[-2] > x.shape[-1]:
        # A tall x is transposed, so that x x^H is the smaller of the two products x x^H and x^H x.
        return orthogonalize(x.mT, ns_coeffs, ns_steps, preconditioning, eps).mT
    rows = jnp.asarray(ns_coeffs).astype(x.dtype)
    rows = rows if rows.ndim == 2 else jnp.broadcast_to(rows, (ns_steps, 3))
    # x is scaled so that squares of its elements are in range in any dtype.
    dtype, power = x.dtype, power_of_two(largest(widened(x), (-2, -1), keepdims=True))
    # The code multiplies by 1 / power, because XLA may rewrite x / a / b as x / (a b), where a b
    # may overflow.
    x = widened(x) * (1 / power).astype(widened(x).dtype)
    if preconditioning in ("frobenius", "spectral"):
        order = "fro" if preconditioning == "frobenius" else 2
        length = jnp.linalg.norm(x, order, (-2, -1), keepdims=True) + eps / power
        x = (x / length.astype(x.dtype)).astype(dtype)
    else:
        x, gram = (
            each.astype(dtype) for each in _rescaled(x, x @ x.mT.conj(), power, preconditioning)
        )
        x, rows = _polynomial(x, gram, rows[0]), rows[1:]
    # A scan compiles faster than unrolled steps, needs less memory, and runs as fast.
    return jax.lax.scan(lambda x, row: (_polynomial(x, x @ x.mT.conj(), row), None), x, rows)[0]


def check_preconditioning(who: str, preconditioning: str) -> None:
    """Raises a ValueError unless `preconditioning` is a known name."""
    if preconditioning not in PRECONDITIONINGS:
        raise ValueError(
            f"{who}: expected preconditioning to be one of {', '.join(PRECONDITIONINGS)}, got "
            f"{preconditioning!r}; leave it out for 'frobenius'"
        )


def _polynomial(x: jax.Array, gram: jax.Array, row: jax.Array) -> jax.Array:
    a, b, c = row
    return a * x + (b * gram + c * gram @ gram) @ x


def _rescaled(
    x: jax.Array, gram: jax.Array, power: jax.Array, preconditioning: str
) -> tuple[jax.Array, jax.Array]:
    """x and x x^H, both divided so that the singular values of x are at most 1."""
    # The clip at `tiny` tells XLA that the argument of the root is not 0. XLA then simplifies the
    # square of s to 1 / size, as in optax's code.
    least, tiny = LEAST / power / power, float(jnp.finfo(power.dtype).tiny)
    if preconditioning == "aol":
        size = jnp.abs(gram).sum(-1, keepdims=True)
    else:
        size = jnp.linalg.norm(gram, "fro", (-2, -1), keepdims=True)
    s = jax.lax.rsqrt(jnp.maximum(size, least).clip(tiny)).astype(x.dtype)
    return x * s, gram * s * s.mT if preconditioning == "aol" else gram * s**2
