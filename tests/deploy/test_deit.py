"""Real DeiT-T weights on real photographs, in ONNX Runtime (needs MIMIQ_SHARED_DATA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _helpers.deit_runs import validate_deit

if TYPE_CHECKING:
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


def test_eight_bits_keep_the_accuracy_of_deit_tiny(shared_data: Path, tmp_path: Path) -> None:
    report = validate_deit(shared_data, tmp_path / "run", "w8a8", SHORT)
    engine = report["engines"]["ort-cpu"]
    full_precision = report["references"]["full-precision"]["top1"]
    # timm's own figure on ImageNet is 72 %; these photographs were chosen to be recognisable.
    assert full_precision == pytest.approx(0.86, abs=0.005)
    # Shorter than any recipe: three points here, where the quick recipe must stay within 1.5.
    assert full_precision - engine["accuracy"]["top1"] <= 0.03
    assert engine["parity"]["fake-quantized"]["agreement"] >= 0.995
