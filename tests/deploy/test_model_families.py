"""The whole way for each family of models: checkpoint, calibrate, export, ONNX Runtime."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from _helpers.onnx_graphs import run_ort
from _helpers.tiny_students import tiny_swin, tiny_vit
from click.testing import CliRunner
from safetensors.torch import save_file

from mimiq_calib.conversion.convert import quantizers_of
from mimiq_calib.recipe import Recipe
from mimiq_calib.run_models import load_student
from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_deploy.cli import cli
from mimiq_deploy.exporting import export_run
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

    from mimiq_runtime.run_directory import RunDirectory

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
SWIN = {
    "img_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 24,
    "depths": [2, 1],
    "num_heads": [2, 3],
}


@dataclass(frozen=True)
class Family:
    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def is_swin(self) -> bool:
        return self.name.startswith("swin")

    @property
    def architecture(self) -> dict[str, Any]:
        return (SWIN if self.is_swin else VIT) | self.arguments

    def model(self) -> nn.Module:
        build = tiny_swin if self.is_swin else tiny_vit
        return build(name=self.name, **self.architecture)


FAMILIES = [
    Family("distilled", "deit_tiny_distilled_patch16_224"),
    Family("deit3", "deit3_small_patch16_224"),
    Family("registers", "vit_small_patch14_reg4_dinov2"),
    Family("gap-qk-norm", "vit_medium_patch16_gap_256", {"qk_norm": True, "in_chans": 4}),
    Family("swin", "swin_tiny_patch4_window7_224"),
    Family("swin-padded", "swin_s3_tiny_224", {"window_size": 3, "in_chans": 2}),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(**synthesis: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "quantization": {"weight_bits": 4, "activation_bits": 4},
            "synthesis": {"num_images": 2, "batch_size": 2, "iterations": 2, "precision": "fp32"}
            | synthesis,
            "observation": {"batch_size": 2},
            "distillation": {"epochs": 1, "batch_size": 2, "precision": "fp32"},
        }
    )


def request_of(family: Family, place: Path, **synthesis: Any) -> CalibrationRequest:
    checkpoint = place / "weights.safetensors"
    save_file(family.model().state_dict(), checkpoint)
    return CalibrationRequest(
        model=family.name,
        recipe=recipe(**synthesis),
        checkpoint=checkpoint,
        model_arguments=family.architecture,
    )


@pytest.fixture(scope="module", params=FAMILIES, ids=[family.id for family in FAMILIES])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("family")
    finished = calibrate(request_of(request.param, folder), folder / "run")
    export_run(finished, "ort-cpu")
    return finished


def images(run: RunDirectory, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, *run.manifest.preprocessing.input_size, generator=generator)


def test_the_engine_gives_the_codes_of_torch(run: RunDirectory) -> None:
    """From the very same input, code by code, in every activation quantizer of the model."""
    student = load_student(run)
    quantizers = {q.name: q for q in quantizers_of(student) if q.kind is TensorKind.ACTIVATION}
    record = json.loads(run.path("export/ort-cpu/export.json").read_text())
    assert {row["quantizer"] for row in record["quantized"]} == {
        quantizer.name for quantizer in quantizers_of(student)
    }
    assert record["not_quantized"] == []
    path = run.path("export/ort-cpu/model.onnx")
    nodes = {node.name: node for node in onnx.load(path).graph.node}
    inputs = {
        name: (nodes.get(f"{name}/Clip") or nodes[f"{name}/QuantizeLinear"]).input[0]
        for name in quantizers
    }
    feeds = {"images": images(run, 3).numpy()}
    wanted = sorted({*inputs.values(), *(f"{name}/codes" for name in inputs)} - set(feeds))
    values = run_ort(ir.load(path), feeds, outputs=wanted, optimize=False)
    value = feeds | dict(zip(wanted, values, strict=True))
    for name, quantizer in quantizers.items():
        expected = quantizer.codes(torch.from_numpy(value[inputs[name]])).numpy()
        np.testing.assert_array_equal(value[f"{name}/codes"], expected, err_msg=name)


def test_the_engine_gives_the_logits_of_torch(run: RunDirectory) -> None:
    x = images(run, 4)
    with torch.no_grad():
        expected = load_student(run)(x).numpy()
    (logits,) = run_ort(run.path("export/ort-cpu/model.onnx"), {"images": x.numpy()})
    error = np.abs(logits - expected).max(axis=1)
    # A code at a tie may flip and shift others of its image (docs/parity.md): one may.
    np.testing.assert_array_less(np.sort(error)[:-1], 1e-5 * max(1.0, np.abs(expected).max()))


def test_inspect_says_that_every_product_is_quantized(run: RunDirectory) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(run.root), "--json"])
    assert result.exit_code == 0, result.output
    coverage = {group["kind"]: group for group in json.loads(result.output)["coverage"]}
    swin = run.manifest.model.name.startswith("swin")
    heads = 2 if "distilled" in run.manifest.model.name else 1
    blocks = 3 if swin else 1
    counts = {kind: (group["quantized"], group["products"]) for kind, group in coverage.items()}
    # qkv, proj, fc1, fc2 in each block; the heads; and Swin's reduction.
    linears = 4 * blocks + heads + (1 if swin else 0)
    assert counts == {
        "linear": (linears, linears),
        "convolution": (1, 1),
        "query-key": (blocks, blocks),
        "probability-value": (blocks, blocks),
    }
    assert all(group["others"] == [] for group in coverage.values())


def test_the_number_of_classes_comes_from_the_checkpoint(run: RunDirectory) -> None:
    assert run.manifest.model.num_classes == 10


@pytest.mark.parametrize("channels", [2, 4])
def test_pictures_for_other_channels_are_refused_before_anything_is_written(
    channels: int, tmp_path: Path
) -> None:
    family = Family("channels", "vit_tiny_patch16_224", {"in_chans": channels})
    request = request_of(family, tmp_path, source="folder", folder=str(tmp_path))
    with pytest.raises(InvalidInputError, match=f"got {channels}: this model cannot take"):
        calibrate(request, tmp_path / "run")
    assert not (tmp_path / "run").exists()
