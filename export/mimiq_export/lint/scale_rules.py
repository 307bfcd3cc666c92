"""Rules about scales: their values, shapes and types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mimiq_export.lint.finding import Severity
from mimiq_export.lint.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mimiq_export.lint.linted_graph import LintedGraph, QuantizerNode
    from mimiq_export.lint.rule import Fault

__all__ = [
    "ACTIVATION_PER_CHANNEL",
    "AXIS_NOT_WRITTEN",
    "CONSTANT_BEYOND_HALF",
    "SCALAR_INPUT",
    "SCALE_BECOMES_INFINITE",
    "SCALE_BECOMES_ZERO",
    "SCALE_LOSES_BITS",
    "SCALE_NOT_CONSTANT",
    "SCALE_NOT_POSITIVE",
    "SCALE_SHAPE",
    "SCALE_TYPE",
    "SINGLE_PRECISION_PRODUCT",
]

_SMALLEST_NORMAL = 2.0**-14
_LARGEST = 65504.0
_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def _not_positive(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        scale = _numbers(found)
        if scale is not None and scale.size:
            wrong = scale[~((scale > 0) & np.isfinite(scale))]
            if wrong.size:
                yield found.node, f"it has the scale {wrong.flat[0]:g}"


def _becomes_zero(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        scale = _numbers(found)
        if scale is not None and found.scale is not None and found.scale.dtype == np.float32:
            with np.errstate(under="ignore", over="ignore"):
                lost = scale[(scale > 0) & (scale.astype(np.float16) == 0)]
            if lost.size:
                yield found.node, f"its scale {lost.flat[0]:g} is 0 in half precision"


def _becomes_infinite(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        scale = _numbers(found)
        if scale is not None:
            lost = scale[np.isfinite(scale) & (scale > _LARGEST)]
            if lost.size:
                yield found.node, f"its scale {lost.flat[0]:g} is infinite in half precision"


def _loses_bits(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        scale = _numbers(found)
        # bfloat16 has the exponents of single precision.
        keeps = found.scale_value is not None and found.scale_value.dtype == ir.DataType.BFLOAT16
        if scale is None or keeps or found.codes == ir.DataType.INT32:
            continue
        with np.errstate(under="ignore", over="ignore"):
            small = scale[(scale < _SMALLEST_NORMAL) & (scale.astype(np.float16) > 0)]
        if small.size:
            yield (
                found.node,
                (
                    f"{small.size} of its {scale.size} scales are below 6.1e-05, down to "
                    f"{small.min():.2g}"
                ),
            )


def _not_constant(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if found.scale is None:
            yield found.node, "its scale is computed while the model runs"


def _shape(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        fault = _shape_fault(graph, found)
        if fault:
            yield found.node, fault


def _shape_fault(graph: LintedGraph, found: QuantizerNode) -> str | None:
    scale, rank = found.scale, graph.rank(found.data)
    if scale is None or scale.size == 1:
        return None
    if rank is not None and scale.ndim not in {1, rank}:
        return f"its scale has {scale.ndim} axes and its input {rank}"
    axis = 1 if found.axis is None else found.axis
    if rank is not None and not -rank <= axis < rank:
        return f"its axis is {axis} and its input has {rank} axes"
    if found.block_size:
        return _block_fault(graph, found, axis)
    if scale.ndim != 1:
        return f"its scale has {scale.ndim} axes and no block_size"
    size = graph.size(found.data, axis)
    if size is not None and size != scale.size:
        return f"it has {scale.size} scales for the {size} slices of axis {axis}"
    return None


def _block_fault(graph: LintedGraph, found: QuantizerNode, axis: int) -> str | None:
    """Scales of blocks: as many along the axis as there are blocks, one for each element else."""
    rank, scale = graph.rank(found.data), found.scale
    if rank is None or scale is None:
        return None
    sizes = [graph.size(found.data, each) for each in range(rank)]
    blocked = sizes[axis]
    if blocked is not None:
        sizes[axis] = -(-blocked // found.block_size)
    shape = list(scale.shape)
    fits = len(shape) == rank and all(
        size in {None, got} for size, got in zip(sizes, shape, strict=True)
    )
    return None if fits else f"its scale has the shape {shape} and its blocks {sizes}"


def _activation_per_channel(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        several = found.scale is not None and found.scale.size > 1
        if several and not graph.computes_from_weight(found.data):
            yield found.node, f"it quantizes an activation with {_count(found)} scales"


def _count(found: QuantizerNode) -> int:
    return 0 if found.scale is None else int(found.scale.size)


def _axis(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if found.per_channel and found.axis is None:
            yield found.node, f"it has {_count(found)} scales and no axis"


def _type(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        scale = None if found.scale_value is None else found.scale_value.dtype
        if found.quantizes and scale is not None and found.data.dtype is not None:
            differs = scale != found.data.dtype
            if differs and scale in _HALVES | {ir.DataType.FLOAT}:
                data = found.data.dtype.name.lower()
                yield found.node, f"its scale is {scale.name.lower()} and its input {data}"


def _scalar(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if graph.rank(found.data) == 0:
            yield found.node, "its input is a single number"


def _single_precision(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        found = [graph.dequantizer(operand) for operand in product.inputs[:2]]
        scales = [each.scale for each in found if each is not None]
        single = [scale is not None and scale.dtype == np.float32 for scale in scales]
        if len(scales) == 2 and all(single):
            yield product, "its dequantized operands are float32"


def _beyond_half(graph: LintedGraph) -> Iterator[Fault]:
    seen: set[ir.Value] = set()
    for node in graph.nodes:
        for value in node.inputs:
            half = value is not None and value.dtype == ir.DataType.FLOAT16
            if value is not None and half and value not in seen and graph.is_constant(value):
                seen.add(value)
                array = graph.constant(value)
                if array is not None and not np.isfinite(array).all():
                    yield node, f"its constant {value.name} is not finite"


def _numbers(found: QuantizerNode) -> np.ndarray | None:
    return None if found.scale is None else np.asarray(found.scale, dtype=np.float32)


_LAYER = "TensorRT API, IQuantizeLayer and IDequantizeLayer"

SCALE_NOT_POSITIVE = Rule(
    name="scale-not-positive",
    severity=Severity.ERROR,
    demands="Every scale is above 0 and finite.",
    remedy="Calibrate again; a tensor that is always 0 takes any scale, such as 1.",
    source=_LAYER,
    check=_not_positive,
)

SCALE_BECOMES_ZERO = Rule(
    name="scale-becomes-zero",
    severity=Severity.ERROR,
    demands="No scale is 0 in half precision, that is below 3e-08.",
    remedy="Leave this layer in floating point, or scale its weight up and its output down.",
    source="IEEE 754 half precision; the strongly typed network has half-precision scales",
    check=_becomes_zero,
)

SCALE_BECOMES_INFINITE = Rule(
    name="scale-becomes-infinite",
    severity=Severity.ERROR,
    demands="No scale is infinite in half precision, that is above 65504.",
    remedy="Leave this layer in floating point, or scale its weight down and its output up.",
    source="IEEE 754 half precision; the strongly typed network has half-precision scales",
    check=_becomes_infinite,
)

SCALE_LOSES_BITS = Rule(
    name="scale-loses-bits",
    severity=Severity.WARNING,
    demands="No scale is below 6.1e-05, where half precision is subnormal.",
    remedy="Compare parity; if it suffers, leave this layer in floating point.",
    source="IEEE 754 half precision; the strongly typed network has half-precision scales",
    check=_loses_bits,
)

SCALE_NOT_CONSTANT = Rule(
    name="scale-not-constant",
    severity=Severity.ERROR,
    demands="The scale of an integer quantizer is a constant.",
    remedy="Quantize statically, with calibrated scales as initializers.",
    source=_LAYER,
    check=_not_constant,
)

SCALE_SHAPE = Rule(
    name="scale-shape",
    severity=Severity.ERROR,
    demands="There is one scale in all, one for each slice of the axis, or one for each block.",
    remedy="Give the scale the length of the axis that is written.",
    source=_LAYER,
    check=_shape,
)

ACTIVATION_PER_CHANNEL = Rule(
    name="activation-per-channel",
    severity=Severity.ERROR,
    demands="An activation has one scale in all.",
    remedy="Quantize the activation per tensor; fold factors of channels into the layers around.",
    source=_LAYER,
    check=_activation_per_channel,
)

AXIS_NOT_WRITTEN = Rule(
    name="axis-not-written",
    severity=Severity.ERROR,
    demands="A quantizer with several scales has the attribute axis: ONNX means 1 without, "
    "TensorRT 0.",
    remedy="Write axis.",
    source="onnx-tensorrt, importer of QuantizeLinear and DequantizeLinear",
    check=_axis,
)

SCALE_TYPE = Rule(
    name="scale-type",
    severity=Severity.ERROR,
    demands="The scale of a QuantizeLinear has the type of its input.",
    remedy="Write the scale in the type of the tensor.",
    source=_LAYER,
    check=_type,
)

SCALAR_INPUT = Rule(
    name="scalar-input",
    severity=Severity.ERROR,
    demands="The input of a quantizer has at least one axis.",
    remedy="Leave single numbers in floating point.",
    source=_LAYER,
    check=_scalar,
)

SINGLE_PRECISION_PRODUCT = Rule(
    name="single-precision-product",
    severity=Severity.WARNING,
    demands="Scales of operands are in half precision: in a strongly typed network "
    "DequantizeLinear has the type of its scale, and what follows runs in that type.",
    remedy="Convert the graph to half precision with half-precision scales.",
    source="TensorRT 11 migration guide (strong typing); onnx-tensorrt",
    check=_single_precision,
)

CONSTANT_BEYOND_HALF = Rule(
    name="constant-beyond-half",
    severity=Severity.ERROR,
    demands="Every half-precision constant is finite.",
    remedy="Keep what uses it in single precision.",
    source="IEEE 754 half precision",
    check=_beyond_half,
)
