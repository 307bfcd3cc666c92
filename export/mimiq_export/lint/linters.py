"""Which rules each target has, and how a model is held against them."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from mimiq_export.lint import (
    attention_rules,
    axis_rules,
    code_rules,
    engine_rules,
    operator_rules,
    placement_rules,
    scale_rules,
)
from mimiq_export.lint.finding import Severity
from mimiq_export.lint.linted_graph import LintedGraph
from mimiq_export.lint.well_formed import check_structure, check_types
from mimiq_runtime.classifier_checks import check_onnx_file
from mimiq_runtime.errors import InvalidInputError, OnnxModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mimiq_export.lint.finding import Finding
    from mimiq_export.lint.rule import Rule

__all__ = ["LINTERS", "lint_file", "lint_model"]

_EVERYWHERE = (
    scale_rules.SCALE_NOT_POSITIVE,
    placement_rules.ONE_OPERAND,
    placement_rules.NOT_A_PRODUCT,
)

LINTERS: dict[str, tuple[Rule, ...]] = {
    "trt": (
        code_rules.UINT8_CODES,
        code_rules.CODES_WITHOUT_TYPE,
        code_rules.CODE_TYPE,
        code_rules.BIAS_IN_INT32,
        code_rules.ZERO_POINT,
        code_rules.ZERO_POINT_SHAPE,
        code_rules.ZERO_POINT_NOT_CONSTANT,
        *_EVERYWHERE,
        scale_rules.SCALE_BECOMES_ZERO,
        scale_rules.SCALE_BECOMES_INFINITE,
        scale_rules.SCALE_LOSES_BITS,
        scale_rules.SCALE_NOT_CONSTANT,
        scale_rules.SCALE_SHAPE,
        scale_rules.SCALE_TYPE,
        scale_rules.ACTIVATION_PER_CHANNEL,
        scale_rules.AXIS_NOT_WRITTEN,
        scale_rules.SCALAR_INPUT,
        scale_rules.SINGLE_PRECISION_PRODUCT,
        scale_rules.CONSTANT_BEYOND_HALF,
        placement_rules.CAST_BEFORE_PRODUCT,
        placement_rules.LAYOUT_BEFORE_PRODUCT,
        placement_rules.QUANTIZED_RESIDUAL,
        placement_rules.SMALL_PRODUCT,
        axis_rules.SCALE_AXIS,
        placement_rules.OVERFLOWING_SQUARE,
        attention_rules.ATTENTION_SHAPE,
        attention_rules.ATTENTION_IN_PART,
        attention_rules.SCALE_BEHIND_SCORES,
        operator_rules.OPERATOR_UNKNOWN,
        operator_rules.OPERATOR_NOT_IMPORTED,
        operator_rules.OPSET_TOO_OLD,
        operator_rules.BLOCK_TYPE,
        operator_rules.BLOCK_AXIS,
        operator_rules.INT4_BLOCK_SIZE,
        operator_rules.INT4_ACTIVATION,
        operator_rules.INT4_ODD,
        operator_rules.INT4_ELSEWHERE,
        operator_rules.INT4_BESIDE_CODES,
        operator_rules.CONVOLUTION_TYPE,
        operator_rules.CODES_AT_INTERFACE,
        operator_rules.UINT8_INPUT,
    ),
    "ort-cpu": (
        *_EVERYWHERE,
        placement_rules.LAYOUT_BEFORE_PRODUCT,
        axis_rules.SCALE_AXIS_IGNORED,
        engine_rules.INT8_AT_OPSET_21,
        engine_rules.OUTPUT_TYPE_TWICE,
        engine_rules.BIAS_IN_GEMM,
        engine_rules.HALF_SCALES,
        engine_rules.INT8_ADD,
        engine_rules.CONVOLUTION_OUTPUT,
        engine_rules.QUANTIZED_SOFTMAX,
        engine_rules.SATURATING_PAIR,
    ),
    "ort-cuda": (
        *_EVERYWHERE,
        engine_rules.INT8_AT_OPSET_21,
        engine_rules.OUTPUT_TYPE_TWICE,
        engine_rules.NO_CUDA_KERNEL,
        engine_rules.UNFUSED_PAIRS,
    ),
    "openvino": (*_EVERYWHERE, engine_rules.DYNAMIC_PRODUCT),
}
"""The rules of each target that has any, by its name."""


def lint_model(model: ir.Model, target: str) -> list[Finding]:
    """Hold a model against the rules of a target.

    Args:
        model: Functions inlined, shapes inferred where possible; as :func:`lint_file` reads it,
            or as an export leaves it. Not changed.
        target: Name of a target.

    Returns:
        Errors first, then in the order of the rules. Empty for a target without rules.
    """
    graph = LintedGraph(model)
    findings = [found for rule in LINTERS.get(target, ()) for found in rule.findings(graph)]
    return sorted(findings, key=lambda found: found.severity is not Severity.ERROR)


def lint_file(path: Path, target: str) -> list[Finding]:
    """Hold any ONNX file against the rules of a target; who made the file does not matter.

    Raises:
        InvalidInputError: The target has no rules.
        OnnxModelError: The file is missing, or no valid ONNX model.
    """
    if target not in LINTERS:
        raise InvalidInputError(
            f"Expected one of the targets {', '.join(LINTERS)} to lint for; got {target!r}."
        )
    with _own_words():
        model = _read(path)
    findings = lint_model(model, target)
    # Types that do not go together are often what a rule has a name and a remedy for.
    if not any(found.severity is Severity.ERROR for found in findings):
        check_types(model, path)
    return findings


@contextmanager
def _own_words() -> Iterator[None]:
    """Without the log of onnx-ir: what it warns of is found again here, in one sentence."""
    log = logging.getLogger("onnx_ir")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _read(path: Path) -> ir.Model:
    check_onnx_file(path)
    try:
        model = ir.load(path)
        model = common_passes.InlinePass()(model).model
    # Readers of a damaged or unknown file fail in many ways, and have no base class for it.
    except Exception as error:
        raise OnnxModelError(
            f"{path} cannot be read as an ONNX model ({type(error).__name__}); export it again."
        ) from error
    # An empty file, and many a text, decode without an error to a model that has nothing in it.
    if not model.graph.outputs:
        raise OnnxModelError(f"{path} cannot be read as an ONNX model; export it again.")
    check_structure(model, path)
    # Shapes only make the rules see more; what cannot be inferred stays unknown, node by node.
    return common_passes.ShapeInferencePass(check_type=False, strict_mode=False)(model).model
