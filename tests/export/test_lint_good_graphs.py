"""What engines take, rules leave alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from _helpers.linted_graphs import (
    ACTIVATION,
    ATTENTION,
    FLOAT,
    HALF,
    LINEAR,
    PRODUCT,
    WEIGHT,
    Bad,
    Int4,
    half,
    write,
)

from mimiq_export.lint.linters import LINTERS, lint_file

if TYPE_CHECKING:
    from pathlib import Path


def rules(path: Path, case: Bad) -> set[str]:
    return {finding.rule for finding in lint_file(write(path / "graph.onnx", case), case.target)}


@pytest.mark.parametrize("target", LINTERS)
def test_a_good_linear_layer_has_no_finding(target: str, tmp_path: Path) -> None:
    number, x = (np.float16, HALF) if target == "trt" else (np.float32, FLOAT)
    good = Bad("", "", x=x, number=number)
    findings = lint_file(write(tmp_path / "good.onnx", good), target)
    assert [found.rule for found in findings] == (["unfused-pairs"] if target == "ort-cuda" else [])


@pytest.mark.parametrize("heads", ["N,49,32", "N,197,64"])
def test_a_good_attention_has_no_finding(heads: str, tmp_path: Path) -> None:
    good = Bad("", "", ATTENTION, x=half(heads))
    assert lint_file(write(tmp_path / "good.onnx", good), "trt") == []


GOOD = {
    "opset-21": Bad("", "", opset=21),
    "opset-23": Bad("", "", opset=23),
    "output-dtype": Bad(
        "",
        "",
        [
            "xq = QuantizeLinear<output_dtype = 3>(x, s)",
            "xd = DequantizeLinear(xq, s)",
            "wd = DequantizeLinear<axis = 1>(w, ws)",
            *PRODUCT,
        ],
        opset=21,
    ),
    # The parser goes by the name, whatever the domain.
    "onnx-runtimes-domain": Bad(
        "",
        "",
        [line.replace("= Q", "= com.microsoft.Q", 1) for line in LINEAR[:2]] + LINEAR[2:],
        domain="com.microsoft",
    ),
    "gelu-of-onnx-runtime": Bad(
        "",
        "",
        [*LINEAR[:3], "m = MatMul(xd, wd)", "y = com.microsoft.Gelu(m)"],
        domain="com.microsoft",
    ),
    "plugin": Bad(
        "", "", [*LINEAR[:3], "m = MatMul(xd, wd)", "y = trt.plugins.Own(m)"], domain="trt.plugins"
    ),
    "zero-behind-a-cast": Bad(
        "",
        "",
        ["zf = Constant<value_float = 0.4>()", "zi = Cast<to = 3>(zf)"]
        + [line.replace("s, z)", "s, zi)") for line in LINEAR],
    ),
    "layer-norm": Bad("", "", ["y = LayerNormalization(x, g)"], {"g": np.ones(32, np.float16)}),
    "square-in-single": Bad("", "", ["y = Mul(x, x)"], x=FLOAT),
    "product-of-two-halves": Bad("", "", ["n = Neg(x)", "y = Mul(x, n)"]),
    "gemm": Bad(
        "",
        "",
        [*ACTIVATION, "wd = DequantizeLinear<axis = 0>(w, ws, wz)", "y = Gemm<transB = 1>(xd, wd)"],
    ),
    "transposed-convolution": Bad(
        "",
        "",
        [*ACTIVATION, *WEIGHT, "y = ConvTranspose(xd, wd)"],
        {"w": np.zeros((32, 32, 2, 2), np.int8)},
        x=half("N,32,8,8"),
    ),
    "blocks": Bad(
        "",
        "",
        ["wd = DequantizeLinear<axis = 0, block_size = 128>(w, ws)", "y = MatMul(x, wd)"],
        {"w": Int4(np.zeros((192, 32), np.int8)), "ws": np.ones((2, 32), np.float16)},
        x=half("N,192"),
        opset=21,
    ),
    "sum-that-is-no-residual": Bad(
        "",
        "",
        [
            "left = Neg(x)",
            "right = Relu(x)",
            "sum = Add(left, right)",
            "xq = QuantizeLinear(sum, s, z)",
            "xd = DequantizeLinear(xq, s, z)",
            *WEIGHT,
            "m = MatMul(xd, wd)",
            "other = Add(xd, m2)",
            "y = Add(m, other)",
        ],
        {"m2": np.ones(32, np.float16)},
    ),
    # As in Swin V2: the stream itself stays in floating point, and Linears read it.
    "stream-as-the-input-of-linears": Bad(
        "",
        "",
        [
            "n = Neg(x)",
            "stream = Add(x, n)",
            "xq = QuantizeLinear(stream, s, z)",
            "xd = DequantizeLinear(xq, s, z)",
            *WEIGHT,
            "m = MatMul(xd, wd)",
            "y = Add(stream, m)",
        ],
    ),
    "pixels-that-are-cast-at-once": Bad("", "", ["y = Cast<to = 1>(x)"], x="uint8[N,32]"),
}


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD.keys())
def test_what_tensorrt_takes_has_no_finding(case: Bad, tmp_path: Path) -> None:
    assert rules(tmp_path, case) == set()


@pytest.mark.parametrize(
    ("left_out", "product"),
    [
        (("qq = ", "qd = ", "qd"), "scores"),
        (("kq = ", "kd = ", "kd"), "scores"),
        (("pq = ", "pd = ", "pd"), "y"),
        (("vq = ", "vd = ", "vd"), "y"),
    ],
    ids=["queries", "keys", "probabilities", "values"],
)
def test_the_product_with_one_quantized_operand_is_named(
    left_out: tuple[str, str, str], product: str, tmp_path: Path
) -> None:
    lines = [line.replace("pd, qd", "pd, vd") for line in ATTENTION]
    lines[5:5] = ["vq = QuantizeLinear(x, s, z)", "vd = DequantizeLinear(vq, s, z)"]
    operand = {"qd": "x", "kd": "t", "pd": "p", "vd": "x"}[left_out[2]]
    bare = [
        line.replace(f"{left_out[2]})", f"{operand})").replace(f"({left_out[2]},", f"({operand},")
        for line in lines
        if not line.startswith(left_out[:2])
    ]
    case = Bad("", "", bare, x=half("N,49,32"))
    findings = lint_file(write(tmp_path / "attention.onnx", case), "trt")
    assert {(found.rule, found.node) for found in findings} == {
        ("one-operand-quantized", f"MatMul that makes {product}"),
        ("attention-in-part", "Softmax that makes p"),
    }
