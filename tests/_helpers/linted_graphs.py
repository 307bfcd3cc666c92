"""Graphs for linters, hand-made in onnx.parser's language, good but for what a case changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HALF, FLOAT = "float16[N,32]", "float[N,32]"
INT4 = onnx.TensorProto.INT4


@dataclass(frozen=True)
class Int4:
    """Codes of 4 bits."""

    codes: np.ndarray


def constants(number: type = np.float16) -> dict[str, object]:
    """Scale and zero point of an activation, codes, scales and zero points of a weight."""
    return {
        "s": number(0.05),
        "z": np.int8(0),
        "w": np.arange(-512, 512, dtype=np.int16).reshape(32, 32).astype(np.int8),
        "ws": np.full(32, 0.01, number),
        "wz": np.zeros(32, np.int8),
    }


ACTIVATION = ["xq = QuantizeLinear(x, s, z)", "xd = DequantizeLinear(xq, s, z)"]
WEIGHT = ["wd = DequantizeLinear<axis = 1>(w, ws, wz)"]
PRODUCT = ["y = MatMul(xd, wd)"]
LINEAR = [*ACTIVATION, *WEIGHT, *PRODUCT]


@dataclass(frozen=True)
class Bad:
    """A graph that breaks one rule.

    Attributes:
        rule: The rule.
        node: Operator and output of the node that must be named.
        lines: The graph, in onnx.parser's language.
        others: Constants beside and instead of the usual ones.
        x: Type and shape of the input.
        target: Whose rules.
        opset: Version of the operators.
        number: Type of the usual scales.
        apart_from: Other errors that this graph cannot help but have.
        domain: Where operators come from that are not ONNX's.
    """

    rule: str
    node: str
    lines: list[str] = field(default_factory=lambda: LINEAR)
    others: Mapping[str, object] = field(default_factory=dict)
    x: str = HALF
    target: str = "trt"
    opset: int = 20
    number: type = np.float16
    apart_from: tuple[str, ...] = ()
    domain: str = ""


def half(shape: str) -> str:
    return f"float16[{shape}]"


ATTENTION = [
    "qq = QuantizeLinear(x, s, z)",
    "qd = DequantizeLinear(qq, s, z)",
    "t = Transpose<perm = [0, 2, 1]>(x)",
    "kq = QuantizeLinear(t, s, z)",
    "kd = DequantizeLinear(kq, s, z)",
    "scores = MatMul(qd, kd)",
    "p = Softmax(scores)",
    "pq = QuantizeLinear(p, s, z)",
    "pd = DequantizeLinear(pq, s, z)",
    "y = MatMul(pd, qd)",
]


def tensor(name: str, value: object) -> onnx.TensorProto:
    if isinstance(value, Int4):
        return helper.make_tensor(name, INT4, value.codes.shape, value.codes.reshape(-1))
    return numpy_helper.from_array(np.asarray(value), name)


def write(path: Path, case: Bad) -> Path:
    """The graph of a case as a file; its output's type is left to be inferred."""
    domains = f'"" : {case.opset}' + (f', "{case.domain}" : 1' if case.domain else "")
    body = "\n".join(case.lines)
    model = parser.parse_model(
        f"<ir_version: 10, opset_import: [{domains}]>\nbad ({case.x} x) => (float y) {{\n{body}\n}}"
    )
    model.graph.output[0].type.Clear()
    used = {name for node in model.graph.node for name in node.input}
    values = {**constants(case.number), **case.others}
    model.graph.initializer.extend(
        tensor(name, value) for name, value in values.items() if name in used
    )
    onnx.save(model, path)
    return path
