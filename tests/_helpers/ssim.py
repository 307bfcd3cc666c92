"""SSIM of two maps with one window, written as the formula of method.md, section 2.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

C1, C2 = 0.01**2, 0.03**2


def normalised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x - x.min()) / (x.max() - x.min() + 1e-8)


def ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = normalised(a), normalised(b)
    m_a, m_b = a.mean(), b.mean()
    v_a, v_b = (a**2).mean() - m_a**2, (b**2).mean() - m_b**2
    s_ab = (a * b).mean() - m_a * m_b
    return float(
        (2 * m_a * m_b + C1) * (2 * s_ab + C2) / ((m_a**2 + m_b**2 + C1) * (v_a + v_b + C2))
    )
