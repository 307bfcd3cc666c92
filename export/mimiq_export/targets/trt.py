"""TensorRT: a strongly typed half-precision graph with symmetric int8 Q/DQ pairs."""

from __future__ import annotations

import onnx_ir.passes.common as common_passes

from mimiq_export.passes.half_precision import HalfPrecisionPass
from mimiq_export.passes.half_scales import HalfScalesPass
from mimiq_export.passes.merge_transposes import MergeTransposesPass
from mimiq_export.passes.quantize_activations import QuantizeActivationsPass
from mimiq_export.passes.quantize_weights import QuantizeWeightsPass
from mimiq_export.passes.share_quantizers import ShareQuantizersPass
from mimiq_export.passes.shift_beside_product import ShiftBesideProductPass
from mimiq_export.passes.shift_into_bias import ShiftIntoBiasPass
from mimiq_export.passes.split_gemm_bias import SplitGemmBiasPass
from mimiq_export.passes.split_heads import SplitHeadsPass
from mimiq_export.passes.transpose_before_quantizer import TransposeBeforeQuantizerPass
from mimiq_export.targets.target import Target
from mimiq_runtime.scope import Scope

__all__ = ["TRT"]

TRT = Target(
    name="trt",
    # Half-precision scales need 19, Gelu 20.
    opset=20,
    # Integer attention breaks the fused attention kernel wherever a shift or a shape does not fit.
    default_scope=Scope.LINEAR,
    half_baseline=True,
    passes=(
        SplitGemmBiasPass(),
        SplitHeadsPass(),
        TransposeBeforeQuantizerPass(),
        MergeTransposesPass(),
        ShareQuantizersPass(),
        QuantizeWeightsPass(),
        # The scale of the attention stays a Mul in front of the query's quantizer: an eighth of a
        # weight's scale would often be subnormal in half precision.
        HalfScalesPass(),
        # There are no zero points: from here on scales are final, and shifts are made of them.
        ShiftIntoBiasPass(),
        ShiftBesideProductPass(),
        QuantizeActivationsPass(),
        HalfPrecisionPass(),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.TopologicalSortPass(),
    ),
)
