from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from _helpers.calib_cases import PIXEL_SCALE, no_advance, pixels, quantization, set_quantizers
from _helpers.tiny_students import tiny_vit
from torch import nn

from mimiq_calib.conversion.convert import build_student, expose_attention, quantizers_of
from mimiq_calib.observation import observe_activations, scale_weights
from mimiq_calib.quantizers import probability_search
from mimiq_calib.quantizers.learned_step import quantize_to_codes
from mimiq_calib.quantizers.probability_search import ProbabilityScaleSearch
from mimiq_calib.quantizers.range_search import minmax_scale, mse_scale
from mimiq_runtime.grid import Grid
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    from mimiq_calib.recipe import QuantizationSettings

IMAGES = pixels(6)
INPUT = PIXEL_SCALE.normalise(PIXEL_SCALE.to_unit(IMAGES))


def student_of(settings: QuantizationSettings) -> nn.Module:
    return build_student(expose_attention(tiny_vit()), settings)


def observe(student: nn.Module, settings: QuantizationSettings, batch_size: int = 4) -> None:
    observe_activations(
        student, settings, IMAGES, PIXEL_SCALE, batch_size=batch_size, advance=no_advance
    )


@torch.no_grad()
def activations(student: nn.Module) -> dict[str, torch.Tensor]:
    """What each quantizer gets while nothing is quantized, by hooks of the test's own."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        quantizer.register_forward_pre_hook(
            lambda module, inputs: seen.setdefault(module.name, inputs[0].clone())
        )
        for quantizer in quantizers_of(student)
    ]
    set_quantizers(student, enabled=False)
    student(INPUT)
    set_quantizers(student, enabled=True)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_weights_get_the_scale_of_each_channel(method: str) -> None:
    settings = quantization(3, 4, weight_range=method, percentile=98.0)
    student = student_of(settings)
    scale_weights(student, settings)
    layer = student.blocks[1].attn.proj
    values = layer.weight.detach().numpy()
    if method == "minmax":
        expected = np.maximum(values.max(axis=1) / 3, values.min(axis=1) / -4)
    elif method == "percentile":
        low, high = np.percentile(values, [2, 98], axis=1)
        expected = np.maximum(high / 3, low / -4)
    else:
        expected = mse_scale(layer.weight.detach(), Grid.signed(3)).numpy()
    np.testing.assert_allclose(layer.weight_quantizer.scale.detach(), expected, rtol=1e-5)
    kernel = student.patch_embed.proj
    assert kernel.weight_quantizer.scale.shape == (48,)
    ones = [
        q.name
        for q in quantizers_of(student)
        if q.kind is TensorKind.WEIGHT and (q.scale == 1).any()
    ]
    assert ones == []


def test_activations_are_covered_by_minmax() -> None:
    settings = quantization(4, 4, activation_range="minmax", skewed_grids=False)
    student = student_of(settings)
    expected = activations(student)
    observe(student, settings)
    for quantizer in quantizers_of(student):
        if quantizer.kind is TensorKind.WEIGHT:
            assert (quantizer.scale == 1).all(), "weights are not touched"
            continue
        values = expected[quantizer.name].reshape(1, -1)
        scale = minmax_scale(values, quantizer.grid)
        # The batches are of other sizes than all together: sums in another order.
        torch.testing.assert_close(quantizer.scale.detach(), scale.squeeze(), rtol=1e-4, atol=0.0)
        assert quantizer.scale.shape == ()


def test_activations_by_mse_are_those_of_all_values() -> None:
    settings = quantization(4, 4, activation_range="mse", skewed_grids=False)
    student = student_of(settings)
    expected = activations(student)
    observe(student, settings)
    for quantizer in quantizers_of(student):
        if quantizer.kind is TensorKind.ACTIVATION and "probability" not in quantizer.name:
            values = expected[quantizer.name].reshape(1, -1)
            best, chosen = (
                (quantize_to_codes(values, step, quantizer.grid) * step - values).square().mean()
                for step in (mse_scale(values, quantizer.grid), quantizer.scale.detach())
            )
            # The sample has each batch's extremes twice: an equally good scale may win.
            assert chosen <= 1.05 * best
            assert chosen >= best * (1 - 1e-5)


def test_probabilities_by_mse_minimise_the_error_of_the_weighted_values() -> None:
    settings = quantization(4, 4, activation_range="mse", skewed_grids=False)
    student = student_of(settings)
    seen = activations(student)
    observe(student, settings, batch_size=6)
    for block in ("blocks.0", "blocks.1"):
        quantizer = student.get_submodule(f"{block}.attn.probability_quantizer")
        probabilities = seen[f"{block}.attn.probability_quantizer"].double().numpy()
        values = seen[f"{block}.attn.value_quantizer"].double().numpy()
        errors = {}
        for reach in (2.0 ** (-step / 3) for step in range(16)):
            scale = reach / 15
            coded = np.clip(np.round(probabilities / scale), 0, 15) * scale
            errors[scale] = np.square((coded - probabilities) @ values).sum()
        best = min(errors, key=errors.__getitem__)
        assert float(quantizer.scale.detach()) == pytest.approx(best)


def test_search_over_batches_is_the_sum_of_their_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(4, 2, 5, 5, generator=generator)).softmax(-1)
    values = torch.randn(4, 2, 5, 3, generator=generator)
    whole, parts = (ProbabilityScaleSearch(Grid.unsigned(3)) for _ in range(2))
    whole.update(probabilities, values)
    for index in range(4):
        parts.update(probabilities[index : index + 1], values[index : index + 1])
    assert parts.scale() == whole.scale()
    torch.testing.assert_close(parts._errors, whole._errors, rtol=1e-5, atol=0.0)


def test_diffuse_attention_is_not_sent_to_zero() -> None:
    """196 equal probabilities and a single peaked row: covering the peak would lose all others."""
    probabilities = torch.full((1, 1, 40, 196), 1 / 196)
    probabilities[0, 0, 0] = 0.0
    probabilities[0, 0, 0, 7] = 1.0
    values = 1 + torch.randn(1, 1, 196, 8, generator=torch.Generator().manual_seed(0))
    search = ProbabilityScaleSearch(Grid.unsigned(4), queries_per_batch=40)
    search.update(probabilities, values)
    assert round(1 / 196 / search.scale()) >= 1
    assert search.scale() in [reach / 15 for reach in probability_search.CANDIDATES]


def test_observing_leaves_nothing_behind() -> None:
    settings = quantization()
    student = student_of(settings)
    observe(student, settings)
    for quantizer in quantizers_of(student):
        assert quantizer.enabled
        assert quantizer.observer is None
    assert not any(
        module._forward_pre_hooks or module._forward_hooks for module in student.modules()
    )


def test_nothing_is_left_behind_after_an_error_either() -> None:
    settings = quantization()
    student = student_of(settings)

    def stop(_steps: int, _note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observe_activations(student, settings, IMAGES, PIXEL_SCALE, batch_size=4, advance=stop)
    assert all(q.enabled and q.observer is None for q in quantizers_of(student))
    assert not any(module._forward_pre_hooks for module in student.modules())


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_eight_bits_are_close_and_fewer_are_worse(method: str) -> None:
    with torch.no_grad():
        exact = expose_attention(tiny_vit())(INPUT)
        errors = []
        for bits in (8, 6, 4, 2):
            settings = quantization(bits, bits, activation_range=method, weight_range=method)
            student = student_of(settings)
            scale_weights(student, settings)
            observe(student, settings)
            errors.append(float((student(INPUT) - exact).square().mean() / exact.var()))
    assert errors == sorted(errors)
    assert errors[0] < 0.02
