from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import torch
from _helpers.onnx_graphs import run_ort
from _helpers.tiny_students import (
    INPUT_SIZE,
    images,
    tiny_student,
    tiny_swin,
    tiny_swin_student,
    tiny_teacher,
    tiny_vit,
)
from torch import Tensor, nn

from mimiq_calib.conversion.convert import build_student, expose_attention, quantizers_of
from mimiq_calib.recipe import QuantizationSettings
from mimiq_export.capture import capture
from mimiq_export.fake_quantize import fake_quantizes
from mimiq_runtime.errors import UnsupportedModelError


@pytest.fixture(scope="module")
def captured() -> ir.Model:
    return capture(tiny_student(4, 4), INPUT_SIZE)


def test_every_quantizer_becomes_one_node_with_its_scale_and_grid(captured: ir.Model) -> None:
    found = {fake.quantizer: fake for fake in fake_quantizes(captured)}
    quantizers = list(quantizers_of(tiny_student(4, 4)))
    assert len(quantizers) == 28
    assert set(found) == {quantizer.name for quantizer in quantizers}
    for quantizer in quantizers:
        fake = found[quantizer.name]
        assert (fake.grid, fake.axis) == (quantizer.grid, quantizer.axis)
        np.testing.assert_array_equal(fake.scale, quantizer.scale.detach().numpy())
        assert fake.is_weight == quantizer.name.endswith("weight_quantizer")


def test_layer_norm_and_gelu_stay_whole(captured: ir.Model) -> None:
    counts = Counter(node.op_type for node in captured.graph)
    assert (counts["LayerNormalization"], counts["Gelu"], counts["Softmax"]) == (5, 2, 2)
    assert not {"Erf", "ReduceMean", "Pow", "Sqrt", "Constant", "Identity"} & set(counts)
    # One size computation in all: how often the class token is repeated.
    assert counts["Shape"] == 1


def test_interface_is_named_and_the_batch_is_free(captured: ir.Model) -> None:
    (image,), (logits,) = captured.graph.inputs, captured.graph.outputs
    assert (image.name, str(image.shape)) == ("images", "[batch,3,32,32]")
    assert (logits.name, str(logits.shape)) == ("logits", "[batch,10]")


def test_nodes_are_named_after_modules(captured: ir.Model) -> None:
    names = [node.name for node in captured.graph]
    assert len(set(names)) == len(names)
    assert {
        "patch_embed.proj/Conv",
        "blocks.1.attn.qkv/MatMul",
        "blocks.1.attn.query_quantizer/FakeQuantize",
        "blocks.1.mlp.act/Gelu",
        "norm/LayerNormalization",
        "head/Gemm",
    } < set(names)
    assert not [name for name in names if "symbolic" in name or "node_" in name]


def test_nothing_of_this_machine_is_left_in_the_graph(captured: ir.Model) -> None:
    assert b"site-packages" not in ir.to_proto(captured).SerializeToString()


def test_equal_parameters_keep_their_own_names() -> None:
    """As timm initializes them, biases are zeros and LayerNorm weights ones: all are equal."""
    model = tiny_vit()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.constant_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0)
    teacher = expose_attention(model)
    student = build_student(teacher, QuantizationSettings(weight_bits=4, activation_bits=4))
    graph = capture(student, INPUT_SIZE).graph
    parameters = {name for name, _ in student.named_parameters()}
    # A bias of zeros is left out where the operator can do without.
    assert parameters - set(graph.initializers) <= {"head.bias", "patch_embed.proj.bias"}
    for node in graph:
        if node.op_type == "LayerNormalization":
            module = node.name.removesuffix("/LayerNormalization")
            names = [value.name for value in node.inputs[1:]]
            assert names == [f"{module}.weight", f"{module}.bias"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "deit_tiny_distilled_patch16_224", "depth": 1},
        {"depth": 1, "global_pool": "avg", "class_token": False},
        {"depth": 1, "qkv_bias": False, "init_values": 0.1},
        {"depths": (2, 1)},
        {"depths": (2, 1), "window_size": 3},
    ],
    ids=["distilled", "average-pooling", "layer-scale", "swin", "swin-padded"],
)
def test_other_architectures_mean_the_same(arguments: dict[str, object]) -> None:
    model = tiny_swin(**arguments) if "depths" in arguments else tiny_vit(**arguments)
    graph = capture(expose_attention(model), INPUT_SIZE)
    with torch.no_grad():
        expected = model(images(3)).numpy()
    # Single precision, another order of summation.
    np.testing.assert_allclose(
        run_ort(graph, {"images": images(3).numpy()})[0], expected, atol=1e-5
    )


def test_what_swin_computes_from_constants_is_computed_once() -> None:
    graph = capture(tiny_swin_student(8, 8), INPUT_SIZE).graph
    counts = Counter(node.op_type for node in graph)
    # No index into the table of relative positions, no pad of a grid that needs none.
    assert not {"Gather", "GatherND", "Pad", "Shape", "Constant", "Identity"} & set(counts)
    blocks = [f"layers.{stage}.blocks.{block}.attn/Add" for stage in (0, 1) for block in (0, 1)]
    adds = {node.name: node for node in graph if node.name in blocks}
    for name in blocks:
        assert adds[name].inputs[1].name == f"{name}_constant"


def test_capture_is_silent_and_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    student = tiny_student(8, 8)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    capture(student, INPUT_SIZE)
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_a_disabled_quantizer_leaves_no_node() -> None:
    student = build_student(tiny_teacher(), QuantizationSettings(weight_bits=4, activation_bits=4))
    for quantizer in quantizers_of(student):
        quantizer.enabled = False
    graph = capture(student, INPUT_SIZE)
    assert list(fake_quantizes(graph)) == []


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        capture(nn.Linear(2, 2).train(), INPUT_SIZE)


def test_an_interruption_that_torch_takes_for_a_fault_stays_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C while the graph is decomposed comes out as an error of the exporter."""

    def interrupted(*_: object, **__: object) -> None:
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as error:
                raise RuntimeError("while it ran a node") from error
        except RuntimeError as error:
            raise torch.onnx.OnnxExporterError("Failed to decompose the FX graph") from error

    monkeypatch.setattr(torch.onnx, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture(nn.Linear(2, 2).eval(), INPUT_SIZE)


def test_a_model_that_torch_cannot_capture_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight if x.sum() > 0 else x

    with pytest.raises(UnsupportedModelError, match="Branching: torch cannot capture it"):
        capture(Branching().eval(), INPUT_SIZE)
