"""The proof that an engine multiplies in INT8 where the model says so, layer by layer.

An INT8 tensor that goes into a layer is no proof: an engine may dequantize it first and multiply
in half precision. The name of the kernel is the better witness, where it says what it multiplies.
"""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING

from mimiq_runtime.schema import Schema
from mimiq_runtime.trt_network import NetworkProduct, ProductKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mimiq_runtime.trt_inspector import EngineLayer

__all__ = [
    "LayerRecord",
    "PrecisionReport",
    "ProductProof",
    "Verdict",
    "kernel_precision",
    "prove_precision",
]

# sm80_xmma_gemm_i8f16_i8i32_f16_..., ampere_int8_i16832gemm_..., fmha_v2_int8_..., and relatives.
_INT8_KERNEL = re.compile(
    r"(?:^|_)(?:i8(?:i8|i32|f16|f32|bf16)?|s8(?:s8|s32)?|int8|imma|i\d{3,5}gemm)(?:_|$)"
)
# ..._f16f16_f16f32_..., ampere_h16816gemm_..., fmha_v2_fp16_..., tf32, sgemm, and relatives.
_FLOAT_KERNEL = re.compile(
    r"(?:^|_)(?:f16f16|f16f32|f32f32|bf16bf16|bf16f32|tf32f32|tf32tf32|fp16|fp32|bf16|hmma|"
    r"e4m3e4m3|[hs]\d{3,5}(?:gemm|cudnn)|[hs]gemm)(?:_|$)"
)
# In a layer's type, its kernel's name, or the name that TensorRT's compiler gave it (Fc).
_PRODUCT = re.compile(r"gemm|conv|matrix_?multiply|matmul|mha|imma|hmma|__myl_fc")
_FLOATS = frozenset({"fp16", "bf16", "fp32", "fp8"})
_MHA = re.compile(r"mha", re.IGNORECASE)


class Verdict(StrEnum):
    """What can be said of a product that the model has in INT8.

    ``int8`` by its kernel or, where that does not tell, by all of its operands; ``not int8`` by
    the same; ``not found`` when no layer of the engine that multiplies names it.
    """

    INT8 = "int8"
    NOT_INT8 = "not int8"
    NOT_FOUND = "not found"


class ProductProof(Schema):
    """One product and what became of it.

    Attributes:
        product: Name of the ONNX node.
        kind: Linear, attention or convolution.
        verdict: What can be said.
        evidence: Why, in a few words.
        layer: Name of the engine's layer; None when it was not found.
        kernel: Its kernel; None when it was not found.
        fused_attention: Whether it is part of a fused attention kernel.
    """

    product: str
    kind: ProductKind
    verdict: Verdict
    evidence: str
    layer: str | None = None
    kernel: str | None = None
    fused_attention: bool = False


class LayerRecord(Schema):
    """One layer of the engine.

    Attributes:
        name: Its name.
        kind: TensorRT's type of it.
        kernel: Name of its kernel.
        inputs: Types of its inputs.
        outputs: Types of its outputs.
        onnx_nodes: The ONNX nodes that it was made of.
    """

    name: str
    kind: str
    kernel: str
    inputs: list[str]
    outputs: list[str]
    onnx_nodes: list[str]


class PrecisionReport(Schema):
    """What an engine computes in which precision.

    Attributes:
        proved: Whether every quantized product runs in INT8.
        products: One row for each product that the model has in INT8.
        floating_point: Products that the model itself leaves in floating point.
        kernels: Number of layers that multiply, by the precision that their kernel names.
        reformats: Number of layers that only convert or move data.
        layers: All layers in their order.
    """

    proved: bool
    products: list[ProductProof]
    floating_point: list[str]
    kernels: dict[str, int]
    reformats: int
    layers: list[LayerRecord]

    def unproved(self) -> list[ProductProof]:
        """The quantized products that are not shown to run in INT8."""
        return [proof for proof in self.products if proof.verdict is not Verdict.INT8]


