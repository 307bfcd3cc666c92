"""Integer codes of a weight, in numpy, bit for bit as the torch quantizer computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mimiq_runtime.grid import Grid

__all__ = ["weight_codes"]


def weight_codes(
    weight: NDArray[np.float32], scale: NDArray[np.float32], grid: Grid, axis: int | None
) -> NDArray[np.int8]:
    r"""The codes :math:`\mathrm{clip}(\mathrm{round}(w / s), q_\min, q_\max)`.

    The quotient is rounded to single precision once, then to the nearest integer with ties to
    even: torch, ONNX's QuantizeLinear and this function agree on every float but NaN.

    Args:
        weight: Any shape.
        scale: ``()``, or ``(weight.shape[axis],)``; positive.
        grid: The codes that may come out.
        axis: The axis that has one scale a slice, or None.

    Returns:
        The shape of ``weight``.
    """
    if axis is not None:
        shape = [1] * weight.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    # A quotient beyond single precision is an infinity, and the clip takes it to the grid's end.
    with np.errstate(over="ignore"):
        quotient = weight.astype(np.float32) / scale
    codes: NDArray[np.int8] = np.clip(np.rint(quotient), grid.qmin, grid.qmax).astype(np.int8)
    return codes
