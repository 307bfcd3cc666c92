"""The linter accepts our own exports for TensorRT, at every pair of bit widths."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import pytest
from _helpers.tiny_students import INPUT_SIZE, calibrated_student, tiny_swin, tiny_vit

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.conversion.scope import limit_scope
from mimiq_calib.recipe import QuantizationSettings
from mimiq_export.capture import capture
from mimiq_export.fake_quantize import fake_quantizes
from mimiq_export.lint.linters import lint_file, lint_model
from mimiq_export.targets.registry import TARGETS
from mimiq_runtime.grid import Grid
from mimiq_runtime.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

BITS = range(2, 9)


@dataclass(frozen=True)
class Family:
    """An architecture with as few blocks as show all of its parts, and sizes TensorRT likes."""

    build: Callable[..., nn.Module]
    arguments: dict[str, object] = field(default_factory=dict)


FAMILIES = {
    "vit": Family(tiny_vit, {"depth": 1}),
    "deit": Family(tiny_vit, {"depth": 1, "name": "deit_tiny_distilled_patch16_224"}),
    # A plain and a shifted window, patch merging, and a last block of one window.
    "swin": Family(tiny_swin, {"depths": (2, 1), "embed_dim": 32, "num_heads": (2, 4)}),
}


@functools.cache
def captured(family: str, scope: Scope) -> bytes:
    """The graph with skewed grids, signed ones, and unsigned ones of probabilities."""
    chosen = FAMILIES[family]
    teacher = expose_attention(chosen.build(num_classes=16, **chosen.arguments))
    settings = QuantizationSettings(weight_bits=8, activation_bits=8)
    student = calibrated_student(teacher, settings, skewed=True)
    limit_scope(student, scope)
    return ir.to_proto(capture(student, INPUT_SIZE)).SerializeToString()


def trt_graph(family: str, scope: Scope, weight_bits: int, activation_bits: int) -> ir.Model:
    """The export, but for scales, at which the linter looks only for size."""
    graph = ir.from_proto(onnx.ModelProto.FromString(captured(family, scope)))
    for found in fake_quantizes(graph):
        bits = weight_bits if found.is_weight else activation_bits
        # The same share of the codes is negative: half, an eighth, or none.
        grid = Grid.skewed(bits, -found.grid.qmin * 2**bits // 2**8)
        found.node.attributes["qmin"] = ir.AttrInt64("qmin", grid.qmin)
        found.node.attributes["qmax"] = ir.AttrInt64("qmax", grid.qmax)
    for graph_pass in TARGETS["trt"].passes:
        graph = graph_pass(graph).model
    return graph


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("family", FAMILIES)
def test_exports_of_every_bit_width_have_no_finding(family: str, scope: Scope) -> None:
    for weight_bits in BITS:
        for activation_bits in BITS:
            graph = trt_graph(family, scope, weight_bits, activation_bits)
            findings = lint_model(graph, "trt")
            assert findings == [], f"w{weight_bits}a{activation_bits}"
            quantizers = sum(node.op_type == "QuantizeLinear" for node in graph.graph)
            assert quantizers >= (6 if scope is Scope.LINEAR else 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_the_narrowest_and_the_widest_are_accepted(family: str, tmp_path: Path) -> None:
    for bits in (BITS[0], BITS[-1]):
        path = tmp_path / f"{bits}.onnx"
        ir.save(trt_graph(family, Scope.FULL, bits, bits), path)
        onnx.checker.check_model(path, full_check=True)
        assert lint_file(path, "trt") == []
