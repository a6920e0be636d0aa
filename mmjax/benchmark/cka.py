"""Linear centered kernel alignment (CKA) between features of the same examples.

Source: Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, arXiv
1905.00414, section 3. The unbiased variant: Nguyen et al. 2021, Do Wide and Deep Networks Learn the
Same Things?, arXiv 2010.15327, section 3.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from mmjax.errors import UserError

_ROUNDING = 1e-24  # squared relative error of a mean


@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
    """CKA between layers or encoders.

    Attributes:
      names: Names of the features.
      values: float64 [L, L].
    """

    names: tuple[str, ...]
    values: np.ndarray


def linear_cka(x: np.ndarray, y: np.ndarray, *, unbiased: bool = False, block: int = 4096) -> float:
    """Returns the linear CKA of two arrays of features; 1 for equal ones up to rotation and scale.

    Args:
      x, y: Features of the same examples, [N, D1] and [N, D2]: arrays or memory maps. They are read
        twice in blocks, and D1 x D2 products are kept, so the memory does not depend on N.
      unbiased: Whether to correct for the bias of few examples compared to the dimensions.
      block: Number of examples per block.

    Returns:
      NaN if features are the same for all examples.

    Raises:
      UserError: The numbers of examples differ or are too small, or a value is not finite.
    """
    _check({"x": x, "y": y}, unbiased)
    means = _mean(x, "x", block), _mean(y, "y", block)
    xy, xx, yy = (
        _hsic(a, b, ma, mb, unbiased=unbiased, block=block)
        for a, b, ma, mb in (
            (x, y, *means),
            (x, x, means[0], means[0]),
            (y, y, means[1], means[1]),
        )
    )
    return _ratio(xy, xx, yy)


def similarity(
    features: Mapping[str, np.ndarray], *, unbiased: bool = False, block: int = 4096
) -> Similarity:
    """Returns the linear CKA between all pairs of features; see `linear_cka`.

    Args:
      features: {name of a layer or an encoder: features [N, D] of the same examples}.
      unbiased: See `linear_cka`.
      block: See `linear_cka`.

    Raises:
      UserError: See `linear_cka`.
    """
    _check(features, unbiased)
    names, arrays = tuple(features), list(features.values())
    means = [_mean(array, name, block) for name, array in features.items()]
    hsic = np.zeros((len(names), len(names)))
    for i, j in itertools.combinations_with_replacement(range(len(names)), 2):
        hsic[i, j] = hsic[j, i] = _hsic(
            arrays[i], arrays[j], means[i], means[j], unbiased=unbiased, block=block
        )
    own = np.diag(hsic)
    values = [
        [_ratio(hsic[i, j], own[i], own[j]) for j in range(len(names))] for i in range(len(names))
    ]
    return Similarity(names, np.array(values).reshape(len(names), len(names)))


def _check(features: Mapping[str, np.ndarray], unbiased: bool) -> None:
    """Raises UserError unless all features are [N, D] with the same, large enough N."""
    least = 4 if unbiased else 2
    first_name, first = next(iter(features.items()))
    for name, array in features.items():
        if array.ndim != 2:
            raise UserError(
                f"CKA of {name}: features must have the shape [examples, dimensions]; got "
                f"{list(array.shape)}. Average or flatten the other axes."
            )
        if len(array) != len(first) or len(array) < least:
            raise UserError(
                f"CKA of {first_name} and {name}: {len(first)} and {len(array)} examples. Both "
                f"must be features of the same examples, at least {least}."
            )


def _blocks(array: np.ndarray, block: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), block):
        yield np.asarray(array[start : start + block], np.float64)


def _mean(array: np.ndarray, name: str, block: int) -> np.ndarray:
    mean = sum(values.sum(axis=0) for values in _blocks(array, block)) / len(array)
    if not np.isfinite(mean).all():
        raise UserError(f"CKA of {name}: dimension {int(np.argmin(np.isfinite(mean)))} contains "
                        "values that are not finite.")  # fmt: skip
    return mean


def _hsic(
    x: np.ndarray,
    y: np.ndarray,
    mean_x: np.ndarray,
    mean_y: np.ndarray,
    *,
    unbiased: bool,
    block: int,
) -> float:
    """Returns the Hilbert-Schmidt independence criterion of linear kernels, up to a constant.

    With centered features, all sums of the unbiased estimator over the kernels K and L without
    their diagonals are sums over the diagonals: the rows of the complete kernels add up to zero.
    """
    products = np.zeros((x.shape[1], y.shape[1]))
    diagonals = np.zeros(3)  # sums of k, l and k * l
    for a, b in zip(_blocks(x, block), _blocks(y, block), strict=True):
        a, b = a - mean_x, b - mean_y
        products += a.T @ b
        own_a, own_b = (a * a).sum(axis=1), (b * b).sum(axis=1)
        diagonals += own_a.sum(), own_b.sum(), own_a @ own_b
    n, (sum_k, sum_l, sum_kl) = len(x), diagonals
    if sum_k <= n * _ROUNDING * (mean_x @ mean_x) or sum_l <= n * _ROUNDING * (mean_y @ mean_y):
        return 0.0  # the features of all examples are the same
    complete = float((products**2).sum())  # trace of K L
    if not unbiased:
        return complete
    return complete - sum_kl + sum_k * sum_l / ((n - 1) * (n - 2)) - 2 * sum_kl / (n - 2)


def _ratio(xy: float, xx: float, yy: float) -> float:
    return float(xy / math.sqrt(xx * yy)) if xx > 0 and yy > 0 else math.nan
