"""ONNX Runtime with CUDA: the graph of its CPU target.

CUDA has no integer products there: quantizers run as kernels of their own between products in
floating point. The file gives the same answers on a GPU, not faster ones; that is what ``trt`` is
for.
"""

from __future__ import annotations

from mimiq_export.targets.ort_cpu import ORT_CPU
from mimiq_export.targets.target import Target
from mimiq_runtime.scope import Scope

__all__ = ["ORT_CUDA"]

ORT_CUDA = Target(
    name="ort-cuda",
    opset=ORT_CPU.opset,
    # Each quantizer less is a kernel less.
    default_scope=Scope.LINEAR,
    half_baseline=True,
    passes=ORT_CPU.passes,
)
