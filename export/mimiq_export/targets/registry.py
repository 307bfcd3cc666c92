"""All targets by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_export.targets.fp16 import FP16
from mimiq_export.targets.fp32 import FP32
from mimiq_export.targets.openvino import OPENVINO
from mimiq_export.targets.ort_cpu import ORT_CPU
from mimiq_export.targets.ort_cuda import ORT_CUDA
from mimiq_export.targets.trt import TRT
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from mimiq_export.targets.target import Target

__all__ = ["TARGETS", "get_target"]

TARGETS: dict[str, Target] = {
    target.name: target for target in (ORT_CPU, ORT_CUDA, OPENVINO, TRT, FP32, FP16)
}


def get_target(name: str) -> Target:
    """The target of this name.

    Raises:
        InvalidInputError: There is none; the message lists those there are.
    """
    if name not in TARGETS:
        raise InvalidInputError(f"There is no target {name!r}; choose one of {', '.join(TARGETS)}.")
    return TARGETS[name]