def prove_precision(
    products: Sequence[NetworkProduct], layers: Sequence[EngineLayer]
) -> PrecisionReport:
    """Find each quantized product in the engine, and say what it runs in.

    Args:
        products: The products of the network; see :func:`mimiq_runtime.trt_network.list_products`.
        layers: The layers of the engine that was built from it.

    Returns:
        The report. A network without quantized products is not proved: there is nothing to prove
        it by, and whoever asks expects INT8.
    """
    proofs = [_prove(product, layers) for product in products if product.quantized]
    kernels = Counter(
        kernel_precision(layer.kernel) or "unknown" for layer in layers if _multiplies(layer)
    )
    return PrecisionReport(
        proved=bool(proofs) and all(proof.verdict is Verdict.INT8 for proof in proofs),
        products=proofs,
        floating_point=[product.name for product in products if not product.quantized],
        kernels=dict(sorted(kernels.items())),
        reformats=sum(_is_reformat(layer) for layer in layers),
        layers=[_record(layer) for layer in layers],
    )


def kernel_precision(kernel: str) -> str | None:
    """What a kernel multiplies, by its name: ``int8``, ``float``, or None when it does not say.

    >>> kernel_precision("sm80_xmma_gemm_i8f16_i8i32_f16_tn_n_tilesize128x64x64")
    'int8'
    >>> kernel_precision("sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64")
    'float'
    """
    words = kernel.lower()
    if _INT8_KERNEL.search(words):
        return "int8"
    return "float" if _FLOAT_KERNEL.search(words) else None


def _prove(product: NetworkProduct, layers: Sequence[EngineLayer]) -> ProductProof:
    candidates = [layer for layer in layers if _holds(layer, product.name)]
    # A node is also named by the layers around its product that convert its operands.
    layer = next((layer for layer in candidates if _multiplies(layer)), None)
    if layer is None:
        named = ", ".join(candidate.name for candidate in candidates)
        return ProductProof(
            product=product.name,
            kind=product.kind,
            verdict=Verdict.NOT_FOUND,
            evidence=f"only layers that do not multiply name this node: {named}"
            if named
            else "no layer of the engine names this node",
        )
    is_int8, evidence = _judge(layer, product.kind)
    return ProductProof(
        product=product.name,
        kind=product.kind,
        verdict=Verdict.INT8 if is_int8 else Verdict.NOT_INT8,
        evidence=evidence,
        layer=layer.name,
        kernel=layer.kernel,
        fused_attention=bool(_MHA.search(f"{layer.name} {layer.kernel} {layer.kind}")),
    )


def _judge(layer: EngineLayer, kind: ProductKind) -> tuple[bool, str]:
    named = kernel_precision(layer.kernel)
    if named is not None:
        return named == "int8", f"the kernel multiplies {named}"
    types = [tensor.dtype for tensor in layer.inputs]
    if kind is ProductKind.ATTENTION:
        # Query, key and value all come from outside; one of them in half precision is one product.
        is_int8 = types.count("int8") >= 2 and not _FLOATS.intersection(types)
    else:
        # One activation; a bias beside it may be anything, a weight of its own may not.
        is_int8 = "int8" in types and layer.weights in (None, "int8")
    return is_int8, f"its inputs are {', '.join(types) or 'not listed'}" + (
        "" if layer.weights is None else f", its weights {layer.weights}"
    )


def _holds(layer: EngineLayer, node: str) -> bool:
    if node in layer.onnx_nodes:
        return True
    # Without metadata only the layer's name tells: ONNX names joined by " + ".
    return not layer.onnx_nodes and node in layer.name.split(" + ")


def _multiplies(layer: EngineLayer) -> bool:
    # The compiler's own names begin so; others are those of ONNX nodes, whatever the layer does.
    own_name = layer.name if layer.name.startswith("_") else ""
    return bool(_PRODUCT.search(f"{layer.kind} {layer.kernel} {own_name}".lower()))


def _is_reformat(layer: EngineLayer) -> bool:
    return layer.kind.lower() == "reformat" or layer.name.lower().startswith(
        "reformatting copynode"
    )


def _record(layer: EngineLayer) -> LayerRecord:
    return LayerRecord(
        name=layer.name,
        kind=layer.kind,
        kernel=layer.kernel,
        inputs=[tensor.dtype for tensor in layer.inputs],
        outputs=[tensor.dtype for tensor in layer.outputs],
        onnx_nodes=list(layer.onnx_nodes),
    )
