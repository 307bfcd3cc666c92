"""OpenVINO: the graph of ONNX Runtime's CPU target, with attention as its plugin fuses it.

Q/DQ pairs become FakeQuantize on reading, zero points included, and every Linear and convolution
an int8 kernel. Attention becomes one int8 kernel as a whole, products and Softmax, if its
probabilities have no zero point; and queries, keys and values leave their products as codes if
each has a product of its own.
"""

from __future__ import annotations

import onnx_ir.passes.common as common_passes

from mimiq_export.passes.separate_projections import SeparateProjectionsPass
from mimiq_export.passes.unsigned_codes import UnsignedCodesPass
from mimiq_export.targets.ort_cpu import ORT_CPU
from mimiq_export.targets.target import Target
from mimiq_runtime.scope import Scope

__all__ = ["OPENVINO"]

OPENVINO = Target(
    name="openvino",
    opset=ORT_CPU.opset,
    default_scope=Scope.FULL,
    passes=(
        *ORT_CPU.passes,
        SeparateProjectionsPass(),
        UnsignedCodesPass(),
        common_passes.RemoveUnusedNodesPass(),
    ),
)
