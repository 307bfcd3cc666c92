"""The demo's data, model and story."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mimiq_deploy.cli import cli
from mimiq_deploy.demo import story
from mimiq_deploy.demo.digits import load_digits_split, write_image_folder
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path


def test_the_model_reads_digits_it_never_saw() -> None:
    """With timm alone: at least 97 % on the held-out third, from weights under 2 MB."""
    description, weights = story.demo_model()
    assert weights.stat().st_size < 2_000_000
    model = timm.create_model(
        description["model"], num_classes=description["num_classes"], **description["model_args"]
    ).eval()
    model.load_state_dict(load_file(weights))
    digits = load_digits_split()
    images = torch.from_numpy(digits.test_images)[:, None].float() / 127.5 - 1
    with torch.inference_mode():
        answers = torch.cat([model(batch).argmax(1) for batch in images.split(100)])
    accuracy = float(np.mean(answers.numpy() == digits.test_labels))
    assert accuracy >= 0.97
    assert accuracy == pytest.approx(description["held_out_accuracy"], abs=2e-3)


def test_no_held_out_digit_is_in_the_training_part() -> None:
    """Scans are compared by content; the data set itself holds no scan twice."""
    digits = load_digits_split()
    training = {image.tobytes() for image in digits.train_images}
    held_out = {image.tobytes() for image in digits.test_images}
    assert len(training) == 1198
    assert len(held_out) == 599
    assert not training & held_out


def test_pictures_are_written_with_their_labels(tmp_path: Path) -> None:
    digits = load_digits_split()
    write_image_folder(digits.test_images[:3], digits.test_labels[:3], tmp_path)
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert lines == ["file,label"] + [
        f"{index:04d}.png,{label}" for index, label in enumerate(digits.test_labels[:3])
    ]


def test_the_story_is_told_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In short: few images and steps; the second telling calibrates nothing again."""
    short = ("synthesis.num_images=16", "synthesis.iterations=4", "distillation.epochs=1")
    real = story.load_recipe
    monkeypatch.setattr(
        story,
        "load_recipe",
        lambda name, *, bits, settings: (
            real(name, bits=bits, settings=(*settings[:-1], *short))
            if settings
            else real(name, bits=bits, settings=short)
        ),
    )
    result = CliRunner().invoke(cli, ["demo", "-o", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["pictures"] == 599
    assert [row["model"].split(",")[0] for row in report["rows"]] == [
        "FP32",
        "W4A4 plain on noise",
        "W4A4 MimiQ",
        "W4A4 MimiQ",
    ]
    assert report["rows"][0]["top1"] == pytest.approx(0.9883, abs=2e-3)
    assert report["rows"][0]["megabytes"] > 2 * report["rows"][-1]["megabytes"]
    assert RunDirectory.open(tmp_path / "mimiq-w4a4").damaged_files() == []
    written = (tmp_path / "mimiq-w4a4" / "quantized.safetensors").stat().st_mtime_ns
    again = CliRunner().invoke(cli, ["demo", "-o", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert "held-out handwritten digits" in again.output
    assert (tmp_path / "mimiq-w4a4" / "quantized.safetensors").stat().st_mtime_ns == written
