"""Which products of a parsed network ought to run in integers: those that take Q/DQ operands.

Read off TensorRT's own network, as its ONNX parser made it, so that any QDQ model can be judged
and no ONNX library is needed on the device.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from mimiq_runtime.schema import Schema

__all__ = ["NetworkProduct", "ProductKind", "list_products"]


class ProductKind(StrEnum):
    """What a product is in a transformer."""

    LINEAR = "linear"
    ATTENTION = "attention"
    CONVOLUTION = "convolution"


class NetworkProduct(Schema):
    """A matrix product or convolution of the network.

    Attributes:
        name: Name of the ONNX node.
        kind: With a weight (linear, convolution) or of two activations (attention). TensorRT's own
            IAttention is one row for both of its products.
        quantized: Whether both operands come from a DequantizeLinear; for an IAttention, query and
            key.
    """

    name: str
    kind: ProductKind
    quantized: bool


def list_products(trt: Any, network: Any) -> list[NetworkProduct]:
    """The products of a network, in its order.

    Args:
        trt: The module ``tensorrt``.
        network: An ``INetworkDefinition`` that the ONNX parser filled.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
    }
    return [_describe(trt, layer, producers) for layer in layers if layer.type in _products(trt)]


def _products(trt: Any) -> tuple[Any, ...]:
    """Types of layers that multiply; an IAttention, since 10.14, by the layer where it ends."""
    known = trt.LayerType.__members__
    attention = [known["ATTENTION_OUTPUT"]] if "ATTENTION_OUTPUT" in known else []
    return (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION, *attention)


def _describe(trt: Any, layer: Any, producers: dict[str, Any]) -> NetworkProduct:
    is_convolution = layer.type == trt.LayerType.CONVOLUTION
    # The layers around an IAttention know it, and it knows what goes in.
    layer = getattr(layer, "attention", layer)
    # A convolution's weight is its second input where it is dequantized, else a constant inside;
    # the first two of an IAttention are query and key.
    operands = [layer.get_input(index) for index in range(min(layer.num_inputs, 2))]
    sources = [_source(trt, operand, producers) for operand in operands]
    if is_convolution:
        kind = ProductKind.CONVOLUTION
    elif any(_is_constant(trt, source, producers) for source in sources):
        kind = ProductKind.LINEAR
    else:
        kind = ProductKind.ATTENTION
    dequantized = [
        source is not None and source.type == trt.LayerType.DEQUANTIZE for source in sources
    ]
    return NetworkProduct(
        name=_onnx_name(layer), kind=kind, quantized=len(dequantized) == 2 and all(dequantized)
    )


def _source(trt: Any, tensor: Any, producers: dict[str, Any]) -> Any | None:
    """The layer that makes a tensor, seen through those that only move it; None for an input."""
    moves = (trt.LayerType.SHUFFLE, trt.LayerType.IDENTITY)
    while tensor is not None and tensor.name in producers:
        layer = producers[tensor.name]
        if layer.type not in moves:
            return layer
        tensor = layer.get_input(0)
    return None


def _is_constant(trt: Any, source: Any | None, producers: dict[str, Any]) -> bool:
    """Whether a tensor is a weight, quantized or not."""
    steps = (trt.LayerType.DEQUANTIZE, trt.LayerType.QUANTIZE, trt.LayerType.CAST)
    while source is not None and source.type in steps:
        source = _source(trt, source.get_input(0), producers)
    return source is not None and source.type == trt.LayerType.CONSTANT


def _onnx_name(layer: Any) -> str:
    """Name of the ONNX node; the layer's own name may have a number added to it."""
    metadata = str(layer.metadata)
    marker = "[ONNX Layer: "
    if marker in metadata:
        return metadata.rpartition(marker)[2].partition("]")[0]
    return str(layer.name)
