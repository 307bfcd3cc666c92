from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from _helpers.ssim import C1, C2, normalised, ssim
from skimage.metrics import structural_similarity

from mimiq_calib.synthesis.head_similarity import (
    head_similarity,
    inter_head_loss,
    mean_head_similarity,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def random_logits(batch: int, heads: int, queries: int, keys: int, seed: int = 0) -> torch.Tensor:
    """Heads with different means, spreads and a common part, so that similarities differ."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(batch, 1, queries, keys, generator=generator)
    own = torch.randn(batch, heads, queries, keys, generator=generator)
    share = torch.linspace(-1.0, 1.0, heads).view(1, -1, 1, 1)
    offset = 20 * torch.randn(batch, heads, 1, 1, generator=generator)
    return share * common + 0.5 * own + offset


def slow_similarity(logits: torch.Tensor) -> NDArray[np.float64]:
    x = logits.double().numpy()
    batch, heads, queries, _ = x.shape
    result = np.empty((batch, queries, heads, heads))
    for image, query, i, j in np.ndindex(batch, queries, heads, heads):
        result[image, query, i, j] = ssim(x[image, i, query], x[image, j, query])
    return result


def autograd_similarity(x: torch.Tensor) -> torch.Tensor:
    """The published formula by broadcasting, in double precision, for automatic derivatives."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    maps = ((x - low) / (high - low + 1e-8)).transpose(1, 2)
    a, b = maps[:, :, :, None], maps[:, :, None, :]
    m_a, m_b = a.mean(-1), b.mean(-1)
    v_a, v_b = a.square().mean(-1) - m_a**2, b.square().mean(-1) - m_b**2
    s_ab = (a * b).mean(-1) - m_a * m_b
    luminance = (2 * m_a * m_b + C1) / (m_a**2 + m_b**2 + C1)
    return luminance * (2 * s_ab + C2) / (v_a + v_b + C2)


@pytest.mark.parametrize("side", [3, 7, 15])
def test_equals_skimage_with_one_window(side: int) -> None:
    logits = random_logits(2, 3, 4, side * side)
    got = head_similarity(logits).numpy()
    maps = logits.double().numpy()
    for image, query, i, j in np.ndindex(2, 4, 3, 3):
        a, b = (normalised(maps[image, h, query]).reshape(side, side) for h in (i, j))
        # A window as large as the map has one valid place, the centre; skimage crops to it.
        expected = structural_similarity(
            a, b, win_size=side, data_range=1.0, use_sample_covariance=False, K1=0.01, K2=0.03
        )
        # Single precision of values up to 50 away from their map's mean.
        assert got[image, query, i, j] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("shape", [(2, 3, 5, 16), (1, 2, 1, 3), (1, 6, 4, 49), (3, 1, 2, 9)])
def test_equals_the_double_loop(shape: tuple[int, int, int, int]) -> None:
    logits = random_logits(*shape)
    got = head_similarity(logits)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), slow_similarity(logits), atol=2e-5)


def test_every_term_matters() -> None:
    """The case is not so plain that a missing luminance or constant would go unseen."""
    logits = random_logits(1, 4, 3, 25)
    exact = slow_similarity(logits)
    structure_only = np.empty_like(exact)
    x = logits.double().numpy()
    for query, i, j in np.ndindex(3, 4, 4):
        a, b = normalised(x[0, i, query]), normalised(x[0, j, query])
        structure_only[0, query, i, j] = (2 * np.cov(a, b, bias=True)[0, 1] + C2) / (
            a.var() + b.var() + C2
        )
    assert np.abs(exact - structure_only).max() > 1e-2
    assert exact.min() < -0.2
    assert exact[exact < 0.999].max() > 0.3


