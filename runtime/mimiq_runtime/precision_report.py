"""The proof that an engine multiplies in INT8 where the model says so, layer by layer.

Both operands of a product have to be INT8. The types of a layer's tensors say so, or say the
opposite; where the engine does not list an operand (a weight is often inside its layer), the name
of the kernel has to say it. A kernel that names a floating-point product is no proof, whatever it
reads: an engine may dequantize first and multiply in half precision.
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

    from mimiq_runtime.trt_inspector import EngineLayer, EngineTensor

__all__ = [
    "LayerRecord",
    "PrecisionReport",
    "ProductProof",
    "Verdict",
    "kernel_precision",
    "prove_precision",
]


def _word(*patterns: str) -> re.Pattern[str]:
    """One of the words of a kernel's name, which are joined by ``_``."""
    return re.compile(rf"(?:^|_)(?:{'|'.join(patterns)})(?:_|$)")


# What is multiplied and what it is summed in: sm80_xmma_gemm_i8f16_i8i32_f16_...,
# volta_fp32_icudnn_int8x4_..., cutlass_80_tensorop_i16832gemm_s8_..., and relatives.
_INT8_PRODUCT = _word(
    *("i8i8", "i8i32", "s8s8", "s8s32", "s8s8s32", "imma"),
    *(r"i\d{3,6}(?:gemm|cudnn)", "i(?:gemm|cudnn)"),
)
# ..._f16f16_f16f32_..., ampere_h16816gemm_..., cutlass_80_tensorop_s16816gemm_f16_s8 (which widens
# its bytes), ampere_sgemm_..., nvjet_hsh_..., nvjet_sm100_tst_..., and relatives.
_FLOAT_PRODUCT = _word(
    *("f16f16", "f16f32", "f32f32", "bf16bf16", "bf16f32", "tf32f32", "tf32tf32", "e4m3e4m3"),
    *("hmma", r"[hs]\d{3,6}(?:tf32|bf16|f16)?(?:gemm|cudnn)", "[hs](?:gemm|cudnn)"),
    r"nvjet(?:_sm\d+)?_[hstqo][a-z]{2,4}",
)
# Types of tensors that a kernel reads or writes: fmha_v2_int8_..., turing_fp16_..., and relatives.
_INT8_TYPE = _word("i8(?:f16|f32|bf16)?", "s8", r"int8(?:x\d+)?")
_FLOAT_TYPE = _word("fp16", "fp32", "bf16", "tf32", "f16", "f32", "e4m3")
# In a layer's type, its kernel's name, or the name that TensorRT's compiler gave it (Fc).
_PRODUCT = re.compile(
    r"gemm|conv|cudnn|fprop|matrix_?multiply|matmul|mha|attention|nvjet|imma|hmma|__myl_fc"
)
# Where an IAttention of the network begins and ends: nothing is computed there.
_BOUNDARY = re.compile(r"attention_?(?:in|out)put")
_ATTENTION = re.compile(r"mha|attention")
_NO_OPERANDS = frozenset({"bool", "int32", "int64", "unknown"})
_OF_ATTENTION = 3
"""Query, key and value."""


class Verdict(StrEnum):
    """What can be said of a product that the model has in INT8.

    ``int8`` when both operands are, in every layer that multiplies for it; ``not int8`` when one is
    not, or is not shown to be; ``not found`` when no layer of the engine that multiplies names it.
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
    attention = frozenset(
        product.name for product in products if product.kind is ProductKind.ATTENTION
    )
    proofs = [_prove(product, layers, attention) for product in products if product.quantized]
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

    The product that a name spells out goes before the types of tensors in it.

    >>> kernel_precision("sm80_xmma_gemm_i8f16_i8i32_f16_tn_n_tilesize128x64x64")
    'int8'
    >>> kernel_precision("cutlass_80_tensorop_s16816gemm_f16_s8_128x128_32x4_tn_align8")
    'float'
    """
    words = kernel.lower()
    for int8, floating in ((_INT8_PRODUCT, _FLOAT_PRODUCT), (_INT8_TYPE, _FLOAT_TYPE)):
        is_int8, is_floating = bool(int8.search(words)), bool(floating.search(words))
        if is_int8 and is_floating:
            return None
        if is_int8 or is_floating:
            return "int8" if is_int8 else "float"
    return None


