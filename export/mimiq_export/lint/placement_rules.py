"""Rules about where quantizers stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from mimiq_export.lint.finding import Severity
from mimiq_export.lint.linted_graph import LAYOUT, PRODUCTS, kind
from mimiq_export.lint.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mimiq_export.lint.linted_graph import LintedGraph, QuantizerNode
    from mimiq_export.lint.rule import Fault

__all__ = [
    "CAST_BEFORE_PRODUCT",
    "LAYOUT_BEFORE_PRODUCT",
    "NOT_A_PRODUCT",
    "ONE_OPERAND",
    "OVERFLOWING_SQUARE",
    "QUANTIZED_RESIDUAL",
    "SMALL_PRODUCT",
]

SMALLEST = 16
"""Below this many rows or columns an integer product gains nothing."""

_CASTS = frozenset({"Cast"})


def _cast_before_product(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        for operand in product.inputs[:2]:
            found = graph.dequantizer_across(operand, LAYOUT | _CASTS)
            for node in found[1] if found else []:
                if kind(node) == "Cast":
                    yield node, f"it stands between a DequantizeLinear and {_of(graph, product)}"
    for each in graph.quantizers:
        cast = each.data.producer()
        if each.quantizes and cast is not None and kind(cast) == "Cast" and _is_widening(cast):
            yield cast, f"it stands in front of {graph.name_of(each.node)}"


def _is_widening(cast: ir.Node) -> bool:
    source = cast.inputs[0]
    before = None if source is None else source.dtype
    return before == ir.DataType.FLOAT16 and cast.outputs[0].dtype == ir.DataType.FLOAT


def _layout_before_product(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        for operand in product.inputs[:2]:
            found = graph.dequantizer_across(operand, LAYOUT)
            if found is not None and found[1]:
                yield (
                    found[1][0],
                    f"it stands between {graph.name_of(found[0].node)} and " + _of(graph, product),
                )


def _one_operand(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        found = [
            graph.dequantizer_across(operand, LAYOUT | _CASTS) for operand in product.inputs[:2]
        ]
        left, right = found
        # Weights alone are quantized on purpose where they are narrower than int8.
        weight_only = right is not None and right[0].codes in {ir.DataType.INT4, ir.DataType.UINT4}
        if (left is None) != (right is None) and not weight_only:
            which = "second" if right is None else "first"
            yield product, f"its {which} operand is not quantized and the other is"


def _not_a_product(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if not found.quantizes and not found.is_weight and found.codes != ir.DataType.INT32:
            users = graph.users(found.node.outputs[0])
            idle = [user for user in users if kind(user) in _NEVER_INTEGER]
            if idle:
                yield found.node, f"what it dequantizes goes to {_of(graph, idle[0])}"


_NEVER_INTEGER = frozenset(
    {"BiasGelu", "Div", "Erf", "FastGelu", "Gelu", "InstanceNormalization"}
    | {"LayerNormalization", "Pow", "QuickGelu", "RMSNormalization", "ReduceMean"}
    | {"SimplifiedLayerNormalization", "SkipLayerNormalization", "Softmax", "Sqrt"}
)


def _residual(graph: LintedGraph) -> Iterator[Fault]:
    for found in graph.quantizers:
        if found.is_weight or found.codes == ir.DataType.INT32:
            continue
        if found.quantizes:
            # A sum that only products take in codes is the input of a Linear: the stream goes on
            # beside it.
            adds = [] if _for_products_alone(graph, found) else [_behind_clip(found.data)]
            what = "it quantizes the sum"
        else:
            adds = list(graph.users(found.node.outputs[0]))
            what = "what it dequantizes goes into the sum"
        for add in adds:
            if add is not None and graph.is_residual_sum(add):
                yield found.node, f"{what} {graph.name_of(add)} of a residual stream"
                break


def _for_products_alone(graph: LintedGraph, quantize: QuantizerNode) -> bool:
    dequantized = graph.users(quantize.node.outputs[0])
    users = [user for node in dequantized for user in graph.users(node.outputs[0])]
    return bool(users) and all(kind(user) in PRODUCTS for user in users)


def _behind_clip(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    if node is not None and kind(node) == "Clip" and node.inputs[0] is not None:
        return node.inputs[0].producer()
    return node


def _small(graph: LintedGraph) -> Iterator[Fault]:
    for product in graph.products:
        quantized = [graph.dequantizer_across(value, LAYOUT) for value in product.inputs[:2]]
        if all(quantized):
            summed, columns = _sizes(graph, product)
            for size, what in ((summed, "it sums"), (columns, "it has")):
                if size is not None and size < SMALLEST:
                    unit = "products an output" if size == summed else "outputs"
                    yield product, f"{what} {size} {unit}"
                    break


def _sizes(graph: LintedGraph, product: ir.Node) -> tuple[int | None, int | None]:
    """Length of the sums (K) and number of outputs (N) of a product."""
    weight = product.inputs[1]
    if kind(product) in {"Conv", "ConvTranspose"}:
        sizes = [graph.size(weight, axis) for axis in range(graph.rank(weight) or 0)]
        if not sizes or None in sizes:
            return None, None
        total = 1
        for size in sizes[1:]:
            total *= size or 1
        return total, sizes[0]
    turned = kind(product) == "Gemm" and product.attributes.get_int("transB", 0) == 1
    summed, columns = graph.size(weight, -2), graph.size(weight, -1)
    return (columns, summed) if turned else (summed, columns)


def _square(graph: LintedGraph) -> Iterator[Fault]:
    for node in graph.nodes:
        half = ir.DataType.FLOAT16 in {node.outputs[0].dtype, *_types(node)}
        if half and _squares(graph, node):
            yield node, "it squares in half precision, which ends at 65504"


def _types(node: ir.Node) -> list[ir.DataType | None]:
    return [value.dtype for value in node.inputs[:1] if value is not None]


def _squares(graph: LintedGraph, node: ir.Node) -> bool:
    if kind(node) == "Pow":
        exponent = graph.constant(node.inputs[1])
        return exponent is not None and exponent.size == 1 and exponent.item() >= 2
    if kind(node) == "Mul":
        return node.inputs[0] is node.inputs[1]
    return kind(node) in {"ReduceL2", "ReduceSumSquare"}


def _of(graph: LintedGraph, node: ir.Node) -> str:
    what = "the product" if kind(node) in PRODUCTS else "the " + kind(node)
    return f"{what} {graph.name_of(node)}"


CAST_BEFORE_PRODUCT = Rule(
    name="cast-before-product",
    severity=Severity.WARNING,
    demands="No Cast stands between DequantizeLinear and its product, nor widens half precision "
    "in front of QuantizeLinear.",
    remedy="Write the scale in the type of the product, and take the Cast away.",
    source="NVIDIA Model-Optimizer, fp8_exporter; explicit quantization",
    check=_cast_before_product,
)

LAYOUT_BEFORE_PRODUCT = Rule(
    name="layout-before-product",
    severity=Severity.WARNING,
    demands="DequantizeLinear feeds its product directly.",
    remedy="Transpose weights before they are quantized, and activations in front of their "
    "quantizer.",
    source="NVIDIA Model-Optimizer, fp8_exporter; ONNX Runtime's QDQ fusions",
    check=_layout_before_product,
)

ONE_OPERAND = Rule(
    name="one-operand-quantized",
    severity=Severity.WARNING,
    demands="Both operands of a product are quantized, or none.",
    remedy="Quantize the other operand too, or take the quantizer away.",
    source="TensorRT developer guide, placement of Q/DQ; ONNX Runtime's and OpenVINO's fusions",
    check=_one_operand,
)

NOT_A_PRODUCT = Rule(
    name="not-a-product",
    severity=Severity.WARNING,
    demands="What is dequantized does not go to LayerNorm, Softmax or an activation function.",
    remedy="Take the quantizer away: these run in floating point and only lose precision.",
    source="ONNX Runtime's QDQ fusions; NVIDIA Model-Optimizer, int8 partitioning",
    check=_not_a_product,
)

QUANTIZED_RESIDUAL = Rule(
    name="quantized-residual",
    severity=Severity.WARNING,
    demands="The sums of a residual stream are not quantized, but as the input of products: in "
    "vision transformers they have outliers near 1000, and accuracy collapses.",
    remedy="Quantize the inputs of Linear layers only.",
    source="onnxsim, ViT-B on Jetson Orin: 85 % top-1 to 5 % and less with quantized residuals",
    check=_residual,
)

SMALL_PRODUCT = Rule(
    name="small-product",
    severity=Severity.WARNING,
    demands="A quantized product sums at least 16 products and has at least 16 outputs.",
    remedy="Leave it in floating point; tensor cores pad to multiples of 32.",
    source="NVIDIA Model-Optimizer, exclusion of small products",
    check=_small,
)

OVERFLOWING_SQUARE = Rule(
    name="overflowing-square",
    severity=Severity.WARNING,
    demands="Nothing is squared in half precision, as in a LayerNorm that is written out.",
    remedy="Use the operator LayerNormalization, or keep the squares in single precision.",
    source="onnxsim, ViT-B on Jetson Orin: 85 % top-1 to 19 % by decomposed LayerNorms",
    check=_square,
)
