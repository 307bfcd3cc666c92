"""Real DeiT-T weights on real photographs, in ONNX Runtime (needs MIMIQ_SHARED_DATA)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from _helpers.processor import has_avx512
from click.testing import CliRunner

from mimiq_deploy.cli import cli

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.shared_data

# Enough for 8 bits; the whole quick recipe takes minutes and is run by benchmarks/.
SHORT = (
    "synthesis.num_images=16",
    "synthesis.iterations=40",
    "synthesis.held_out=0",
    "synthesis.dead_leaves=16",
    "observation.num_images=16",
    "reconstruction.iterations=10",
)


# Agreement needs no training and no images worth looking at.
UNTRAINED = (
    "synthesis.source=noise",
    "synthesis.num_images=16",
    "synthesis.held_out=0",
    "synthesis.dead_leaves=16",
    "observation.num_images=32",
    "fine_tuning=none",
)


def run_all(shared_data: Path, run: Path, bits: str, settings: Sequence[str]) -> dict[str, Any]:
    """Calibrate, export and validate on the photographs; what validate says as JSON."""
    weights = shared_data / "models" / "deit_tiny_patch16_224.safetensors"
    calibrate = ["calibrate", "deit_tiny_patch16_224", "--checkpoint", str(weights), "-o", str(run)]
    chosen = [part for setting in settings for part in ("--set", setting)]
    for step in (
        [*calibrate, "--bits", bits, *chosen],
        ["export", str(run)],
        ["validate", str(run), "--data", str(shared_data / "photos"), "--json"],
    ):
        result = CliRunner().invoke(cli, step)
        assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_eight_bits_keep_the_accuracy_of_deit_tiny(shared_data: Path, tmp_path: Path) -> None:
    report = run_all(shared_data, tmp_path / "run", "w8a8", SHORT)
    engine = report["engines"]["ort-cpu"]
    full_precision = report["references"]["full-precision"]["top1"]
    # timm's own figure on ImageNet is 72 %; these photographs were chosen to be recognisable.
    assert full_precision == pytest.approx(0.86, abs=0.005)
    # Shorter than any recipe: three points here, where the quick recipe must stay within 1.5.
    assert full_precision - engine["accuracy"]["top1"] <= 0.03
    assert engine["parity"]["fake-quantized"]["agreement"] >= 0.995


@pytest.mark.parametrize("bits", ["w4a8", "w4a4"])
def test_the_engine_agrees_at_four_bits(shared_data: Path, tmp_path: Path, bits: str) -> None:
    """On every photograph, where a flipped code is a sixteenth of the range."""
    if not has_avx512():
        pytest.skip("the kernels that the reference imitates need a processor with AVX-512")
    report = run_all(shared_data, tmp_path / "run", bits, UNTRAINED)
    parity = report["engines"]["ort-cpu"]["parity"]["fake-quantized"]
    assert parity["n"] == 250
    assert parity["agreement"] >= 0.995
    # None: the logits are the same bits.
    assert parity["sqnr_db"] is None or parity["sqnr_db"] > 30
