"""The handwritten digits of scikit-learn, which are part of that package: no download is needed."""

import numpy as np

from fdl.data.arrays import Split
from fdl.data.splitting import held_out


def digits(*, test_fraction: float = 0.25, seed: int = 0) -> Split:
    """1,797 handwritten digits by 13 people, reduced to 8 x 8 pixels.

    Args:
      test_fraction: the fraction of each class that is for testing, in (0, 1).
      seed: an int >= 0, which determines which examples are for testing.

    Returns:
      `Split(train, test)`, each `(images, labels)`. images is uint8 [N, 8, 8, 1] in [0, 16], and
      labels is int32 [N] in [0, 10). The split is stratified: each class is split separately.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: test_fraction is outside (0, 1).

    Example:
      >>> split = digits()
      >>> split.train[0].shape, split.test[1].shape
      ((1348, 8, 8, 1), (449,))

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository. scikit-learn contains only the test part of that data set.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"digits: expected a test_fraction in (0, 1), got {test_fraction}; with 0.25, a "
            "quarter of the images is for testing"
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits: expected scikit-learn, which contains the images, got none; run pip install "
            "'fdl[digits]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    test = np.sort(held_out(labels, test_fraction, np.random.default_rng(seed)))
    train = np.setdiff1d(np.arange(len(labels)), test)
    x, y = images.astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int32)
    return Split((x[train], y[train]), (x[test], y[test]))
