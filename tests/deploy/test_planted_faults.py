"""Parity catches planted faults: each fails its gate, and ``--per-layer`` names the layer."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import torch
from _helpers.planted_faults import (
    change_scale,
    swap_two_weights,
    transpose_weight,
    wrong_normalisation,
)
from _helpers.tiny_students import tiny_vit
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from mimiq_calib.recipe import Recipe
from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_deploy.cli import cli
from mimiq_deploy.exporting import export_run
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME = "vit_tiny_patch16_224"
# Square heads: 16 tokens and a class token would be 17, so pooling instead, and 16 channels a head.
ARCHITECTURE = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "class_token": False,
    "global_pool": "avg",
}
RECIPE = {
    "name": "test",
    "quantization": {"weight_bits": 4, "activation_bits": 4},
    "synthesis": {"num_images": 16, "batch_size": 16, "source": "noise"},
    "observation": {"batch_size": 16},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny W4A4 model, exported for two engines; keys are square, so that turning shows."""
    folder = tmp_path_factory.mktemp("planted")
    save_file(tiny_vit(**ARCHITECTURE).state_dict(), folder / "weights.safetensors")
    request = CalibrationRequest(
        model=NAME,
        recipe=Recipe.model_validate(RECIPE),
        checkpoint=folder / "weights.safetensors",
        model_arguments=ARCHITECTURE,
    )
    finished = calibrate(request, folder / "run")
    export_run(finished, "ort-cpu")
    export_run(finished, "openvino")
    return folder / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def invoke(run: Path, *arguments: str | Path) -> Result:
    given = ["validate", run, "--threads", "1", *arguments]
    return CliRunner().invoke(cli, [str(argument) for argument in given])


