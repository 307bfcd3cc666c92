"""Whole models for every target: what they compute, and what their linters say."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from _helpers.onnx_graphs import Array, run_ort, run_reference
from _helpers.tiny_students import INPUT_SIZE, calibrated_student, images, tiny_student, tiny_vit

from mimiq_calib.conversion.convert import expose_attention, quantizers_of
from mimiq_calib.conversion.scope import limit_scope
from mimiq_calib.recipe import QuantizationSettings
from mimiq_export.capture import capture
from mimiq_export.fake_quantize import fake_quantizes
from mimiq_export.lint.finding import Severity
from mimiq_export.lint.linters import LINTERS, lint_model
from mimiq_export.passes.half_precision import HalfPrecisionPass
from mimiq_export.passes.half_scales import HalfScalesPass
from mimiq_export.targets.registry import TARGETS
from mimiq_runtime.machine import describe_machine
from mimiq_runtime.scope import ATTENTION_QUANTIZERS, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

FEEDS = {"images": images(5).numpy()}


@dataclass(frozen=True)
class Case:
    """A student: architecture, bits, and whether its grids are skewed."""

    bits: tuple[int, int]
    skewed: bool = False
    model: str = "vit_tiny_patch16_224"


CASES = {
    "vit-w8a8": Case((8, 8)),
    "vit-w8a8-skewed": Case((8, 8), skewed=True),
    "vit-w4a8": Case((4, 8)),
    "vit-w4a4-skewed": Case((4, 4), skewed=True),
    "vit-w2a3": Case((2, 3)),
    "deit-distilled-w8a8-skewed": Case(
        (8, 8), skewed=True, model="deit_tiny_distilled_patch16_224"
    ),
    "deit-distilled-w4a4": Case((4, 4), model="deit_tiny_distilled_patch16_224"),
}


@functools.cache
def student_of(case: Case) -> nn.Module:
    if case.model == "vit_tiny_patch16_224":
        return tiny_student(*case.bits, skewed=case.skewed)
    settings = QuantizationSettings(weight_bits=case.bits[0], activation_bits=case.bits[1])
    teacher = expose_attention(tiny_vit(name=case.model))
    return calibrated_student(teacher, settings, skewed=case.skewed)


@functools.cache
def captured(case: Case) -> bytes:
    return ir.to_proto(capture(student_of(case), INPUT_SIZE)).SerializeToString()


def graph_for(target: str, case: Case, scope: Scope, *, leave_out: Sequence[type] = ()) -> ir.Model:
    """The graph of a target; some passes may be left out."""
    graph = ir.from_proto(onnx.ModelProto.FromString(captured(case)))
    if scope is Scope.LINEAR:
        take_attention_quantizers_out(graph)
    for graph_pass in TARGETS[target].passes:
        if not isinstance(graph_pass, tuple(leave_out)):
            graph = graph_pass(graph).model
    return graph


def take_attention_quantizers_out(graph: ir.Model) -> None:
    """What switching them off does, for the price of no capture; a test compares the two."""
    for found in fake_quantizes(graph):
        if found.quantizer.rpartition(".")[2] in ATTENTION_QUANTIZERS:
            found.output.replace_all_uses_with(found.x)
            graph.graph.remove(found.node, safe=True)


def logits_of(case: Case, scope: Scope) -> Array:
    student = student_of(case)
    limit_scope(student, scope)
    with torch.no_grad():
        logits = student(images(5)).numpy()
    limit_scope(student, Scope.FULL)
    return logits


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_exports_pass_the_linter_of_their_target(case: Case, scope: Scope) -> None:
    # The tiny model has 10 classes; that ort-cuda takes the graph of ort-cpu is tested below.
    expected = {
        "trt": {"small-product"},
        "ort-cpu": set(),
        "ort-cuda": {"unfused-pairs"},
        "openvino": set(),
    }
    graphs = {name: graph_for(name, case, scope) for name in ("trt", "ort-cpu", "openvino")}
    for target in LINTERS:
        findings = lint_model(graphs.get(target, graphs["ort-cpu"]), target)
        assert [found for found in findings if found.severity is Severity.ERROR] == []
        assert {found.rule for found in findings} <= expected[target]


def test_cuda_gets_the_graph_of_the_cpu_and_openvino_begins_with_it() -> None:
    cpu, cuda, openvino = (TARGETS[name] for name in ("ort-cpu", "ort-cuda", "openvino"))
    assert (cuda.passes, cuda.opset) == (cpu.passes, cpu.opset)
    assert (openvino.passes[: len(cpu.passes)], openvino.opset) == (cpu.passes, cpu.opset)


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("name", ["vit-w8a8", "vit-w4a4-skewed"])
def test_what_openvino_adds_changes_no_value(name: str, scope: Scope) -> None:
    """By ONNX's reference evaluator, which knows no kernels: sums of three products for one."""
    cpu, openvino = (
        run_reference(graph_for(target, CASES[name], scope), FEEDS)[0]
        for target in ("ort-cpu", "openvino")
    )
    np.testing.assert_allclose(openvino, cpu, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_trt_means_what_ort_cpu_means_but_for_half_precision(case: Case, scope: Scope) -> None:
    """Shifts are taken out exactly: in single precision, and as written, the logits are equal."""
    single = graph_for("trt", case, scope, leave_out=[HalfScalesPass, HalfPrecisionPass])
    (expected,) = run_ort(graph_for("ort-cpu", case, scope), FEEDS, optimize=False)
    (got,) = run_ort(single, FEEDS, optimize=False)
    # Shifted sums round in single precision; a code that flipped would be a hundred times more.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [CASES["vit-w8a8-skewed"], CASES["vit-w4a8"]], ids=str)
def test_half_precision_of_trt_moves_less_than_quantization(case: Case) -> None:
    graph = graph_for("trt", case, Scope.LINEAR)
    (got,) = run_ort(graph, FEEDS, optimize=False)
    expected = logits_of(case, Scope.LINEAR)
    with torch.no_grad():
        exact = expose_attention(tiny_vit())(images(5)).numpy()
    noise = np.abs(expected - exact).mean()
    # Half precision flips codes near ties. Wrong scales or shifts move the logits by the noise
    # of quantization and more.
    assert np.abs(got - expected).mean() < 0.25 * noise
    (reference,) = run_reference(graph, {"images": FEEDS["images"][:2]})
    assert np.abs(reference - expected[:2]).mean() < 0.25 * noise


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_trt_has_half_products_of_int8_without_zero_points(case: Case, scope: Scope) -> None:
    graph = graph_for("trt", case, scope).graph
    counts = Counter(node.op_type for node in graph)
    quantizers = [node for node in graph if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    for node in quantizers:
        scale, zero = node.inputs[1].const_value.numpy(), node.inputs[2].const_value.numpy()
        assert scale.dtype == np.float16
        assert (zero.dtype, zero.shape, np.any(zero)) == (np.int8, scale.shape, False)
        assert ("axis" in node.attributes) == (scale.ndim == 1)
        assert node.inputs[0].dtype == (
            ir.DataType.FLOAT16 if node.op_type == "QuantizeLinear" else ir.DataType.INT8
        )
    for node in graph:
        if node.op_type in {"Conv", "Gemm", "MatMul"}:
            assert node.outputs[0].dtype == ir.DataType.FLOAT16
            direct = [value.producer().op_type for value in node.inputs[:2]]
            attention = "attn/MatMul" in node.name
            if scope is Scope.FULL or not attention:
                assert direct == ["DequantizeLinear"] * 2, node.name
        if node.op_type == "LayerNormalization":
            assert node.outputs[0].dtype == ir.DataType.FLOAT
    # Two products of attention in each of two blocks add four quantizers on activations each.
    activations = counts["QuantizeLinear"]
    assert activations == (len(list(activation_names(case))) - (8 if scope is Scope.LINEAR else 0))


def activation_names(case: Case) -> set[str]:
    names = {quantizer.name for quantizer in quantizers_of(student_of(case))}
    return {name for name in names if not name.endswith("weight_quantizer")}


def test_linear_scope_leaves_the_products_of_attention_in_floating_point(tmp_path: Path) -> None:
    graph = graph_for("ort-cpu", CASES["vit-w8a8"], Scope.LINEAR)
    names = {node.name.rpartition("/")[0].rpartition(".")[2] for node in graph.graph}
    assert not names & ATTENTION_QUANTIZERS
    optimized = tmp_path / "optimized.onnx"
    (logits,) = run_ort(graph, FEEDS, optimized_path=optimized)
    np.testing.assert_allclose(
        logits, logits_of(CASES["vit-w8a8"], Scope.LINEAR), rtol=0, atol=1e-5
    )
    counts = Counter(node.op_type for node in ir.load(optimized).graph)
    assert counts["MatMulIntegerToFloat"] + counts["QLinearMatMul"] == 1 + 2 * 4
    assert counts["MatMul"] + counts["FusedMatMul"] == 2 * 2


def test_a_limited_student_is_captured_without_quantizers_in_attention() -> None:
    case = CASES["vit-w8a8"]
    student = student_of(case)
    limit_scope(student, Scope.LINEAR)
    limited = capture(student, INPUT_SIZE)
    limit_scope(student, Scope.FULL)
    taken_out = ir.from_proto(onnx.ModelProto.FromString(captured(case)))
    take_attention_quantizers_out(taken_out)
    nodes = [
        [
            (node.name, node.op_type, [value.name for value in node.inputs if value])
            for node in graph
        ]
        for graph in (limited.graph, taken_out.graph)
    ]
    assert nodes[0] == nodes[1]


def test_scopes_are_switched_and_switched_back() -> None:
    student = student_of(CASES["vit-w8a8"])
    off = lambda: {each.name for each in quantizers_of(student) if not each.enabled}  # noqa: E731
    limit_scope(student, Scope.LINEAR)
    assert {name.rpartition(".")[2] for name in off()} == ATTENTION_QUANTIZERS
    limit_scope(student, Scope.FULL)
    assert off() == set()


def test_heads_are_taken_apart_without_slices() -> None:
    for target in ("ort-cpu", "trt"):
        graph = graph_for(target, CASES["vit-w8a8"], Scope.FULL)
        counts = Counter(node.op_type for node in graph.graph)
        assert (counts["Split"], counts["Squeeze"]) == (2, 0)
        # Per block: query, key (turned once for its product), value, merged heads. And patches.
        assert counts["Transpose"] == 2 * 4 + 1
        # 16 channels a head: a scale of 1/4, which folds; trt keeps it in front of the quantizer.
        assert counts["Mul"] == (0 if target == "ort-cpu" else 2 * 2)


@pytest.mark.parametrize(
    "name", ["vit-w8a8", "vit-w8a8-skewed", "vit-w4a4-skewed", "vit-w2a3"], ids=str
)
@pytest.mark.parametrize("scope", Scope)
def test_openvino_runs_every_layer_in_integers(name: str, scope: Scope, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "model.onnx"
    ir.save(graph_for("openvino", CASES[name], scope), path)
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [operation.get_rt_info() for operation in model.get_runtime_model().get_ops()]
    kinds = Counter(
        (kind, "integer" if precision in {"i8", "u8"} else precision)
        for kind, precision in (
            (text(fact, "layerType"), text(fact, "runtimePrecision")) for fact in facts
        )
    )
    # The patch embedding; q, k, v, proj, fc1, fc2 in each of two blocks; the head.
    assert kinds["FullyConnected", "integer"] == 1 + 2 * 6 + 1
    assert not kinds["FullyConnected", "f32"]
    if scope is Scope.FULL and "avx512_vnni" in describe_machine()["int8_instructions"]:
        # Attention as a whole: both products, the Softmax and the quantizers between them.
        assert kinds["Subgraph", "integer"] == 2
    logits = next(iter(model(FEEDS["images"]).values()))
    expected = logits_of(CASES[name], scope)
    # OpenVINO sums in another order: flips of codes move single images, not the agreement.
    noise = np.abs(expected).max()
    assert np.median(np.abs(logits - expected)) < 0.02 * noise


def text(fact: dict[str, object], key: str) -> str:
    value = fact[key]
    return str(getattr(value, "value", value))
