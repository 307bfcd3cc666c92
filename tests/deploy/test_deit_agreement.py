"""DeiT-T at four bits: ONNX Runtime and the reference on every photograph (MIMIQ_SHARED_DATA).

A file of its own, so that test_deit.py can run beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from _helpers.deit_runs import validate_deit
from _helpers.processor import has_avx512

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.shared_data

# Agreement needs no training and no images worth looking at.
UNTRAINED = (
    "synthesis.source=noise",
    "synthesis.num_images=16",
    "synthesis.held_out=0",
    "synthesis.dead_leaves=16",
    "observation.num_images=32",
    "fine_tuning=none",
)


@pytest.mark.parametrize("bits", ["w4a8", "w4a4"])
def test_the_engine_agrees_at_four_bits(shared_data: Path, tmp_path: Path, bits: str) -> None:
    """On every photograph, where a flipped code is a sixteenth of the range."""
    if not has_avx512():
        pytest.skip("the kernels that the reference imitates need a processor with AVX-512")
    report = validate_deit(shared_data, tmp_path / "run", bits, UNTRAINED)
    parity = report["engines"]["ort-cpu"]["parity"]["fake-quantized"]
    assert parity["n"] == 250
    assert parity["agreement"] >= 0.995
    # None: the logits are the same bits.
    assert parity["sqnr_db"] is None or parity["sqnr_db"] > 30
