from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import gaussian_kde

from mimiq_calib.synthesis.patch_entropy import (
    kernel_density,
    patch_entropy,
    patch_similarities,
)

WIDTH = 0.01


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head_outputs(batch: int = 3, heads: int = 2, tokens: int = 9, size: int = 5) -> torch.Tensor:
    """Tokens with a common part, so that similarities are near one another, and some are not."""
    common = randn(batch, 1, 1, size, seed=1)
    return 4 * common + randn(batch, heads, tokens, size, seed=2)


def slow_similarities(outputs: torch.Tensor, prefix: int) -> np.ndarray:
    """One pair of patches at a time."""
    x = outputs.double().numpy()
    batch, heads, tokens, size = x.shape
    places = range(prefix, tokens)
    rows = []
    for image in range(batch):
        patches = []
        for token in places:
            total = np.zeros(size)
            for head in range(heads):
                total += x[image, head, token]
            patches.append(total / heads)
        rows.append([a @ b / np.sqrt((a @ a) * (b @ b)) for a in patches for b in patches])
    return np.array(rows)


def slow_entropy(similarities: np.ndarray, points: np.ndarray | None = None) -> float:
    """By scipy's estimator and integration; each image with the points of the whole batch."""
    if points is None:
        points = np.linspace(similarities.min(), similarities.max(), 10)
    entropies = []
    for row in similarities:
        # scipy's width is a factor on the samples' own standard deviation.
        density = gaussian_kde(row, bw_method=WIDTH / row.std(ddof=1))(points) + 1e-4
        entropies.append(trapezoid(-density * np.log(density), points))
    return float(np.mean(entropies))


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_similarities_equal_slow_loops(prefix: int) -> None:
    outputs = head_outputs()
    got = patch_similarities(outputs, 3, prefix_tokens=prefix)
    assert got.shape == (3, (9 - prefix) ** 2)
    np.testing.assert_allclose(got.numpy(), slow_similarities(outputs, prefix), atol=1e-6)


def test_windows_of_an_image_belong_together() -> None:
    """Two images of three windows: pairs within each window, side by side."""
    outputs = head_outputs(batch=6, tokens=4)
    got = patch_similarities(outputs, 2)
    expected = slow_similarities(outputs, 0).reshape(2, 3 * 16)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


def test_a_patch_of_zeros_is_finite() -> None:
    outputs = head_outputs()
    outputs[0, :, 4] = 0.0
    outputs.requires_grad_()
    similarities = patch_similarities(outputs, 3)
    assert not similarities.detach().view(3, 9, 9)[0, 4].any()
    patch_entropy(similarities).backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("spread", [0.003, 0.05, 0.5])
def test_density_equals_scipy(spread: float) -> None:
    samples = spread * randn(2, 40)
    points = torch.linspace(-0.3, 0.4, 15)
    got = kernel_density(samples, points)
    for row, density in zip(samples.double().numpy(), got, strict=True):
        expected = gaussian_kde(row, bw_method=WIDTH / row.std(ddof=1))(points.double().numpy())
        # Positions in widths of the kernel, up to 40, in single precision.
        np.testing.assert_allclose(density.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_density_is_a_density() -> None:
    points = torch.linspace(-1, 1, 2001)
    density = kernel_density(0.2 * randn(3, 25).clamp(-3, 3), points)
    total = trapezoid(density.double().numpy(), points.double().numpy())
    np.testing.assert_allclose(total, 1.0, rtol=1e-4)


@pytest.mark.parametrize("prefix", [0, 1])
def test_entropy_equals_scipy(prefix: int) -> None:
    outputs = head_outputs()
    got = float(patch_entropy(patch_similarities(outputs, 3, prefix_tokens=prefix)))
    expected = slow_entropy(slow_similarities(outputs, prefix))
    assert got == pytest.approx(expected, rel=1e-4)
    assert abs(expected) > 0.1, "a case where there is something to compare"


def test_entropy_is_that_of_a_uniform_spread_and_falls_where_similarities_crowd() -> None:
    spread = torch.linspace(-1, 1, 4001)[None]
    # But for the kernel's fall at both ends, which half of the density at two points shows.
    assert float(patch_entropy(spread)) == pytest.approx(np.log(2), abs=0.03)
    crowded = torch.cat([0.05 * randn(1, 4000).clamp(-3, 3), torch.tensor([[-1.0, 1.0]])], dim=1)
    assert float(patch_entropy(crowded)) < 0.3
    assert float(patch_entropy(torch.full((2, 16), 0.4))) == 0.0, "nothing differs"


def test_gradient_equals_finite_differences_with_the_points_held() -> None:
    outputs = head_outputs(batch=2, tokens=5, size=3)
    exact = slow_similarities(outputs, 1)
    points = np.linspace(exact.min(), exact.max(), 10)
    ours = outputs.clone().requires_grad_()
    patch_entropy(patch_similarities(ours, 2, prefix_tokens=1)).backward()
    assert ours.grad is not None
    assert not ours.grad[:, :, 0].any(), "prefix tokens get none"
    for place in [(0, 0, 1, 0), (1, 1, 3, 2), (1, 0, 4, 1)]:
        nudge = torch.zeros_like(outputs, dtype=torch.float64)
        nudge[place] = 1e-5
        up, down = (
            slow_entropy(slow_similarities(outputs.double() + sign * nudge, 1), points)
            for sign in (1, -1)
        )
        assert float(ours.grad[place]) == pytest.approx((up - down) / 2e-5, rel=1e-2, abs=1e-4)


def test_gradient_of_the_density_is_a_derivative() -> None:
    samples = (0.02 * randn(2, 6)).double().requires_grad_()
    points = torch.linspace(-0.05, 0.05, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: kernel_density(x, points), (samples,))


def test_bfloat16_is_computed_in_single_precision() -> None:
    outputs = head_outputs().bfloat16()
    similarities = patch_similarities(outputs, 3)
    assert similarities.dtype == torch.float32
    np.testing.assert_allclose(similarities.numpy(), slow_similarities(outputs, 0), atol=1e-6)
