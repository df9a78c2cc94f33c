"""How similar two representations are, how many directions one fills, and what neighbours tell.

In the shapes, N is the number of examples, and D is the number of features of a representation.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdl.checks import as_int, described, is_count
from fdl.look.representations import centred, labelled_rows, rows_of
from fdl.ops.numerics import largest, power_of_two
from fdl.paths import quoted

HIGHEST = jax.lax.Precision.HIGHEST


def cka(a: Any, b: Any) -> jax.Array:
    """Centred kernel alignment with a linear kernel: how similar two representations are.

    With columns of mean 0, cka = |a^T b|^2 / (|a^T a| |b^T b|), in Frobenius norms. It does not
    change if a or b is rotated, shifted, or multiplied by a number.

    Args:
      a: [N, ...], the representation of N examples, of any real dtype. It is flattened to [N, D].
      b: [N, ...], another representation of the same examples in the same order; its D may differ.

    Returns:
      A scalar in [0, 1], float32 or wider: 1 if a and b are equal up to the changes above. It is 0
      if a or b is the same for all examples. Works under `jit`, `grad` and `vmap`.

    Raises:
      ValueError: a and b do not have the same N, or one of them has no rows or is not finite.

    Example:
      >>> h = jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
      >>> cka(h, 3 * h[:, ::-1] + 1).round(4), cka(h, h[:, :1]).round(4)
      (Array(1., dtype=float32), Array(0.1759, dtype=float32))

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv
    1905.00414, section 3. If N is not much larger than D, cka is also large for unrelated
    representations.
    """
    one, other = rows_of("cka", a, "a"), rows_of("cka", b, "b")
    if len(one) != len(other):
        raise ValueError(
            f"cka: expected a and b with the same number of examples, got {len(one)} and "
            f"{len(other)}; pass two representations of the same examples"
        )
    return _alignment(centred(one)[0], centred(other)[0])


def cka_table(one: Mapping[str, Any], other: Mapping[str, Any]) -> jax.Array:
    """The linear CKA of each layer of one network with each layer of another network.

    With the same dict twice, it compares the layers of one network. With the layers of two runs, or
    of the same run at two steps, it says which layers learned the same.

    Args:
      one: a dict, path -> h [N, ...] with L1 layers, as `capture` gives it.
      other: a dict, path -> h [N, ...] with L2 layers, for the same N examples.

    Returns:
      [L1, L2], float32 or wider: the value at [i, j] is `cka` of the i-th layer of one and the j-th
      layer of other, in the order of the dicts. (A dict that comes out of `jit` is sorted by
      path.) `fdl.look.draw.similarity` draws it.

    Raises:
      TypeError: one or other is not a dict.
      ValueError: a dict is empty, or the representations do not all have the same N, or one of them
        has no rows or is not finite. The message gives the path.

    Example:
      >>> h = jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
      >>> cka_table({"dense": h, "head": h[:, :1]}, {"head": h[:, :1]}).round(4)
      Array([[0.1759],
             [1.    ]], dtype=float32)

    Source: Kornblith et al. 2019, arXiv 1905.00414, figure 2.
    """
    rows, columns = _layers(one, "one"), _layers(other, "other")
    length = len(next(iter(rows.values())))
    for path, each in (rows | columns).items():
        if len(each) != length:
            raise ValueError(
                "cka_table: expected representations of the same number of examples, got "
                f"{length} and, at {path}, {len(each)}; capture both for the same examples"
            )
    return jnp.stack(
        [jnp.stack([_alignment(a, b) for b in columns.values()]) for a in rows.values()]
    )


def effective_rank(h: Any) -> jax.Array:
    """How many directions a representation fills: exp of the entropy of its singular values.

    With p_i = s_i / sum(s), where s are the singular values of h less its mean, it is
    exp(-sum p_i log p_i).

    Args:
      h: [N, ...], of any real dtype. It is flattened to [N, D].

    Returns:
      A scalar in [1, min(N, D)], float32 or wider. It is 0 if h is the same for all examples. Works
      under `jit`, `grad` and `vmap`.

    Raises:
      ValueError: h has no rows or is not finite.

    Example:
      >>> effective_rank(jnp.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])).round(4)
      Array(2., dtype=float32)

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality",
    definition 1.
    """
    return _effective_rank(centred(rows_of("effective_rank", h))[0])


def nearest_readout(train: tuple[Any, Any], test: tuple[Any, Any], k: int) -> float:
    """The accuracy of k nearest neighbours on a representation.

    An example of test gets the class that is the most frequent among its k nearest examples of
    train. If several classes are equally frequent, it gets the smallest of them. Distances are
    Euclidean. Of two examples at the same distance, the first one is nearer.

    Args:
      train: a pair (h, labels) of the neighbours. h is [N, ...] of any real dtype and is flattened
        to [N, D]; labels is [N], integers.
      test: a pair (h, labels) of the examples on which the accuracy is measured.
      k: the number of neighbours, an int in [1, N].

    Returns:
      The accuracy on test, in [0, 1].

    Raises:
      ValueError: k is not an int in [1, N], labels does not have the length of h or is not
        integers, train and test have a different D, h has no rows, or h is not finite.

    Example:
      >>> h, labels = jnp.array([[0.0], [1.0], [2.0], [3.0]]), jnp.array([0, 0, 1, 1])
      >>> nearest_readout(train=(h, labels), test=(h, labels), k=1)
      1.0

    Source: Cover and Hart 1967, "Nearest neighbor pattern classification"; Wu et al. 2018, arXiv
    1805.01978, for representations.
    """
    h, labels, h_test, labels_test = labelled_rows("nearest_readout", train, test)
    for each in (labels, labels_test):
        if each.dtype.kind not in "iu":
            raise ValueError(
                f"nearest_readout: expected labels [N] of integers, got {each.dtype} "
                f"{list(each.shape)}; pass one class number for each row"
            )
    k = as_int(k)
    if not is_count(k) or k > len(h):
        raise ValueError(
            f"nearest_readout: expected k, an int in [1, {len(h)}], got {described(k)}; pass a "
            "smaller k, or more examples in train"
        )
    # The numbers of the classes are replaced by their order, because they may not fit into int32.
    classes, places = np.unique(np.concatenate([labels, labels_test]), return_inverse=True)
    places = places.astype(np.int32)
    known, truth = jnp.asarray(places[: len(labels)]), jnp.asarray(places[len(labels) :])
    return float(_nearest(h, known, h_test, truth, int(k), len(classes)))


def _layers(found: Any, name: str) -> dict[str, jax.Array]:
    """The centred rows of each layer, by a text that says where the layer is."""
    if not isinstance(found, Mapping):
        raise TypeError(
            f"cka_table: expected {name} as a dict, path -> h [N, ...], got {described(found)}; "
            "pass what fdl.look.capture(model, '**')(params, state, x) returns"
        )
    if not found:
        raise ValueError(
            f"cka_table: expected at least one layer in {name}, got none; pass what "
            "fdl.look.capture(model, '**')(params, state, x) returns"
        )
    return {
        f"{quoted(path)} of {name}": centred(rows_of(f"cka_table: {name} at {quoted(path)}", h))[0]
        for path, h in found.items()
    }


@jax.jit
def _alignment(one: jax.Array, other: jax.Array) -> jax.Array:
    """The CKA of centred rows [N, D1] and [N, D2] whose largest elements are near 1, or 0."""
    with jax.numpy_dtype_promotion("standard"):
        sizes = jnp.sqrt(_overlap(one, one)) * jnp.sqrt(_overlap(other, other))
        return jnp.clip(_overlap(one, other) / jnp.where(sizes > 0, sizes, 1), 0, 1)


@jax.jit
def _effective_rank(rows: jax.Array) -> jax.Array:
    sizes = jnp.linalg.svd(rows, compute_uv=False)
    total = sizes.sum()
    share = sizes / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1)))
    return jnp.where(total > 0, jnp.exp(entropy), 0)


def _overlap(one: jax.Array, other: jax.Array) -> jax.Array:
    """|one^T other|^2 in the Frobenius norm, in the cheaper of two ways."""
    n, a, b = len(one), one.shape[1], other.shape[1]
    if a * b <= n * (a + b):
        return jnp.square(jnp.matmul(one.T, other, precision=HIGHEST)).sum()
    # The same number from the Gram matrices, [N, N].
    gram = [jnp.matmul(rows, rows.T, precision=HIGHEST) for rows in (one, other)]
    return (gram[0] * gram[1]).sum()


@jax.jit(static_argnums=(4, 5))
def _nearest(
    h: jax.Array, labels: jax.Array, h_test: jax.Array, truth: jax.Array, k: int, classes: int
) -> jax.Array:
    """The compiled part of `nearest_readout`: the accuracy on the test examples."""
    unit = power_of_two(jnp.maximum(largest(h), largest(h_test)))
    h, h_test = h / unit, h_test / unit

    def right(example: tuple[jax.Array, jax.Array]) -> jax.Array:
        row, label = example
        # Not |a|^2 + |b|^2 - 2ab, which rounds the distance of two near rows to 0.
        near = jax.lax.top_k(-jnp.square(h - row[None]).sum(1), k)[1]
        votes = jnp.zeros(classes, jnp.int32).at[labels[near]].add(1)
        return votes.argmax().astype(label.dtype) == label  # of equal ones, the first

    return jax.lax.map(right, (h_test, truth)).astype(h.dtype).mean()