def test_gradient_equals_automatic_differentiation_in_double_precision() -> None:
    logits = random_logits(2, 4, 3, 16)
    exact = logits.double().requires_grad_()
    weighting = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(9))
    (autograd_similarity(exact) * weighting).sum().backward()
    ours = logits.clone().requires_grad_()
    (head_similarity(ours) * weighting).sum().backward()
    assert exact.grad is not None
    assert ours.grad is not None
    # The statistics are in single precision, with offsets of 20 beside spreads of about 3.
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=2e-3, atol=2e-5)
    assert exact.grad.abs().max() > 1e-2


def test_gradient_of_the_loss_equals_finite_differences() -> None:
    logits = random_logits(1, 2, 1, 9)
    ours = logits.clone().requires_grad_()
    inter_head_loss(head_similarity(ours)).backward()
    assert ours.grad is not None
    for key in range(9):
        nudge = torch.zeros_like(logits, dtype=torch.float64)
        nudge[0, 1, 0, key] = 1e-4
        up, down = (slow_similarity(logits.double() + step * nudge) for step in (1, -1))
        difference = (np.mean(1 - up**2) - np.mean(1 - down**2)) / 2e-4
        assert float(ours.grad[0, 1, 0, key]) == pytest.approx(difference, rel=5e-3, abs=1e-5)


def test_invariant_to_scale_and_offset_of_each_map() -> None:
    """Why the query's scale may stand before or after the tap."""
    logits = random_logits(1, 3, 4, 25)
    factor = torch.tensor([0.125, 3.0, 10.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        head_similarity(logits), head_similarity(logits * factor + 5.0), rtol=0.0, atol=5e-5
    )


def test_identical_and_opposite_heads() -> None:
    one = random_logits(1, 1, 2, 16)
    same = head_similarity(torch.cat([one, 2 * one + 3], dim=1))
    torch.testing.assert_close(same, torch.ones_like(same), rtol=0.0, atol=1e-5)
    assert float(inter_head_loss(same)) == pytest.approx(0.0, abs=1e-5)
    opposite = head_similarity(torch.cat([one, -one], dim=1))
    assert (opposite[..., 0, 1] < -0.5).all()


def test_loss_counts_all_ordered_pairs_and_the_diagonal() -> None:
    similarity = torch.tensor([[[[1.0, 0.5], [0.5, 1.0]]], [[[1.0, -0.25], [-0.25, 1.0]]]])
    # Sum of 1 - s^2 over 8 entries, four of them the diagonal's zeros.
    assert float(inter_head_loss(similarity)) == pytest.approx((2 * 0.75 + 2 * 0.9375) / 8)


def test_mean_similarity_leaves_the_diagonal_out() -> None:
    similarity = torch.tensor([[[[1.0, 0.5], [0.5, 1.0]]], [[[1.0, -0.25], [-0.25, 1.0]]]])
    assert float(mean_head_similarity(similarity)) == pytest.approx(0.125)
    three = head_similarity(random_logits(2, 3, 4, 16))
    expected = np.mean([three[..., i, j].mean() for i in range(3) for j in range(3) if i != j])
    assert float(mean_head_similarity(three)) == pytest.approx(float(expected), rel=1e-5)


def test_one_head_is_like_itself() -> None:
    similarity = head_similarity(random_logits(2, 1, 3, 16))
    assert float(inter_head_loss(similarity)) == pytest.approx(0.0, abs=1e-6)
    assert float(mean_head_similarity(similarity)) == 1.0


@pytest.mark.parametrize("constant", [0.0, 3.3, -17.7, 1e4])
def test_constant_maps_count_as_zeros(constant: float) -> None:
    """Rounding of their mean must not be taken for a pattern."""
    logits = random_logits(1, 3, 2, 49)
    logits[:, :2] = torch.tensor([constant, 0.7 * constant + 0.1]).view(1, 2, 1, 1)
    zeros = logits.clone()
    zeros[:, :2] = 0.0
    expected = slow_similarity(zeros)
    np.testing.assert_allclose(head_similarity(logits).numpy(), expected, atol=1e-5)
    assert expected[0, 0, 0, 1] == pytest.approx(1.0)
    assert abs(expected[0, 0, 0, 2]) < 1e-3


def test_constant_maps_neither_get_nor_disturb_gradients() -> None:
    logits = random_logits(1, 3, 2, 16).requires_grad_()
    with_constant = logits.clone()
    with_constant[:, 2] = 3.3
    leaf = with_constant.detach().requires_grad_()
    inter_head_loss(head_similarity(leaf)).backward()
    assert leaf.grad is not None
    assert leaf.grad[:, 2].abs().max() < 1e-6
    exact = with_constant.detach().double().requires_grad_()
    constant_as_zeros = exact.clone()
    constant_as_zeros[:, 2] = 0.0
    (1 - autograd_similarity(constant_as_zeros).square()).mean().backward()
    assert exact.grad is not None
    torch.testing.assert_close(leaf.grad[:, :2].double(), exact.grad[:, :2], rtol=2e-3, atol=1e-6)


def test_slices_without_prefix_tokens() -> None:
    """Views with strides, as taps give them: the same as copies, and gradients land in place."""
    logits = random_logits(2, 3, 6, 18).requires_grad_()
    view = logits[..., 2:, 2:]
    copy = view.detach().clone().requires_grad_()
    similarity = head_similarity(view)
    torch.testing.assert_close(similarity, head_similarity(copy), rtol=0.0, atol=1e-6)
    inter_head_loss(similarity).backward()
    inter_head_loss(head_similarity(copy)).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[..., 2:, 2:], copy.grad, rtol=1e-5, atol=1e-8)
    assert not logits.grad[..., :2, :].any()
    assert not logits.grad[..., :2].any()


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_prefix_tokens_are_left_out_as_by_a_slice(prefix: int) -> None:
    logits = random_logits(2, 3, 6, 18).requires_grad_()
    sliced = logits.detach().clone().requires_grad_()
    similarity = head_similarity(logits, prefix_tokens=prefix)
    assert torch.equal(similarity, head_similarity(sliced[..., prefix:, prefix:]))
    inter_head_loss(similarity).backward()
    inter_head_loss(head_similarity(sliced[..., prefix:, prefix:])).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, sliced.grad)


