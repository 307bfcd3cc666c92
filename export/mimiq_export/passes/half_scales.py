"""Scales that half precision can hold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mimiq_export.fake_quantize import fake_quantizes
from mimiq_export.passes.graph_edits import constant_of, replace_constant
from mimiq_export.passes.node_marks import marked_quantizer
from mimiq_runtime.errors import OnnxModelError

__all__ = ["HalfScalesPass"]


class HalfScalesPass(ir.passes.InPlacePass):
    """Round every scale to the nearest half-precision number, still written in single precision.

    In a strongly typed TensorRT network DequantizeLinear gives the type of its scale, so that
    half-precision products need half-precision scales. Passes that compute with scales must see
    the numbers that the engine will use; this one therefore runs before them.

    1. Scales of FakeQuantize of activations, and of DequantizeLinear of weights, are rounded. They
       change by at most 1 part in 2048, or by 3e-8 below 6.1e-5.
    2. Codes of weights are those of the learned scales: run it after the weights are quantized.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the rules.

        Raises:
            OnnxModelError: A scale becomes 0 or infinite.
        """
        scales = {found.node.inputs[1]: found.quantizer for found in fake_quantizes(model)}
        for node in model.graph:
            quantizer = marked_quantizer(node)
            if quantizer is not None:
                scales[node.inputs[1]] = quantizer
        for value, quantizer in scales.items():
            scale = constant_of(value)
            if value is not None and scale is not None:
                replace_constant(model.graph, value, _rounded(scale, quantizer))
        return ir.passes.PassResult(model, modified=bool(scales))


def _rounded(scale: np.ndarray, quantizer: str) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        half = scale.astype(np.float16)
    wrong = (half == 0) | ~np.isfinite(half)
    if wrong.any():
        raise OnnxModelError(
            f"Half precision holds scales from 6e-08 to 65504, and {quantizer} has "
            f"{scale[wrong].flat[0]:g}; export for a target with single-precision scales, such as "
            "ort-cpu, or calibrate the model again."
        )
    return half.astype(np.float32)
