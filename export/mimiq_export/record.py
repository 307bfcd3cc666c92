"""``export.json``: what an ONNX file holds, read off its graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
from pydantic import Field

from mimiq_export.lint.finding import Finding
from mimiq_export.passes.node_marks import marked_grid, marked_quantizer
from mimiq_runtime.input_form import InputForm
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.quantization_table import TensorKind
from mimiq_runtime.schema import Schema
from mimiq_runtime.scope import Scope

__all__ = [
    "ExportRecord",
    "ExportedQuantizer",
    "FloatingPointProduct",
    "count_operators",
    "list_floating_point_products",
    "list_quantizers",
]

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators that engines run in integers when both operands are dequantized."""


class ExportedQuantizer(Schema):
    """What became of one quantizer.

    Attributes:
        quantizer: Its dotted name in the torch model.
        kind: Weight or activation.
        qmin: The smallest code that can occur.
        qmax: The largest code that can occur.
        axis: The axis of the tensor in the ONNX file with one scale a slice, or None.
        code_min: The smallest code that does occur in a weight; None for an activation.
        code_max: The largest code that does occur in a weight; None for an activation.
        stored_as: ONNX's type of the stored codes, such as ``int8``.
        used_by: Names of the nodes that take the dequantized tensor.
    """

    quantizer: str
    kind: TensorKind
    qmin: int
    qmax: int
    axis: int | None
    code_min: int | None = None
    code_max: int | None = None
    stored_as: str = "int8"
    used_by: list[str]


class FloatingPointProduct(Schema):
    """A product that is computed in floating point.

    Attributes:
        node: Its name in the ONNX file.
        op_type: Conv, Gemm or MatMul.
        reason: Why, in one sentence.
    """

    node: str
    op_type: str
    reason: str


class ExportRecord(Schema):
    """The content of ``export.json``.

    Attributes:
        target: Name of the target.
        scope: Which products are quantized; None for the full-precision model.
        opset: Version of the ONNX operators.
        input: The form in which the model takes its images.
        onnx: Digest and size of the ONNX file.
        external_data: Digest and size of each file that holds weights beside the ONNX file, by
            name; empty unless the model is larger than 2 GB.
        operators: How often each operator occurs.
        quantized: One row a quantizer, in the order of the graph.
        not_quantized: The products that stay in floating point.
        lint: What the target's linter says about the file.
    """

    target: str
    scope: Scope | None = None
    opset: int
    input: InputForm = InputForm.NORMALISED
    onnx: FileRecord
    external_data: dict[str, FileRecord]
    operators: dict[str, int]
    quantized: list[ExportedQuantizer]
    not_quantized: list[FloatingPointProduct]
    lint: list[Finding] = Field(default_factory=list)


def count_operators(model: ir.Model) -> dict[str, int]:
    """How often each operator occurs, by name."""
    counts = Counter(node.op_type for node in model.graph)
    return dict(sorted(counts.items()))


def list_quantizers(model: ir.Model) -> list[ExportedQuantizer]:
    """What became of each quantizer of an exported model."""
    return [_describe(node) for node in model.graph if marked_quantizer(node) is not None]


def list_floating_point_products(model: ir.Model) -> list[FloatingPointProduct]:
    """Each product with an operand that is not dequantized."""
    found = []
    for node in model.graph:
        if node.domain == "" and node.op_type in PRODUCTS:
            reasons = [reason for value in node.inputs[:2] if (reason := _reason(value))]
            if reasons:
                found.append(
                    FloatingPointProduct(
                        node=node.name or "",
                        op_type=node.op_type,
                        reason=f"{' and '.join(reasons)}.",
                    )
                )
    return found


def _describe(node: ir.Node) -> ExportedQuantizer:
    codes = _stored_codes(node)
    constant = codes.const_value if codes is not None and codes.is_initializer() else None
    array = None if constant is None else np.asarray(constant.numpy())
    dtype = None if codes is None else codes.dtype
    grid = marked_grid(node)
    return ExportedQuantizer(
        quantizer=marked_quantizer(node) or "",
        kind=TensorKind.ACTIVATION if array is None else TensorKind.WEIGHT,
        qmin=grid.qmin,
        qmax=grid.qmax,
        axis=node.attributes["axis"].as_int() if "axis" in node.attributes else None,
        code_min=None if array is None else int(array.min()),
        code_max=None if array is None else int(array.max()),
        stored_as=(dtype or ir.DataType.INT8).name.lower(),
        used_by=[use.node.name or "" for use in node.outputs[0].uses()],
    )


def _stored_codes(node: ir.Node) -> ir.Value | None:
    """The codes that a DequantizeLinear takes, before the Cast that unpacks them."""
    codes = node.inputs[0]
    producer = None if codes is None else codes.producer()
    if producer is not None and producer.op_type == "Cast":
        return producer.inputs[0]
    return codes


def _reason(operand: ir.Value | None) -> str | None:
    """Why this operand makes the product a floating-point one; None when it does not."""
    if operand is None:
        return None
    producer = operand.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return None
    if operand.is_graph_input():
        return "the image input stays in floating point"
    if producer is not None and producer.op_type == "Transpose":
        return _reason(producer.inputs[0])
    kind = "weight" if operand.is_initializer() else "tensor"
    return f"the {kind} {operand.name} stays in floating point"
