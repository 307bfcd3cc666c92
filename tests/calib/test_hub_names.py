"""Names on a hub: a folder stands in for it, behind the function that timm downloads with."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from _helpers.tiny_students import tiny_vit
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

from mimiq_calib.hub_names import describe_download, look_up
from mimiq_calib.recipe import Recipe
from mimiq_calib.run_models import load_student, load_teacher
from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

NAME = "hf-hub:somebody/tiny@v1"
ARGUMENTS = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
}
CONFIG: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 3,
    "model_args": ARGUMENTS,
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "label_names": ["n1", "n2", "n3"],
    },
    "label_descriptions": {"n1": "cat", "n3": "dog"},
}
RECIPE = {
    "name": "test",
    "quantization": {"weight_bits": 8, "activation_bits": 8},
    "synthesis": {"num_images": 2, "batch_size": 2, "source": "noise"},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    model = tiny_vit(**ARGUMENTS, num_classes=3)
    save_file(model.state_dict(), folder / "model.safetensors")

    def download(repo_id: str, filename: str, revision: str | None = None, **_: Any) -> str:
        assert (repo_id, revision) == ("somebody/tiny", "v1")
        if not (folder / filename).exists():
            raise EntryNotFoundError(filename)
        return str(folder / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    return folder


def test_a_plain_name_stands_for_itself() -> None:
    found = look_up("vit_tiny_patch16_224.augreg_in21k")
    assert (found.architecture, found.arguments, found.labels) == (
        "vit_tiny_patch16_224.augreg_in21k",
        {},
        None,
    )


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        (NAME, True, f"or else from hub.test: configuration and weights of {NAME};"),
        (NAME, False, f"or else from hub.test: configuration of {NAME};"),
        ("deit_tiny_patch16_224", True, "from hub.test (timm/deit_tiny_patch16_224.fb_in1k):"),
        ("deit_tiny_patch16_224", False, None),
        ("vit_base_patch16_18x2_224", True, None),
        ("nobodys_model", True, None),
    ],
)
def test_what_the_network_is_asked_for(
    name: str, weights: bool, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimiq_calib.hub_names.ENDPOINT", "https://hub.test")
    said = describe_download(name, weights=weights)
    assert said is None if says is None else says in (said or "")


def test_weights_that_no_hub_has(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = SimpleNamespace(hf_hub_id=None, url="https://files.test/tiny.pth")
    monkeypatch.setattr("mimiq_calib.hub_names.get_pretrained_cfg", lambda _: elsewhere)
    said = describe_download("deit_tiny_patch16_224", weights=True)
    assert said is not None
    assert "or else from files.test: pretrained weights of deit_tiny" in said


@pytest.mark.parametrize("name", [NAME, NAME.replace("hf-hub", "hf_hub")])
@pytest.mark.usefixtures("hub")
def test_a_name_on_a_hub(name: str) -> None:
    found = look_up(name)
    assert (found.architecture, found.arguments) == ("vit_tiny_patch16_224", ARGUMENTS)
    assert found.labels == ["cat", "n2", "dog"]


def test_a_run_of_it_needs_no_hub_later(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = CalibrationRequest(model=NAME, recipe=Recipe.model_validate(RECIPE))
    run = calibrate(request, tmp_path / "run")
    record, preprocessing = run.manifest.model, run.manifest.preprocessing
    assert (record.name, record.num_classes) == ("vit_tiny_patch16_224", 3)
    assert record.labels == ["cat", "n2", "dog"]
    assert record.weights.startswith(NAME)
    assert (preprocessing.input_size, preprocessing.mean) == ((3, 32, 32), (0.1, 0.2, 0.3))

    def gone(*_arguments: Any, **_others: Any) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", gone)
    weights = load_file(hub / "model.safetensors")
    expected = timm.create_model("vit_tiny_patch16_224", num_classes=3, **ARGUMENTS)
    expected.load_state_dict(weights)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(load_teacher(run)(x), expected.eval()(x))
        assert load_student(run)(x).shape == (2, 3)


def test_a_hub_that_is_not_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_arguments: Any, **_others: Any) -> str:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    request = CalibrationRequest(model=NAME, recipe=Recipe.model_validate(RECIPE))
    with pytest.raises(CheckpointError, match=r"could not be had \(We couldn't connect\)"):
        calibrate(request, tmp_path / "run")
    assert not (tmp_path / "run").exists()
