"""ONNX Runtime on a CPU: int8 Q/DQ pairs with single-precision scales."""

from __future__ import annotations

import onnx_ir.passes.common as common_passes

from mimiq_export.passes.fold_attention_scale import FoldAttentionScalePass
from mimiq_export.passes.merge_transposes import MergeTransposesPass
from mimiq_export.passes.patch_embedding_as_matmul import PatchEmbeddingAsMatmulPass
from mimiq_export.passes.quantize_activations import QuantizeActivationsPass
from mimiq_export.passes.quantize_weights import QuantizeWeightsPass
from mimiq_export.passes.share_quantizers import ShareQuantizersPass
from mimiq_export.passes.split_gemm_bias import SplitGemmBiasPass
from mimiq_export.passes.split_heads import SplitHeadsPass
from mimiq_export.passes.transpose_before_quantizer import TransposeBeforeQuantizerPass
from mimiq_export.targets.target import Target
from mimiq_runtime.scope import Scope

__all__ = ["ORT_CPU"]

ORT_CPU = Target(
    name="ort-cpu",
    # Gelu needs 20; from 21 on int8 Q/DQ next to a Reshape does not load in ONNX Runtime 1.32.
    opset=20,
    # Integer attention is a little faster than Softmax and products in single precision.
    default_scope=Scope.FULL,
    passes=(
        SplitGemmBiasPass(),
        PatchEmbeddingAsMatmulPass(),
        SplitHeadsPass(),
        TransposeBeforeQuantizerPass(),
        MergeTransposesPass(),
        ShareQuantizersPass(),
        QuantizeWeightsPass(),
        FoldAttentionScalePass(),
        QuantizeActivationsPass(),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.TopologicalSortPass(),
    ),
)
