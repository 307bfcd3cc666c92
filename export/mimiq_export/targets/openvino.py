"""OpenVINO: the graph of ONNX Runtime's CPU target, which its CPU plugin runs in integers as it is.

Q/DQ pairs become FakeQuantize on reading, zero points included, and every Linear and convolution
an int8 kernel. uint8 codes were tried, and are no faster.
"""

from __future__ import annotations

from mimiq_export.targets.ort_cpu import ORT_CPU
from mimiq_export.targets.target import Target
from mimiq_runtime.scope import Scope

__all__ = ["OPENVINO"]

OPENVINO = Target(
    name="openvino",
    opset=ORT_CPU.opset,
    # Only one of the two products of attention becomes an integer one, and reordering costs more.
    default_scope=Scope.LINEAR,
    passes=ORT_CPU.passes,
)
