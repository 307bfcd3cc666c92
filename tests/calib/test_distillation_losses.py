from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from mimiq_calib.distillation.losses import logit_distillation_loss, structural_attention_loss

C2 = 0.03**2


def randn(*shape: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_logit_loss_equals_scipy(temperature: float, spread: float) -> None:
    student, teacher = randn(6, 10, seed=0, spread=spread), randn(6, 10, seed=1, spread=spread)
    p = softmax(teacher.double().numpy() / temperature, axis=1)
    q = softmax(student.double().numpy() / temperature, axis=1)
    expected = temperature**2 * rel_entr(p, q).sum(axis=1).mean()
    got = logit_distillation_loss(student, teacher, temperature=temperature)
    # Logarithms in single precision, weighted by T^2: a difference of 2^-23 or so in each.
    assert float(got) == pytest.approx(expected, rel=1e-4, abs=2e-7 * temperature**2)


def test_logit_loss_is_zero_for_equal_logits_and_finite_for_extreme_ones() -> None:
    logits = randn(4, 10, seed=0)
    assert float(logit_distillation_loss(logits, logits + 3, temperature=5.0)) == pytest.approx(
        0.0, abs=1e-5
    )
    extreme = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert float(logit_distillation_loss(-extreme, extreme, temperature=1.0)) == pytest.approx(2e4)


def test_logit_loss_is_of_the_teacher_relative_to_the_student() -> None:
    student, teacher = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, -2.0]])
    p, q = softmax(teacher.numpy()), softmax(student.numpy())
    forward, reverse = rel_entr(p, q).sum(), rel_entr(q, p).sum()
    assert abs(forward - reverse) > 0.1
    assert float(logit_distillation_loss(student, teacher, temperature=1.0)) == pytest.approx(
        forward, rel=1e-5
    )


def slow_structure(
    students: list[torch.Tensor], teachers: list[torch.Tensor], prefix: int
) -> float:
    layers = []
    for student, teacher in zip(students, teachers, strict=True):
        q, t = student.double().numpy(), teacher.double().numpy()
        batch, heads, _, size = q.shape
        distances = []
        for image, head, channel in np.ndindex(batch, heads, size):
            a, b = q[image, head, prefix:, channel], t[image, head, prefix:, channel]
            s_ab = (a * b).mean() - a.mean() * b.mean()
            v_a, v_b = (a**2).mean() - a.mean() ** 2, (b**2).mean() - b.mean() ** 2
            distances.append(1 - (2 * s_ab + C2) / (v_a + v_b + C2))
        layers.append(np.mean(distances))
    return float(np.mean(layers))


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_structure_equals_slow_loops(prefix: int) -> None:
    # Layers of different sizes: each has the same weight.
    shapes = [(2, 3, 9, 4), (2, 2, 5, 3), (1, 1, 17, 2)]
    teachers = [randn(*shape, seed=3 + n, spread=0.05 * 4**n) for n, shape in enumerate(shapes)]
    students = [0.7 * t + randn(*t.shape, seed=13, spread=0.05) + 0.4 for t in teachers]
    got = float(structural_attention_loss(students, teachers, prefix_tokens=prefix))
    assert got == pytest.approx(slow_structure(students, teachers, prefix), rel=1e-5)


def test_structure_is_ssim_without_luminance() -> None:
    """As scikit-image has it: full SSIM of maps of equal means, where the luminance is 1."""
    from skimage.metrics import structural_similarity

    teacher = randn(1, 1, 49, 1, seed=0)
    student = 0.5 * teacher + randn(1, 1, 49, 1, seed=1)
    maps = [(x - x.mean(dim=2, keepdim=True) + 0.5) for x in (student, teacher)]
    ssim = structural_similarity(
        *(x.double().numpy().reshape(7, 7) for x in maps),
        win_size=7,
        data_range=1.0,
        use_sample_covariance=False,
    )
    got = float(structural_attention_loss([student], [teacher], prefix_tokens=0))
    assert got == pytest.approx(1 - ssim, rel=1e-5)


def test_structure_at_its_ends() -> None:
    x = randn(2, 3, 10, 4, seed=0)
    assert float(structural_attention_loss([x + 7], [x], prefix_tokens=1)) == pytest.approx(
        0.0, abs=1e-5
    )
    assert float(structural_attention_loss([-x], [x], prefix_tokens=1)) == pytest.approx(
        2.0, abs=0.02
    )
    flat = torch.ones_like(x)
    assert float(structural_attention_loss([flat], [flat], prefix_tokens=1)) == 0.0


def test_prefix_tokens_do_not_count() -> None:
    x, y = randn(1, 2, 8, 3, seed=0), randn(1, 2, 8, 3, seed=1)
    changed = x.clone()
    changed[:, :, :2] = 100.0
    before = structural_attention_loss([x], [y], prefix_tokens=2)
    assert torch.equal(structural_attention_loss([changed], [y], prefix_tokens=2), before)
    assert not torch.equal(structural_attention_loss([changed], [y], prefix_tokens=1), before)


def test_as_many_layers_in_both() -> None:
    x = randn(1, 1, 4, 2, seed=0)
    with pytest.raises(ValueError, match="zip"):
        structural_attention_loss([x, x], [x], prefix_tokens=0)


def test_gradients_are_derivatives_in_the_student() -> None:
    teacher, student = randn(1, 2, 6, 2, seed=0), randn(1, 2, 6, 2, seed=1).requires_grad_()
    structural_attention_loss([student], [teacher], prefix_tokens=1).backward()
    assert student.grad is not None
    for token in (1, 4):
        nudge = torch.zeros_like(student, dtype=torch.float64)
        nudge[0, 1, token, 0] = 1e-4
        up, down = (
            slow_structure([student.detach().double() + s * nudge], [teacher], 1) for s in (1, -1)
        )
        assert float(student.grad[0, 1, token, 0]) == pytest.approx((up - down) / 2e-4, rel=1e-3)
    assert not student.grad[:, :, 0].any()


def test_bfloat16_logits_and_heads_are_compared_in_single_precision() -> None:
    a, b = randn(4, 10, seed=0).bfloat16(), randn(4, 10, seed=1).bfloat16()
    got = logit_distillation_loss(a, b, temperature=5.0)
    assert got.dtype == torch.float32
    assert torch.equal(got, logit_distillation_loss(a.float(), b.float(), temperature=5.0))
    x, y = randn(1, 2, 8, 3, seed=0).bfloat16(), randn(1, 2, 8, 3, seed=1).bfloat16()
    got = structural_attention_loss([x], [y], prefix_tokens=1)
    assert float(got) == pytest.approx(slow_structure([x], [y], 1), rel=1e-5)