@pytest.mark.parametrize("elements", [1, 200, 700, 10**6])
def test_the_size_of_a_block_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    """One image at a time, blocks that do not divide the batch, all at once."""
    logits = random_logits(5, 3, 4, 16)
    whole, parts = (logits.clone().requires_grad_() for _ in range(2))
    expected = head_similarity(whole)
    inter_head_loss(expected).backward()
    monkeypatch.setattr("mimiq_calib.synthesis.head_similarity.BLOCK_ELEMENTS", elements)
    similarity = head_similarity(parts)
    inter_head_loss(similarity).backward()
    # The library may add up a product of another size in another order.
    torch.testing.assert_close(similarity, expected, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-4, atol=1e-8)


def test_hidden_keys_do_not_count() -> None:
    """Each query sees other keys: the same as a map of these keys alone."""
    logits = random_logits(2, 3, 4, 16)
    visible = torch.rand(4, 16, generator=torch.Generator().manual_seed(4)) < 0.7
    assert visible.sum(dim=1).min() >= 3
    logits[..., 5] += 100.0 * ~visible[:, 5]  # extremes where nobody looks
    logits.requires_grad_()
    similarity = head_similarity(logits, visible)
    for query in range(4):
        alone = head_similarity(logits.detach()[:, :, query : query + 1, visible[query]])
        torch.testing.assert_close(similarity[:, query], alone[:, 0], rtol=0.0, atol=1e-5)
    inter_head_loss(similarity).backward()
    assert logits.grad is not None
    hidden = (~visible).expand_as(logits)
    assert not logits.grad[hidden].any()
    assert logits.grad[~hidden].all()


