"""Swin for every target: windows, shifts, masks and merged patches compute what torch computes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from _helpers.onnx_graphs import Array, run_ort, run_reference
from _helpers.tiny_students import INPUT_SIZE, calibrated_student, images, tiny_swin_teacher

from mimiq_calib.conversion.scope import limit_scope
from mimiq_calib.recipe import QuantizationSettings
from mimiq_export.capture import capture
from mimiq_export.passes.graph_edits import replace_constant
from mimiq_export.passes.half_precision import HalfPrecisionPass
from mimiq_export.passes.half_scales import HalfScalesPass
from mimiq_export.targets.registry import TARGETS
from mimiq_runtime.scope import Scope

if TYPE_CHECKING:
    from torch import nn

FEEDS = {"images": images(5).numpy()}
SINGLE = (HalfPrecisionPass, HalfScalesPass)
"""What trt does to numbers on purpose; without it the graph is in single precision."""


@dataclass(frozen=True)
class Case:
    """A student, and how many of its five images may have a code that flips at a tie."""

    bits: int
    skewed: bool
    scope: Scope
    flips: int
    flips_in_trt: int


CASES = [
    Case(8, skewed=False, scope=Scope.LINEAR, flips=1, flips_in_trt=1),
    # For trt an Add in front of the quantizer moves the values, and rounds.
    Case(8, skewed=True, scope=Scope.FULL, flips=1, flips_in_trt=4),
    Case(4, skewed=True, scope=Scope.FULL, flips=1, flips_in_trt=1),
]


@functools.cache
def captured(case: Case) -> tuple[bytes, Array]:
    """The graph before any target, and the logits of torch."""
    settings = QuantizationSettings(weight_bits=case.bits, activation_bits=case.bits)
    student = calibrated_student(tiny_swin_teacher(), settings, skewed=case.skewed)
    limit_scope(student, case.scope)
    return ir.to_proto(capture(student, INPUT_SIZE)).SerializeToString(), logits_of(student)


def logits_of(model: nn.Module) -> Array:
    with torch.no_grad():
        return np.asarray(model(images(5)).numpy())


def logits_for(target: str, case: Case) -> Array:
    """As written, without ONNX Runtime's optimisations: what the file says, node by node."""
    graph = ir.from_proto(onnx.ModelProto.FromString(captured(case)[0]))
    for graph_pass in TARGETS[target].passes:
        if not isinstance(graph_pass, SINGLE):
            graph = graph_pass(graph).model
    return np.asarray(run_ort(graph, FEEDS, optimize=False)[0])


def quantization_of(case: Case) -> float:
    """By how much quantization moves the logits at most."""
    return float(np.abs(captured(case)[1] - logits_of(tiny_swin_teacher())).max())


@pytest.mark.parametrize("case", CASES, ids=["w8a8-linear", "w8a8-skewed", "w4a4-skewed"])
@pytest.mark.parametrize("target", ["ort-cpu", "openvino", "trt"])
def test_the_graph_of_every_target_gives_the_students_logits(target: str, case: Case) -> None:
    error = np.sort(np.abs(logits_for(target, case) - captured(case)[1]).max(axis=1))
    # One code more or less moves an image by far less than a wrong scale, grid, mask or window.
    assert error[-1] < 0.1 * quantization_of(case)
    exact = len(error) - (case.flips_in_trt if target == "trt" else case.flips)
    np.testing.assert_array_less(error[:exact], 5e-6)


def test_a_lost_mask_would_be_seen() -> None:
    """Shifted windows without their mask move every image beyond the bound above."""
    case = CASES[0]
    graph = ir.from_proto(onnx.ModelProto.FromString(captured(case)[0]))
    masks = [
        value
        for value in graph.graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT and value.const_value.numpy().min(initial=0) < -50
    ]
    assert masks
    for value in masks:
        array = value.const_value.numpy()
        replace_constant(graph.graph, value, np.where(array < -50, array + 100, array))
    error = np.abs(run_reference(graph, FEEDS)[0] - captured(case)[1]).max(axis=1)
    assert error.min() > 0.1 * quantization_of(case)
