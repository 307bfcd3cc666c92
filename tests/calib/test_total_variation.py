from __future__ import annotations

import numpy as np
import pytest
import torch

from mimiq_calib.synthesis.total_variation import total_variation


def slow_total_variation(images: np.ndarray, diagonal: float = 0.5**0.5) -> float:
    squares = dict.fromkeys([(0, 1), (1, 0), (1, 1), (1, -1)], 0.0)
    _, _, height, width = images.shape
    for image, channel, row, column in np.ndindex(images.shape):
        for down, right in squares:
            if 0 <= column + right < width and row + down < height:
                other = images[image, channel, row + down, column + right]
                squares[down, right] += (images[image, channel, row, column] - other) ** 2
    weights = {(0, 1): 1.0, (1, 0): 1.0, (1, 1): diagonal, (1, -1): diagonal}
    return sum(weights[way] * total**0.5 for way, total in squares.items())


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 2, 2), (4, 2, 8, 3)])
def test_equals_slow_loops(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).normal(size=shape)
    got = float(total_variation(torch.from_numpy(images)))
    assert got == pytest.approx(slow_total_variation(images), rel=1e-10)


def test_weight_of_diagonal_neighbours() -> None:
    images = np.random.default_rng(1).normal(size=(2, 3, 4, 5))
    got = float(total_variation(torch.from_numpy(images), diagonal_weight=1.0))
    assert got == pytest.approx(slow_total_variation(images, 1.0), rel=1e-10)


def test_by_hand() -> None:
    image = torch.tensor([[0.0, 3.0], [4.0, 0.0]])[None, None]
    # Right: 3, -4; down: 4, -3; falling: 0; rising: 3 - 4.
    assert float(total_variation(image)) == pytest.approx(5 + 5 + 1 / 2**0.5)


def test_is_a_norm_over_the_batch() -> None:
    image = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    four = image.expand(4, -1, -1, -1)
    assert float(total_variation(four)) == pytest.approx(2 * float(total_variation(image)))


def test_flat_images_have_none() -> None:
    assert float(total_variation(torch.full((2, 3, 4, 4), 7.0))) == 0.0


def test_gradient_is_a_derivative() -> None:
    images = torch.randn(
        1, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    assert torch.autograd.gradcheck(total_variation, (images.requires_grad_(),))
