from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mimiq_calib.conversion.layers import QuantizedLinear
from mimiq_calib.distillation.parametrization import learn_scales_in_logarithm
from mimiq_calib.quantizers.observer import ValueSample
from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_calib.quantizers.range_search import SMALLEST_SCALE
from mimiq_runtime.grid import Grid
from mimiq_runtime.quantization_table import TensorKind


def weight_quantizer(bits: int = 4, scales: tuple[float, ...] = (0.1, 1.0, 10.0)) -> Quantizer:
    quantizer = Quantizer(
        "layer.weight_quantizer", TensorKind.WEIGHT, bits, Grid.signed(bits), channels=len(scales)
    )
    quantizer.scale.data = torch.tensor(scales)
    return quantizer


def activation_quantizer(bits: int = 4, scale: float = 0.25, *, signed: bool = True) -> Quantizer:
    grid = Grid.signed(bits) if signed else Grid.unsigned(bits)
    quantizer = Quantizer("layer.input_quantizer", TensorKind.ACTIVATION, bits, grid)
    quantizer.scale.data = torch.tensor(scale)
    return quantizer


def values(*shape: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_int8_within_the_grid(bits: int, signed: bool) -> None:
    quantizer = activation_quantizer(bits, 0.01, signed=signed)
    x = values(2, 7, 5)
    x[0, 0, :2] = torch.tensor([1e30, -1e30])
    codes = quantizer.codes(x)
    assert codes.dtype == torch.int8
    assert codes.shape == x.shape
    stored = quantizer.grid.stored
    assert (int(codes.min()), int(codes.max())) == (stored.qmin, stored.qmax)
    # What the forward pass computes is what the integers stand for.
    integers = codes.float() - quantizer.grid.offset
    torch.testing.assert_close(quantizer(x), integers * 0.01, rtol=0.0, atol=0.0)


def test_one_scale_a_channel_on_axis_0() -> None:
    quantizer, weight = weight_quantizer(), values(3, 4, 2, 2)
    expected = np.stack(
        [
            np.clip(np.round(row / step), -8, 7)
            for row, step in zip(weight.numpy(), np.float32([0.1, 1.0, 10.0]), strict=True)
        ]
    )
    np.testing.assert_array_equal(quantizer.codes(weight).numpy(), expected)
    steps = np.float32([0.1, 1.0, 10.0]).reshape(3, 1, 1, 1)
    np.testing.assert_array_equal(quantizer(weight).detach().numpy(), expected * steps)


def test_description() -> None:
    row = weight_quantizer(3).describe()
    assert row.model_dump() == {
        "name": "layer.weight_quantizer",
        "kind": "weight",
        "bits": 3,
        "qmin": -4,
        "qmax": 3,
        "axis": 0,
        "scale": pytest.approx([0.1, 1.0, 10.0]),
        "zero_point": 0,
        "container": "int8",
    }
    row = activation_quantizer(8, 0.25, signed=False).describe()
    assert (row.axis, row.scale, row.qmin, row.qmax, row.bits) == (None, 0.25, 0, 255, 8)
    assert row.zero_point == -128


def test_disabled_passes_the_tensor_itself() -> None:
    quantizer, x = activation_quantizer(2, 1.0), values(3, 3)
    assert not torch.equal(quantizer(x), x)
    quantizer.enabled = False
    assert quantizer(x) is x


def test_observed_passes_and_is_remembered() -> None:
    quantizer = activation_quantizer(2, 1.0)
    quantizer.observer = ValueSample()
    first, second = values(2, 3), 10 * values(4, 3)
    assert quantizer(first) is first
    quantizer(second)
    seen = quantizer.observer.values()
    assert set(seen.flatten().tolist()) == {*first.flatten().tolist(), *second.flatten().tolist()}


def test_disabled_is_not_observed() -> None:
    quantizer = activation_quantizer()
    quantizer.observer, quantizer.enabled = ValueSample(), False
    quantizer(values(3))
    with pytest.raises(RuntimeError, match="no batch"):
        quantizer.observer.values()


@pytest.mark.parametrize("channels", [None, 3])
def test_gradient_scale_counts_what_shares_a_step(channels: int | None) -> None:
    """LSQ, section 2.2: features of one sample, or weights of one channel; not the batch."""
    grid = Grid.signed(4)
    kind = TensorKind.ACTIVATION if channels is None else TensorKind.WEIGHT
    quantizer = Quantizer("q", kind, 4, grid, channels=channels)
    x = torch.full((3, 5, 2), 100.0)  # all saturated: the raw gradient is qmax each
    quantizer(x).sum().backward()
    assert quantizer.scale.grad is not None
    share = 10 if channels else 30
    expected = torch.full_like(quantizer.scale, share * 7.0) / (10 * 7) ** 0.5
    torch.testing.assert_close(quantizer.scale.grad, expected)


def test_windows_of_one_image_share_a_step() -> None:
    """Two images of three windows: the step's factor is that of all features of an image."""
    quantizer = Quantizer("q", TensorKind.ACTIVATION, 4, Grid.signed(4))
    quantizer.windows = 3
    x = torch.full((6, 5, 2), 100.0)
    quantizer(x).sum().backward()
    assert quantizer.scale.grad is not None
    assert float(quantizer.scale.grad) == pytest.approx(60 * 7.0 / (30 * 7) ** 0.5)


class TestValueSample:
    def test_keeps_the_extremes_of_every_batch(self) -> None:
        sample = ValueSample(per_batch=10)
        for seed in range(3):
            batch = torch.randn(20, 50, generator=torch.Generator().manual_seed(seed))
            batch[7, 13], batch[11, 17] = 50.0 + seed, -60.0 - seed
            sample.update(batch)
        seen = sample.values()
        assert {50.0, 51.0, 52.0, -60.0, -61.0, -62.0} <= set(seen.flatten().tolist())
        assert seen.shape[0] == 1
        assert seen.shape[1] <= 3 * (2 * 10 + 2), "memory is bounded"

    def test_every_batch_counts_the_same(self) -> None:
        sample = ValueSample(per_batch=8)
        sample.update(torch.zeros(800))
        sample.update(torch.ones(80))
        seen = sample.values()[0]
        assert int((seen == 0).sum()) == int((seen == 1).sum())

    def test_is_in_single_precision_without_gradient(self) -> None:
        sample = ValueSample()
        sample.update(torch.ones(4, dtype=torch.bfloat16, requires_grad=True))
        assert sample.values().dtype == torch.float32
        assert not sample.values().requires_grad


class TestLogarithm:
    def student(self) -> nn.ModuleDict:
        return nn.ModuleDict({"w": weight_quantizer(), "x": activation_quantizer()})

    def test_scales_are_the_same_inside(self) -> None:
        student = self.student()
        with learn_scales_in_logarithm(student) as logarithms:
            torch.testing.assert_close(student["w"].scale.data, torch.tensor([0.1, 1.0, 10.0]))
            assert [tuple(log.shape) for log in logarithms] == [(3,), ()]
            torch.testing.assert_close(logarithms[0].data, torch.tensor([0.1, 1.0, 10.0]).log())

    def test_step_is_in_proportion_to_the_scale(self) -> None:
        student = self.student()
        with learn_scales_in_logarithm(student) as logarithms, torch.no_grad():
            for logarithm in logarithms:
                logarithm += 0.1
        expected = np.exp(0.1) * np.array([0.1, 1.0, 10.0])
        np.testing.assert_allclose(student["w"].scale.detach(), expected, rtol=1e-6)

    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
    def test_scales_stay_positive_whatever_the_steps(
        self, optimizer: type[torch.optim.Optimizer]
    ) -> None:
        student, x = self.student(), values(3, 6)
        with learn_scales_in_logarithm(student) as logarithms:
            training = optimizer(logarithms, lr=300.0)  # type: ignore[call-arg]
            for _ in range(5):
                training.zero_grad()
                torch.stack([logarithm.sum() for logarithm in logarithms]).sum().backward()
                training.step()
                for name in student:
                    assert (student[name].scale >= SMALLEST_SCALE).all()
                    assert torch.isfinite(student[name](x)).all()
            # It did come to the end: exp(logarithm) alone would be 0 in single precision.
            assert min(float(log.detach().min()) for log in logarithms) < -120
        for name in student:
            assert (student[name].scale >= SMALLEST_SCALE).all()

    def test_plain_parameters_afterwards(self) -> None:
        student = self.student()
        before = {name: value.clone() for name, value in student.state_dict().items()}
        with learn_scales_in_logarithm(student):
            assert "w.parametrizations.scale.original" in student.state_dict()
        after = student.state_dict()
        assert list(after) == list(before) == ["w.scale", "x.scale"]
        for name, value in before.items():
            torch.testing.assert_close(after[name], value)
        assert all(isinstance(student[name].scale, nn.Parameter) for name in student)
        assert all(type(student[name]) is Quantizer for name in student)

    def test_plain_parameters_even_when_the_block_raises(self) -> None:
        student = self.student()
        with pytest.raises(KeyboardInterrupt), learn_scales_in_logarithm(student):
            raise KeyboardInterrupt
        assert list(student.state_dict()) == ["w.scale", "x.scale"]
        student["w"](values(3, 2)).sum().backward()

    def test_twice_in_a_row(self) -> None:
        student = self.student()
        for _ in range(2):
            with learn_scales_in_logarithm(student) as logarithms:
                assert len(logarithms) == 2
        torch.testing.assert_close(student["w"].scale.data, torch.tensor([0.1, 1.0, 10.0]))


class TestRecomputed:
    """Weights of the preset ``faithful``: min-max of the weight at every use."""

    def quantizer(self) -> Quantizer:
        return Quantizer(
            "layer.weight_quantizer",
            TensorKind.WEIGHT,
            4,
            Grid.signed(4),
            channels=3,
            recomputed=True,
        )

    def expected(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = np.float32(2) * np.abs(weight).reshape(3, -1).max(axis=1) / np.float32(15)
        column = steps.reshape(3, 1)
        return steps, np.clip(np.round(weight / column), -8, 7) * column

    def test_follows_the_weight(self) -> None:
        quantizer, weight = self.quantizer(), values(3, 40)
        for factor in (1.0, 5.0):
            steps, quantized = self.expected((weight * factor).numpy())
            given = quantizer(weight * factor)
            np.testing.assert_allclose(quantizer.scale.detach().numpy(), steps, rtol=1e-6)
            np.testing.assert_allclose(given.detach().numpy(), quantized, rtol=1e-5, atol=1e-6)

    def test_every_gradient_passes(self) -> None:
        quantizer, weight = self.quantizer(), values(3, 40).requires_grad_(True)
        torch.autograd.backward((quantizer(weight) * 3).sum())
        assert weight.grad is not None
        assert weight.grad.tolist() == torch.full((3, 40), 3.0).tolist()

    def test_is_not_learned(self) -> None:
        layer = nn.Linear(40, 3)
        input_quantizer = activation_quantizer()
        student = QuantizedLinear(layer, input_quantizer, self.quantizer())
        with learn_scales_in_logarithm(student) as logarithms:
            assert len(logarithms) == 1, "the input's"
            assert not student.weight_quantizer.scale.requires_grad
            student.weight.data.mul_(7)
        steps, _ = self.expected(student.weight.detach().numpy())
        np.testing.assert_allclose(
            student.weight_quantizer.scale.detach().numpy(), steps, rtol=1e-6
        )
