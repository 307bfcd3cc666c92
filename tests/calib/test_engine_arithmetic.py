"""The student in the arithmetic of an integer engine, against the engine and against numpy."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir
import pytest
import torch
from _helpers.onnx_graphs import Array, constant, initializer, model_of, run_ort
from _helpers.processor import has_avx512
from _helpers.tiny_students import images, tiny_student
from torch import nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.layers import QuantizedConv2d, QuantizedLinear
from mimiq_calib.engine_arithmetic.convert import in_engine_arithmetic
from mimiq_calib.engine_arithmetic.fused_multiply_add import fused_multiply_add
from mimiq_calib.engine_arithmetic.gelu import KernelGelu
from mimiq_calib.engine_arithmetic.integer_products import (
    Codes,
    IntegerConv2d,
    IntegerLinear,
    Requantize,
    Rescale,
)
from mimiq_calib.engine_arithmetic.layer_norm import KernelLayerNorm
from mimiq_calib.engine_arithmetic.softmax import KernelSoftmax
from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_runtime.grid import Grid
from mimiq_runtime.quantization_table import TensorKind

RANDOM = np.random.default_rng(11)


needs_avx512 = pytest.mark.skipif(
    not has_avx512(), reason="the kernels that are imitated need a processor with AVX-512"
)


def run_kernel(op_type: str, x: np.ndarray, *constants: np.ndarray, **attributes: object) -> Array:
    """One operator in ONNX Runtime."""
    image = ir.val("x", ir.DataType.FLOAT, x.shape)
    output = ir.val("y", ir.DataType.FLOAT, x.shape)
    inputs = [image, *(constant(f"c{i}", value) for i, value in enumerate(constants))]
    node = ir.node(op_type, inputs, attributes, outputs=[output], name="n")
    return run_ort(model_of([node], [image], [output]), {"x": x})[0]


def test_a_fused_multiply_add_rounds_once() -> None:
    # (1 + 2^-12)^2 - 1 = 2^-11 + 2^-24; rounding the product first loses the last term.
    x = torch.tensor(1.0 + 2.0**-12)
    assert fused_multiply_add(x, x, -1.0).item() == 2.0**-11 + 2.0**-24
    assert (x * x - 1.0).item() == 2.0**-11


@needs_avx512
@pytest.mark.parametrize("channels", [8, 48, 192, 768])
def test_layer_norm_gives_the_bits_of_the_kernel(channels: int) -> None:
    x = RANDOM.normal(size=(300, channels)) * 3 + RANDOM.normal(size=channels) * 4
    x = x.astype(np.float32)
    norm = nn.LayerNorm(channels, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    weight, bias = norm.weight.detach(), norm.bias.detach()
    expected = run_kernel("LayerNormalization", x, weight.numpy(), bias.numpy(), epsilon=1e-6)
    with torch.no_grad():
        np.testing.assert_array_equal(KernelLayerNorm(norm)(torch.from_numpy(x)), expected)


@pytest.mark.parametrize("channels", [1, 7, 12, 192])
def test_layer_norm_is_layer_norm(channels: int) -> None:
    x = torch.randn(50, channels)
    norm = nn.LayerNorm(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    with torch.no_grad():
        double = norm.double()(x.double()).float()
        actual = KernelLayerNorm(norm.float())(x)
    torch.testing.assert_close(actual, double, rtol=2e-6, atol=2e-6)


def gelu_inputs() -> np.ndarray:
    edges = [0.0, -0.0, 5.5, -5.5, 30.0, -30.0, np.inf, 1e-30, 1.3037, -1.3037, 5.55, -5.55]
    values = np.concatenate([RANDOM.normal(size=4084) * 2, edges])
    return values.astype(np.float32).reshape(-1, 16)


@needs_avx512
def test_gelu_gives_the_bits_of_the_kernel() -> None:
    x = gelu_inputs()
    actual = KernelGelu()(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(actual, run_kernel("Gelu", x))


def test_gelu_is_gelu() -> None:
    x = torch.from_numpy(gelu_inputs())
    expected = nn.functional.gelu(x.double()).float()
    torch.testing.assert_close(KernelGelu()(x), expected, rtol=0, atol=1e-6)


def softmax_inputs(keys: int) -> np.ndarray:
    x = RANDOM.normal(size=(500, keys)) * 5
    x[0, 0], x[1, 1:], x[2] = 1e4, -200.0, 0.0  # one that takes all, a mask, and no difference
    return x.astype(np.float32)


# Tokens of a ViT, of a distilled one and of a window; whole registers, and less than one.
@needs_avx512
@pytest.mark.parametrize("keys", [1, 7, 16, 49, 96, 197, 198, 785])
def test_softmax_gives_the_bits_of_the_kernel(keys: int) -> None:
    x = softmax_inputs(max(keys, 2))[:, :keys]
    actual = KernelSoftmax()(torch.from_numpy(x)).numpy()
    expected = run_kernel("Softmax", np.ascontiguousarray(x), axis=-1)
    np.testing.assert_array_equal(actual, expected)


def test_softmax_is_softmax() -> None:
    x = torch.from_numpy(softmax_inputs(197))
    expected = x.double().softmax(dim=-1).float()
    # The distance from the maximum, up to 40 here, is rounded to single precision: 40 * 2^-24.
    torch.testing.assert_close(KernelSoftmax()(x), expected, rtol=3e-6, atol=1e-37)


def quantizer(grid: Grid, scale: float | list[float], kind: TensorKind) -> Quantizer:
    channels = len(scale) if isinstance(scale, list) else None
    made = Quantizer("q", kind, 8, grid, channels=channels)
    made.scale.data = torch.tensor(scale)
    return made


@pytest.mark.parametrize("grid", [Grid(-8, 7), Grid(0, 255)], ids=["4-bit", "8-bit-unsigned"])
def test_a_linear_is_exact_integer_arithmetic(grid: Grid) -> None:
    """Also where a sum leaves the numbers that are whole in single precision."""
    linear = nn.Linear(600, 3)
    layer = QuantizedLinear(
        linear,
        quantizer(grid, 0.013, TensorKind.ACTIVATION),
        quantizer(Grid(-128, 127), [0.0003, 0.0002, 0.0004], TensorKind.WEIGHT),
    )
    x = 4 * torch.rand(20, 600)
    with torch.no_grad():
        actual = IntegerLinear(layer)(x).numpy()
    inputs = np.clip(np.rint(x.numpy() / np.float32(0.013)), grid.qmin, grid.qmax)
    scales = layer.weight_quantizer.scale.detach().numpy()
    weight = np.clip(np.rint(linear.weight.detach().numpy() / scales[:, None]), -128, 127)
    sums = inputs.astype(np.int64) @ weight.T.astype(np.int64)
    expected = sums.astype(np.float32) * (np.float32(0.013) * scales)
    np.testing.assert_array_equal(actual, expected + linear.bias.detach().numpy())


def test_sums_become_codes_as_in_the_engine() -> None:
    """By one multiplication: a division of rescaled sums gives other codes at ties."""
    left = RANDOM.integers(-128, 128, size=(300, 197)).astype(np.int8)
    right = RANDOM.integers(-128, 128, size=(197, 64)).astype(np.int8)
    scales = {"a": 0.01, "b": 0.01, "y": 0.1}  # ties at each 1000 m + 500
    image = ir.val("x", ir.DataType.INT8, left.shape)
    output = ir.val("codes", ir.DataType.INT8, (300, 64))
    a, b, y = (constant(name, scale) for name, scale in scales.items())
    zero = initializer("zero", np.array(0, np.int8))
    inputs = [image, a, zero, initializer("right", right), b, zero, y, zero]
    node = ir.node("QLinearMatMul", inputs, outputs=[output], name="n")
    expected = run_ort(model_of([node], [image], [output]), {"x": left})[0]
    codes = Codes(quantizer(Grid(-128, 127), scales["y"], TensorKind.ACTIVATION))
    rescale = Rescale(torch.tensor(scales["a"]), torch.tensor(scales["b"]))
    sums = torch.from_numpy(left.astype(np.int64) @ right.astype(np.int64))
    with torch.no_grad():
        np.testing.assert_array_equal(Requantize(codes, rescale)(sums).numpy(), expected)
        assert (codes(rescale(sums)).numpy() != expected).any()


def test_a_convolution_is_exact_integer_arithmetic() -> None:
    convolution = nn.Conv2d(2, 3, 2, stride=2, padding=1)
    inputs = quantizer(Grid(-128, 127), 0.02, TensorKind.ACTIVATION)
    weights = quantizer(Grid(-8, 7), [0.05, 0.06, 0.07], TensorKind.WEIGHT)
    layer = QuantizedConv2d(convolution, inputs, weights)
    x = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        actual = IntegerConv2d(layer, inputs)(x).numpy()
    codes = np.pad(inputs.codes(x).numpy().astype(np.int64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    kernel = weights.codes(convolution.weight).numpy().astype(np.int64)
    sums = np.zeros((2, 3, 3, 3), dtype=np.int64)
    for row, column in np.ndindex(3, 3):
        patch = codes[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        sums[:, :, row, column] = np.einsum("bcij,ocij->bo", patch, kernel)
    scale = np.float32(0.02) * weights.scale.detach().numpy()
    bias = convolution.bias.detach().numpy()
    expected = sums.astype(np.float32) * scale[:, None, None] + bias[:, None, None]
    np.testing.assert_array_equal(actual, expected)


def test_the_copy_means_the_same_and_leaves_the_student_alone() -> None:
    student = tiny_student(8, 8)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    copied = in_engine_arithmetic(student)
    with torch.no_grad():
        expected, actual = student(images(5)), copied(images(5))
    # At 8 bits a flipped code is a small step: the copy stays close to the student, which is
    # itself far from the teacher by comparison.
    assert (expected - actual).abs().max() < 0.02 * expected.abs().max()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    kinds = {type(module).__name__ for module in copied.modules()}
    assert not kinds & {
        *("QuantizedLinear", "QuantizedConv2d", "LayerNorm", "GELU", "Softmax", "Quantizer")
    }


def test_quantizers_that_are_switched_off_stay_off() -> None:
    student = copy.deepcopy(tiny_student(4, 4))
    for module in student.modules():
        if isinstance(module, Quantizer):
            module.enabled = False
    copied = in_engine_arithmetic(student)
    with torch.no_grad():
        torch.testing.assert_close(copied(images(3)), student(images(3)), rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, ExposedAttention) for module in copied.modules())
