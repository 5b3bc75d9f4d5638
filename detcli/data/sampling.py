"""How often a picture is shown in an epoch: more often when it has objects of a rare class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def repeat_factors(
    pictures: NDArray[np.int64], labels: NDArray[np.int64], count: int, threshold: float
) -> NDArray[np.float64]:
    """Return how often each of `count` pictures is shown in an epoch, 1 or more.

    `pictures` [M] and `labels` [M] are those of the objects. A class in a share f of the pictures asks for
    max(1, sqrt(threshold / f)); a picture follows the class in it that asks for most. Source: Gupta, Dollár, Girshick,
    "LVIS", appendix B.2 (arXiv 1908.03195).
    """
    pairs = np.unique(np.stack([pictures, labels], axis=1), axis=0)
    shares = np.bincount(pairs[:, 1]) / max(count, 1)
    factors = np.ones(count)
    np.maximum.at(factors, pairs[:, 0], np.sqrt(threshold / shares[pairs[:, 1]]))
    return factors
