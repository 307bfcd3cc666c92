"""The full-precision model in half precision: what INT8 has to beat on a GPU."""

from __future__ import annotations

import onnx_ir.passes.common as common_passes

from mimiq_export.passes.half_precision import HalfPrecisionPass
from mimiq_export.targets.fp32 import FP32
from mimiq_export.targets.target import Target

__all__ = ["FP16"]

FP16 = Target(
    name="fp16",
    opset=FP32.opset,
    passes=(
        HalfPrecisionPass(),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.TopologicalSortPass(),
    ),
)