def _prove(
    product: NetworkProduct, layers: Sequence[EngineLayer], attention: frozenset[str]
) -> ProductProof:
    candidates = [layer for layer in layers if _holds(layer, product.name)]
    # A node is also named by the layers around its product that convert its operands.
    multiplying = [layer for layer in candidates if _multiplies(layer)]
    if not multiplying:
        named = ", ".join(candidate.name for candidate in candidates)
        return ProductProof(
            product=product.name,
            kind=product.kind,
            verdict=Verdict.NOT_FOUND,
            evidence=f"only layers that do not multiply name this node: {named}"
            if named
            else "no layer of the engine names this node",
        )
    # A product may be taken apart: one part in floating point, and it is not an INT8 product.
    judged = [(layer, *_judge(layer, product.kind, attention)) for layer in multiplying]
    layer, is_int8, evidence = next((found for found in judged if not found[1]), judged[0])
    if len(judged) > 1:
        evidence += f" (in {layer.name}, one of {len(judged)} layers)"
    return ProductProof(
        product=product.name,
        kind=product.kind,
        verdict=Verdict.INT8 if is_int8 else Verdict.NOT_INT8,
        evidence=evidence,
        layer=layer.name,
        kernel=layer.kernel,
        fused_attention=_is_fused_attention(layer, attention),
    )


def _judge(layer: EngineLayer, kind: ProductKind, attention: frozenset[str]) -> tuple[bool, str]:
    """Whether a layer multiplies INT8 by INT8, and how it is known."""
    named = kernel_precision(layer.kernel)
    if named == "float":
        return False, "the kernel multiplies float"
    types = _operands(layer, kind)
    integers, others = types.count("int8"), len(types) - types.count("int8")
    evidence = f"its operands are {', '.join(types)}" if types else "it lists no operands"
    if kind is ProductKind.ATTENTION and _is_fused_attention(layer, attention):
        # Behind query, key and value a bias or a mask may come in floating point.
        both = integers >= _OF_ATTENTION or (integers >= 2 and not others)
    elif kind is ProductKind.ATTENTION:
        both = integers >= 2
    else:
        both = integers >= 2 and not others
    if both:
        return True, evidence
    if others:
        return False, evidence
    if named == "int8":
        return True, f"the kernel multiplies int8, {evidence}"
    return False, f"{evidence}, and the kernel's name does not say what it multiplies"


def _operands(layer: EngineLayer, kind: ProductKind) -> list[str]:
    """Types of what a layer may multiply: without indices, masks, and what it only adds."""
    tensors = [tensor for tensor in layer.inputs if tensor.dtype not in _NO_OPERANDS]
    if kind is not ProductKind.ATTENTION:
        # An activation may be of the output's shape, as a residual is; a second one is a residual.
        first = next((tensor for tensor in tensors if tensor.dtype == "int8"), None)
        tensors = [
            tensor
            for tensor in tensors
            if tensor is first or not _is_only_added(tensor, layer.outputs)
        ]
    types = [tensor.dtype for tensor in tensors]
    return types if layer.weights in (None, "unknown") else [*types, layer.weights]


def _is_only_added(tensor: EngineTensor, outputs: Sequence[EngineTensor]) -> bool:
    """Whether a tensor can only be a bias, a scale of channels, or a residual."""
    if tensor.shape is None:
        return False
    if sum(size != 1 for size in tensor.shape) <= 1:
        return True
    return any(_broadcasts(tensor.shape, output.shape) for output in outputs)


def _broadcasts(shape: tuple[int, ...], onto: tuple[int, ...] | None) -> bool:
    if onto is None or len(shape) > len(onto):
        return False
    return all(size in (1, other) for size, other in zip(shape[::-1], onto[::-1], strict=False))


def _holds(layer: EngineLayer, node: str) -> bool:
    if node in layer.onnx_nodes:
        return True
    # Without metadata only the layer's name tells: ONNX names joined by " + ".
    return not layer.onnx_nodes and node in layer.name.split(" + ")


def _multiplies(layer: EngineLayer) -> bool:
    return bool(_PRODUCT.search(_own_words(layer)))


def _is_fused_attention(layer: EngineLayer, attention: frozenset[str]) -> bool:
    """Whether a layer holds both products of an attention: by its name, or by two ONNX nodes."""
    named = _ATTENTION.search(_own_words(layer)) is not None
    return named or sum(_holds(layer, node) for node in attention) > 1


def _own_words(layer: EngineLayer) -> str:
    """What TensorRT itself says that a layer does; a name of ONNX nodes says what they do."""
    # The compiler's own names begin so.
    name = layer.name if layer.name.startswith("_") else ""
    return f"{_BOUNDARY.sub('', layer.kind.lower())} {layer.kernel} {name}".lower()


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
