"""What calibrate says at its end about the cost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mimiq_deploy.estimation import describe_block_errors, describe_estimate
from mimiq_runtime.estimate import CostEstimate, caution, estimate_from_logits

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [1.0, 0.0]])
QUANTIZED = np.array([[4.0, 0.0], [0.0, 4.0], [0.0, 4.0], [1.0, 0.0]])


def cost(source: str) -> CostEstimate:
    blocks = {"blocks.0": 21.34, "blocks.1": None}
    return estimate_from_logits(REFERENCE, QUANTIZED, source=source, blocks=blocks, seed=0)


def test_agreement_divergence_and_sqnr_are_told() -> None:
    said = describe_estimate(cost("mimiq"), "w8a8")
    # One of four turned: p log(p / q) = (p - q) * 4 with p = 1 / (1 + e^-4), over four images.
    right = 1 / (1 + np.exp(-4))
    divergence = (right * 4 - (1 - right) * 4) / 4
    assert "agreement 75 %" in said
    assert f"KL divergence {divergence:.3g} nats" in said
    assert f"logit SQNR {10 * np.log10(49 / 32):.1f} dB" in said
    assert said.endswith("by 4 held-out images (mimiq), no photograph was seen")


def test_real_pictures_are_not_called_unseen() -> None:
    said = describe_estimate(cost("folder"), "w4a4")
    assert "no photograph" not in said
    assert said.endswith("by 4 held-out pictures of the folder that calibration did not see")


def rows_of_photographs() -> Iterator[tuple[str, float, float]]:
    """Bits, estimated and real share kept in per cent, by the tables on DeiT-Tiny."""
    page = (Path(__file__).parents[2] / "docs" / "estimate.md").read_text()
    page = page[page.index("**DeiT-Tiny**") :]
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0].startswith("W"):
            shares = [float(cell.split()[0]) for cell in cells if " %" in cell]
            yield cells[0].lower(), shares[0], shares[1]


def test_the_caution_is_what_was_measured() -> None:
    """Each run lies within what the sentence says of its bits, and where it says nothing, near."""
    rows = list(rows_of_photographs())
    assert {bits for bits, _, _ in rows} == {"w8a8", "w4a8", "w4a4"}
    for bits, estimated, real in rows:
        said = caution(bits, "mimiq")
        gap = round(estimated - real)
        if said is None:
            assert abs(gap) <= 2, (bits, estimated, real)
            continue
        told = re.fullmatch(
            rf"On photographs, DeiT-Tiny at {bits} kept (\d+)(?: to (\d+))? points less than "
            "estimated",
            said,
        )
        assert told is not None, said
        low = int(told[1])
        assert low <= gap <= int(told[2] or low), (bits, estimated, real)


@pytest.mark.parametrize(
    ("bits", "measured"),
    [
        *(("w8a8", None), ("w7a8", "w4a8"), ("w2a8", "w4a8"), ("w8a7", "w4a4"), ("w2a2", "w4a4")),
        ("wide", None),
    ],
)
def test_fewer_than_8_bits_are_told_of(bits: str, measured: str | None) -> None:
    said = describe_estimate(cost("mimiq"), bits)
    last = said.partition("no photograph was seen")[2]
    if measured is None:
        assert last == ""
    else:
        assert last.startswith(f". On photographs, DeiT-Tiny at {measured} kept ")


@pytest.mark.parametrize(("number", "shown"), [(0, "blocks.0 21.3"), (1, "blocks.1 -")])
def test_blocks_are_told_one_by_one(number: int, shown: str) -> None:
    assert describe_block_errors(cost("mimiq")).split(", ")[number] == shown