def test_equal_extremes_share_their_gradient() -> None:
    """As automatic differentiation of amin and amax has it."""
    logits = torch.tensor([[[[0.0, 3.0, 3.0, 1.0]], [[2.0, 0.0, 0.5, 0.0]]]])
    exact = logits.double().requires_grad_()
    (1 - autograd_similarity(exact).square()).mean().backward()
    ours = logits.clone().requires_grad_()
    inter_head_loss(head_similarity(ours)).backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_computed_in_single_precision() -> None:
    logits = random_logits(2, 3, 4, 25).bfloat16().requires_grad_()
    similarity = head_similarity(logits)
    assert similarity.dtype == torch.float32
    # Exact for the rounded logits; there may be ties for the extremes, which share one value.
    np.testing.assert_allclose(
        similarity.detach().numpy(), slow_similarity(logits.detach()), atol=2e-5
    )
    inter_head_loss(similarity).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    assert torch.isfinite(logits.grad).all()


def random_visible(*shape: int) -> torch.Tensor:
    """Some keys of each query; at least two."""
    visible = torch.rand(shape, generator=torch.Generator().manual_seed(4)) < 0.6
    visible[..., :2] = True
    return visible


def slow_masked(logits: torch.Tensor, visible: torch.Tensor) -> NDArray[np.float64]:
    """Windows ``(images, windows, heads, queries, keys)``: only a query's own keys exist."""
    x, seen = logits.double().numpy(), visible.numpy()
    images, windows, heads, queries, _ = x.shape
    result = np.empty((images, windows, queries, heads, heads))
    for image, window, query, i, j in np.ndindex(images, windows, queries, heads, heads):
        keys = seen[window, query]
        a, b = x[image, window, i, query][keys], x[image, window, j, query][keys]
        result[image, window, query, i, j] = ssim(a, b)
    return result


def test_hidden_keys_enter_no_statistic() -> None:
    logits = random_logits(6, 3, 5, 16).unflatten(0, (2, 3))
    visible = random_visible(3, 5, 16)
    exact = slow_masked(logits, visible)
    got = head_similarity(logits, visible)
    np.testing.assert_allclose(got.numpy(), exact, atol=2e-5)
    assert np.abs(head_similarity(logits).numpy() - exact).max() > 0.1, "the mask matters"
    poisoned = logits.clone()
    poisoned.transpose(2, 3)[~visible[None, :, :, None].expand(2, 3, 5, 3, 16)] = 1e6
    torch.testing.assert_close(head_similarity(poisoned, visible), got, rtol=0.0, atol=1e-6)


def test_hidden_keys_get_no_gradient_and_the_others_the_exact_one() -> None:
    logits = random_logits(2, 3, 4, 9).unflatten(0, (1, 2)).requires_grad_()
    visible = random_visible(2, 4, 9)
    inter_head_loss(head_similarity(logits, visible)).backward()
    assert logits.grad is not None
    gradient = logits.grad.transpose(2, 3)[0]
    assert not gradient.masked_select(~visible[:, :, None]).any()
    total = 2 * 4 * 9  # queries and ordered pairs of heads
    for window, query in np.ndindex(2, 4):
        keys = visible[window, query]
        exact = logits.detach()[:1, window, :, query : query + 1, keys].double().requires_grad_()
        ((1 - autograd_similarity(exact).square()).sum() / total).backward()
        assert exact.grad is not None
        own = gradient[window, query][:, keys].double()
        torch.testing.assert_close(own, exact.grad[0, :, 0], rtol=2e-3, atol=1e-6)


def test_constant_visible_keys_count_as_zeros_whatever_is_hidden() -> None:
    logits = random_logits(1, 2, 1, 9)
    visible = random_visible(1, 9)
    logits[:, 0].masked_fill_(visible, 3.3)
    got = head_similarity(logits, visible)
    assert torch.isfinite(got).all()
    assert float(got[0, 0, 0, 0]) == pytest.approx(1.0, abs=1e-6)
    assert abs(float(got[0, 0, 0, 1])) < 1e-3
