"""Half precision with activations as large as those of trained transformers, whole models."""

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
from _helpers.tiny_students import INPUT_SIZE, calibrated_student, images, tiny_vit
from torch import nn

from mimiq_calib.conversion.convert import expose_attention
from mimiq_calib.conversion.scope import limit_scope
from mimiq_calib.recipe import QuantizationSettings
from mimiq_export.capture import capture
from mimiq_export.passes import half_precision
from mimiq_export.targets.registry import TARGETS
from mimiq_runtime.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable

FEEDS = {"images": images(5).numpy()}
OUTLIERS = [5, 11]


@dataclass(frozen=True)
class Case:
    """A target, and how large its activations are.

    Attributes:
        target: Name of the target; ``fp16`` gets the teacher, ``trt`` the student.
        gain: Factor of queries and of keys.
        logits: What the largest logit of the attention is beyond.
        bound: Of the mean error: in spreads of the logits over images for the teacher, in mean
            errors of quantization for the student, whose codes flip beside their boundaries.
    """

    target: str
    gain: float
    logits: float
    bound: float


CASES = [
    # Without the scale of a quarter in front, the products would be beyond half precision.
    Case("fp16", gain=1.4, logits=65504 / 4, bound=0.1),
    Case("trt", gain=0.07, logits=20, bound=0.15),
]


@functools.cache
def teacher(gain: float) -> nn.Module:
    """A DeiT with two channels of its residual stream near 1000, and large attention logits.

    The norms give the other channels back their size, as those of trained models do.
    """
    model = tiny_vit(name="deit_tiny_distilled_patch16_224")
    usual = [channel for channel in range(48) if channel not in OUTLIERS]
    with torch.no_grad():
        model.pos_embed[..., OUTLIERS] = torch.tensor([1400.0, -700.0])
        for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
            norm.weight[usual] *= 200.0
        for block in model.blocks:
            block.attn.qkv.weight[: 2 * 48] *= gain
    return expose_attention(model)


@functools.cache
def model_of(case: Case) -> nn.Module:
    if case.target == "fp16":
        return teacher(case.gain)
    settings = QuantizationSettings(weight_bits=8, activation_bits=8)
    student = calibrated_student(teacher(case.gain), settings)
    limit_scope(student, Scope.LINEAR)
    return student


def logits_of(model: nn.Module) -> Array:
    with torch.no_grad():
        return np.asarray(model(images(5)).numpy())


@functools.cache
def captured(case: Case) -> bytes:
    graph = capture(model_of(case), INPUT_SIZE, opset=TARGETS[case.target].opset)
    return ir.to_proto(graph).SerializeToString()


def graph_of(case: Case) -> ir.Model:
    graph = ir.from_proto(onnx.ModelProto.FromString(captured(case)))
    for graph_pass in TARGETS[case.target].passes:
        graph = graph_pass(graph).model
    return graph


def unit_of(case: Case) -> float:
    """What errors are measured in; see :class:`Case`."""
    exact = logits_of(teacher(case.gain))
    if case.target == "fp16":
        return float(exact.std(axis=0).mean())
    return float(np.abs(logits_of(model_of(case)) - exact).mean())


def largest(graph: ir.Model, values: Iterable[ir.Value | None]) -> float:
    names = [value.name or "" for value in values if value is not None]
    found = run_ort(graph, FEEDS, outputs=names, optimize=False)
    return max(float(np.abs(array).max()) for array in found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.target)
def test_logits_stay_finite_and_agree_with_single_precision(case: Case) -> None:
    graph = graph_of(case)
    softmaxes = [node for node in graph.graph if node.op_type == "Softmax"]
    assert largest(graph, (node.inputs[0] for node in softmaxes)) > case.logits
    sums = [node for node in graph.graph if node.op_type == "Add"]
    assert largest(graph, (node.outputs[0] for node in sums)) ** 2 > 20 * 65504
    exact = logits_of(model_of(case))
    # ONNX's reference computes in numpy's half precision, LayerNorm and Softmax included; ONNX
    # Runtime has kernels of its own.
    for logits in (run_reference(graph, FEEDS)[0], run_ort(graph, FEEDS, optimize=False)[0]):
        assert np.isfinite(logits).all()
        assert np.abs(logits - exact).mean() < case.bound * unit_of(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.target)
def test_without_islands_the_logits_are_lost(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "ISLANDS", frozenset())
    (logits,) = run_reference(graph_of(case), FEEDS)
    error = np.abs(logits - logits_of(model_of(case))).mean()
    assert not error < 5 * case.bound * unit_of(case)