def validate(run: Path, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    result = invoke(run, "--json", *arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


def onnx_of(run: Path) -> Path:
    return run / "export" / "ort-cpu" / "model.onnx"


def test_a_right_export_parts_nowhere(run: Path) -> None:
    code, report = validate(run, "--per-layer", "--min-sqnr", "50", "--max-kl", "1e-3")
    assert code == 0, report
    layers = report["engines"]["ort-cpu"]["layers"]
    assert (layers["first"], layers["not_compared"]) == (None, [])
    assert (layers["images"], layers["stepwise"], layers["undisturbed"]) == (16, True, 1.0)
    table = json.loads((run / "quantization.json").read_text())["tensors"]
    activations = [row["name"] for row in table if row["kind"] == "activation"]
    compared = [row["name"] for row in layers["rows"]]
    assert (compared[0], compared[-1]) == ("images", "logits")
    assert sorted(compared[1:-1]) == sorted(activations)
    # Every quantizer saw the engine's own inputs: a flip does not spread.
    assert all(row["equal"] > 0.999 for row in layers["rows"][:-1])


@pytest.mark.parametrize(
    ("plant", "tensor", "layer"),
    [
        pytest.param(
            lambda run: change_scale(onnx_of(run), "blocks.0.mlp.fc1.input_quantizer"),
            "blocks.0.mlp.fc1.input_quantizer",
            "blocks.0.mlp.fc1",
            id="scale",
        ),
        pytest.param(
            lambda run: change_scale(onnx_of(run), "blocks.1.attn.value_quantizer"),
            "blocks.1.attn.value_quantizer",
            "blocks.1.attn",
            id="scale-of-values",
        ),
        pytest.param(
            lambda run: change_scale(onnx_of(run), "blocks.1.mlp.fc1.weight_quantizer"),
            "blocks.1.mlp.fc2.input_quantizer",
            "blocks.1.mlp.fc1",
            id="scale-of-weights",
        ),
        pytest.param(
            lambda run: swap_two_weights(onnx_of(run), "blocks.1.mlp.fc1"),
            "blocks.1.mlp.fc2.input_quantizer",
            "blocks.1.mlp.fc1",
            id="two-weights",
        ),
        pytest.param(
            lambda run: swap_two_weights(onnx_of(run), "blocks.0.attn.proj"),
            "blocks.0.mlp.fc1.input_quantizer",
            "blocks.0.attn.proj",
            id="two-weights-before-a-sum",
        ),
        pytest.param(
            lambda run: transpose_weight(onnx_of(run), "head"), "logits", "head", id="head"
        ),
        pytest.param(wrong_normalisation, "images", "preprocessing", id="mean-and-std"),
    ],
)
def test_a_planted_fault_fails_its_gate_and_is_named(
    copy: Path, tmp_path: Path, plant: Callable[[Path], None], tensor: str, layer: str
) -> None:
    plant(copy)
    junit = tmp_path / "junit.xml"
    code, report = validate(copy, "--per-layer", "--min-sqnr", "50", "--junit", junit)
    engine = report["engines"]["ort-cpu"]
    assert code == 1, engine["recorded"]
    first = engine["layers"]["first"]
    assert (first["tensor"], first["layer"]) == (tensor, layer), engine["layers"]["rows"]
    text = ElementTree.parse(junit).findtext(".//failure") or ""
    assert "expected at least 50 dB" in text
    assert f"Look at {layer}: " in text


def test_wrong_normalisation_inside_the_graph_is_named(copy: Path) -> None:
    """The file takes pixels, and normalises them itself."""
    result = CliRunner().invoke(cli, ["export", str(copy), "--with-preprocessing"])
    assert result.exit_code == 0, result.output
    code, report = validate(copy, "--per-layer", "--min-sqnr", "50")
    assert code == 0
    assert report["engines"]["ort-cpu"]["layers"]["first"] is None
    wrong_normalisation(copy)
    _, report = validate(copy, "--data", "noise", "--per-layer")
    engine = report["engines"]["ort-cpu"]
    assert engine["layers"]["first"]["layer"] == "preprocessing"
    # Both sides see the same picture, and normalise it in two ways.
    assert engine["parity"]["fake-quantized"]["sqnr_db"] < 40


def test_the_same_in_openvino(copy: Path) -> None:
    # A sum in another order flips a few codes; a swap of weights costs far more.
    gate = ("--engine", "openvino", "--per-layer", "--min-sqnr", "25")
    code, report = validate(copy, *gate)
    assert code == 0, report["engines"]["openvino"]["gates"]
    layers = report["engines"]["openvino"]["layers"]
    assert (layers["first"], layers["not_compared"]) == (None, [])
    # OpenVINO sums in another order than the reference: a tie may flip in one image of sixteen.
    assert layers["undisturbed"] >= 0.9
    swap_two_weights(copy / "export" / "openvino" / "model.onnx", "blocks.0.mlp.fc2")
    code, report = validate(copy, *gate)
    assert code == 1, report["engines"]["openvino"]["gates"]
    assert report["engines"]["openvino"]["layers"]["first"]["layer"] == "blocks.0.mlp.fc2"


def test_two_engines_are_compared_without_a_torch_model(copy: Path) -> None:
    arguments = ("--engine", "openvino", "--against", "ort-cpu", "--data", "synthetic")
    code, report = validate(copy, *arguments, "--per-layer", "--max-kl", "100")
    assert code == 0, report
    engine = report["engines"]["openvino"]
    assert list(engine["parity"]) == ["ort-cpu"]
    assert engine["gates"][0]["against"] == "ort-cpu"
    assert engine["layers"]["stepwise"] is False
    # Both have every tensor. Where the first tie flips they part: nothing sets them right again.
    assert engine["layers"]["not_compared"] == []


def test_codes_that_one_engine_does_not_have_are_not_compared(copy: Path) -> None:
    export_run(RunDirectory.open(copy), "openvino", scope=Scope.LINEAR)
    _, report = validate(copy, "--engine", "openvino", "--against", "ort-cpu", "--per-layer")
    layers = report["engines"]["openvino"]["layers"]
    # With this scope the attention's products are in floating point: those have no codes there.
    assert "blocks.0.attn.key_quantizer" in layers["not_compared"]


@pytest.mark.parametrize(
    ("engine", "against", "expected"),
    [
        ("fp32", "fp32-torch", 90),
        ("fake-quantized", "fp32", 0),
        ("fake-quantized-float", "fake-quantized", 20),
        ("ort-cpu", "fp32-torch", 0),
    ],
)
def test_any_two_are_compared(copy: Path, engine: str, against: str, expected: float) -> None:
    code, report = validate(copy, "--engine", engine, "--against", against, "--max-kl", "10")
    assert code == 0
    (parity,) = report["engines"][engine]["parity"].values()
    assert parity["n"] == 16
    assert parity["sqnr_db"] is None or parity["sqnr_db"] > expected
    assert (report["data"]["kind"], report["data"]["labelled"]) == ("synthetic", False)


def test_noise_is_the_same_each_time(copy: Path) -> None:
    reports = [validate(copy, "--data", "noise", "--limit", "5")[1] for _ in range(2)]
    first, second = (report["engines"]["ort-cpu"]["parity"] for report in reports)
    assert first == second
    assert reports[0]["data"] == {"kind": "noise", "origin": "seed 0", "n": 5, "labelled": False}


def test_tables_name_the_layer(copy: Path, tmp_path: Path) -> None:
    transpose_weight(onnx_of(copy), "head")
    summary = tmp_path / "summary.md"
    result = invoke(copy, "--per-layer", "--min-agreement", "0.99", "--markdown", summary)
    assert "logits <--" in result.output
    assert "Look at head: " in result.output
    assert "Look at head: " in summary.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-drop", "1"], "max_drop needs labels, and the recorded images have none"),
        (["--data", "noise", "--min-accuracy", "0.5"], "noise here have none"),
        (["--per-layer", "--against", "fp32"], "fp32 has none; compare with fake-quantized"),
        (["--per-layer", "--engine", "fp32"], "fp32 is none; give an --engine"),
        (["--per-layer", "--engine", "trt"], "no tensor inside it can be read"),
        (["--per-layer", "--against", "ort-trt"], "no tensor inside it can be read"),
        (["--against", "abacus"], "expected one of ort-cpu"),
        (["--junit", "x.xml"], "none is set"),
        (["--min-agreement", "95"], "min_agreement"),
        (["--gates", "nowhere.yaml"], "nowhere.yaml"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_a_sentence(run: Path, arguments: list[str], words: str) -> None:
    result = invoke(run, *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert "Traceback" not in result.output
