"""The classes that are named for a picture: the most probable ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["best_classes"]


def best_classes(probabilities: NDArray[np.floating[Any]], top: int) -> list[tuple[int, float]]:
    """Index and probability of the most probable classes, best first.

    Args:
        probabilities: Array (classes,).
        top: How many; all of them where there are fewer.

    Returns:
        Of equal probabilities the lower index comes first.
    """
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(int(index), float(probabilities[index])) for index in order]
