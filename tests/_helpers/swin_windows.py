"""Where the tokens of Swin's windows come from, by rolling and cutting coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def window_origins(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> NDArray[np.int64]:
    """Row and column in the image of each token, ``(windows, tokens, 2)``; -1 for a pad."""
    rows, columns = np.meshgrid(*(np.arange(side) for side in grid), indexing="ij")
    origin = np.roll(np.stack([rows, columns], axis=-1), (-shift[0], -shift[1]), axis=(0, 1))
    pads = [(0, -side % length) for side, length in zip(grid, window, strict=True)]
    origin = np.pad(origin, [*pads, (0, 0)], constant_values=-1)
    return np.stack(
        [
            origin[top : top + window[0], left : left + window[1]].reshape(-1, 2)
            for top in range(0, origin.shape[0], window[0])
            for left in range(0, origin.shape[1], window[1])
        ]
    )


def neighbours(tokens: NDArray[np.int64], window: tuple[int, int]) -> NDArray[np.bool_]:
    """Which keys of a window lie no further from a query than the window reaches."""
    near = np.abs(tokens[:, None] - tokens[None]) < np.array(window)
    places: NDArray[np.bool_] = tokens[:, 0] >= 0
    return near.all(axis=-1) & places
