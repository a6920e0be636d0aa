"""Linear centered kernel alignment (CKA) between features of the same examples.

Source: Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, arXiv
1905.00414, section 3; without the bias of few examples, as in Nguyen et al. 2021, Do Wide and Deep
Networks Learn the Same Things?, arXiv 2010.15327, section 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mmjax.errors import UserError

MAX_EXAMPLES = 1000  # the standard error is about 0.01; memory and time grow with the square
_LEAST = 4  # examples


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Similarity:
    """CKA between layers or encoders.

    Attributes:
      title: What is compared.
      names: Names of the features.
      values: float64 [L, L]; NaN for features that are the same for all examples.
      examples: Number of examples.
    """

    title: str
    names: tuple[str, ...]
    values: np.ndarray
    examples: int


def similarity(features: Mapping[str, np.ndarray], *, title: str = "Linear CKA") -> Similarity:
    """Returns the linear CKA between all pairs of features.

    It is 1 for features that are equal up to rotation and scale, and about 0, or slightly negative,
    for independent ones.

    Args:
      features: {name of a layer or an encoder: features [N, D] of the same examples}: arrays or
        memory maps. At most 1000 examples, evenly spaced, are used.
      title: What is compared.

    Raises:
      UserError: The numbers of examples differ or are too small, or a value is not finite.
    """
    size = _check(features)
    chosen = np.linspace(0, size - 1, min(size, MAX_EXAMPLES)).round().astype(int)
    kernels = [_kernel(np.asarray(x[chosen], np.float64), name) for name, x in features.items()]
    stacked = np.stack(kernels)
    products = (stacked @ stacked.T).astype(np.float64)
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):
        values = products / np.outer(norms, norms)
    return Similarity(title=title, names=tuple(features), values=values, examples=len(chosen))


def _check(features: Mapping[str, np.ndarray]) -> int:
    """Returns the number of examples; raises UserError unless all features are [N, D] with it."""
    first_name, first = next(iter(features.items()))
    for name, array in features.items():
        if array.ndim != 2:
            raise UserError(
                f"CKA of {name}: features must have the shape [examples, dimensions]; got "
                f"{list(array.shape)}. Average or flatten the other axes."
            )
        if len(array) != len(first) or len(array) < _LEAST:
            raise UserError(
                f"CKA of {first_name} and {name}: {len(first)} and {len(array)} examples. Both "
                f"must be features of the same examples, at least {_LEAST}."
            )
    return len(first)


def _kernel(x: np.ndarray, name: str) -> np.ndarray:
    """Returns the upper triangle of the centered linear kernel of features [N, D], float32.

    It is scaled to length 1. The product of two such vectors is the unbiased estimator of CKA:
    the kernels are without their diagonals, and centered so that their other elements add up to
    zero in each row (Szekely and Rizzo 2014, arXiv 1310.2926, definition 2).
    """
    if not np.isfinite(x).all():
        raise UserError(f"CKA of {name}: the features contain values that are not finite.")
    n = len(x)
    if (x == x[0]).all():
        return np.zeros(n * (n - 1) // 2, np.float32)
    x = x - x.mean(axis=0)
    kernel = x @ x.T
    np.fill_diagonal(kernel, 0)
    rows = kernel.sum(axis=1) / (n - 2)
    kernel += rows.sum() / (n - 1) - rows[:, None] - rows
    flat = kernel[np.triu_indices(n, 1)]
    return (flat / np.linalg.norm(flat)).astype(np.float32)
