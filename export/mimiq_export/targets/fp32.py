"""The full-precision model as it is: the baseline that quantized ones are compared with."""

from __future__ import annotations

import onnx_ir.passes.common as common_passes

from mimiq_export.targets.target import Target

__all__ = ["FP32"]

FP32 = Target(
    name="fp32",
    opset=20,
    passes=(
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.TopologicalSortPass(),
    ),
)
