"""From a torch model to an onnx-ir graph with its quantizers as single nodes."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING

import onnx_ir.passes.common as common_passes
import onnxscript.optimizer
import onnxscript.rewriter
import torch

from mimiq_export.passes.idle_pads import RemoveIdlePadsPass
from mimiq_export.passes.readable_names import ReadableNamesPass
from mimiq_runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir
    from torch import nn

__all__ = ["BATCH", "INPUT_NAME", "OPSET", "OUTPUT_NAME", "capture"]

OPSET = 20
"""The first with Gelu; from 21 on ONNX Runtime 1.32 cannot load int8 Q/DQ next to a Reshape."""

LARGEST_CONSTANT = 2**24
"""Elements of what is computed once and for all, such as the position bias of a large window."""

INPUT_NAME, OUTPUT_NAME, BATCH = "images", "logits", "batch"


def capture(model: nn.Module, input_size: tuple[int, int, int], *, opset: int = OPSET) -> ir.Model:
    """Capture a model in inference mode; each quantizer becomes one ``FakeQuantize`` node.

    LayerNormalization and Gelu stay whole. Initializers are the model's parameters under their
    own names and refer to the same memory; nodes and their outputs are named after the module
    that made them.

    Args:
        model: A student with calibrated quantizers or a teacher, in inference mode. Not changed.
        input_size: Channels, height and width of the input.
        opset: Version of the ONNX operators.

    Returns:
        A model with the input ``images``, ``(batch, channels, height, width)``, and the output
        ``logits``, ``(batch, classes)``, where ``batch`` is free.

    Raises:
        ValueError: The model is in training mode.
        UnsupportedModelError: torch cannot capture the model.
    """
    if model.training:
        raise ValueError(
            "Call eval() first: a model in training mode would be captured with dropout."
        )
    captured = _export(model, input_size, opset)
    _simplify(captured)
    ReadableNamesPass(keep=set(_tensor_names(model)))(captured)
    # Stack traces hold paths of this machine.
    common_passes.ClearMetadataAndDocStringPass()(captured)
    captured.graph.name = type(model).__name__
    return captured


def _export(model: nn.Module, input_size: tuple[int, int, int], opset: int) -> ir.Model:
    device = next(model.parameters()).device
    # A batch of one would be taken for a constant.
    example = torch.zeros(2, *input_size, device=device)
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                # torch's own optimization merges equal parameters, and zeros are often equal:
                # a bias would then bear the name of another layer's.
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            _pass_on_interruption(error)
            reason = f"torch cannot capture it: {str(error).splitlines()[0]}"
            raise UnsupportedModelError(type(model).__name__, reason) from error
    if program is None:  # only with the exporter that dynamo=True replaces
        raise UnsupportedModelError(type(model).__name__, "torch captured nothing")
    return program.model


def _pass_on_interruption(error: BaseException) -> None:
    """Raise the Ctrl-C or SIGTERM that torch has taken for a fault of the model, if it was one."""
    cause: BaseException | None = error
    while cause is not None:
        if not isinstance(cause, Exception):
            raise cause
        cause = cause.__cause__ or cause.__context__


def _tensor_names(model: nn.Module) -> Iterator[str]:
    """Names of parameters and buffers, also of those that no state dict holds."""
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        yield name


def _simplify(model: ir.Model) -> None:
    """What ``optimize=True`` does, but keeping one initializer a parameter under its own name."""
    common_passes.InlinePass()(model)
    # Twice: folding infers the shapes that rewriting needs, and rewriting gives more to fold.
    for _ in range(2):
        onnxscript.optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=LARGEST_CONSTANT,
            output_size_limit=LARGEST_CONSTANT,
            should_fold=_keep_parameters,
        )
        onnxscript.rewriter.rewrite(model)
    for cleanup in (
        RemoveIdlePadsPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.RemoveUnusedNodesPass(),
    ):
        cleanup(model)


def _keep_parameters(node: ir.Node) -> bool | None:
    """Leave the Transpose of a Linear's weight to the passes; None means: decide as usual."""
    return False if node.op_type == "Transpose" else None
