"""What calibrate says at its end about the cost."""

from __future__ import annotations

import numpy as np
import pytest

from mimiq_deploy.estimation import describe_block_errors, describe_estimate
from mimiq_runtime.estimate import CostEstimate, estimate_from_logits

REFERENCE = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [1.0, 0.0]])
QUANTIZED = np.array([[4.0, 0.0], [0.0, 4.0], [0.0, 4.0], [1.0, 0.0]])


def cost(source: str) -> CostEstimate:
    blocks = {"blocks.0": 21.34, "blocks.1": None}
    return estimate_from_logits(REFERENCE, QUANTIZED, source=source, blocks=blocks, seed=0)


def test_agreement_divergence_and_sqnr_are_told() -> None:
    said = describe_estimate(cost("mimiq"))
    # One of four turned: p log(p / q) = (p - q) * 4 with p = 1 / (1 + e^-4), over four images.
    right = 1 / (1 + np.exp(-4))
    divergence = (right * 4 - (1 - right) * 4) / 4
    assert "agreement 75 %" in said
    assert f"KL divergence {divergence:.3g} nats" in said
    assert f"logit SQNR {10 * np.log10(49 / 32):.1f} dB" in said
    assert said.endswith("by 4 held-out images (mimiq), no photograph was seen")


def test_real_pictures_are_not_called_unseen() -> None:
    said = describe_estimate(cost("folder"))
    assert "no photograph" not in said
    assert said.endswith("by 4 held-out pictures of the folder that calibration did not see")


@pytest.mark.parametrize(("number", "shown"), [(0, "blocks.0 21.3"), (1, "blocks.1 -")])
def test_blocks_are_told_one_by_one(number: int, shown: str) -> None:
    assert describe_block_errors(cost("mimiq")).split(", ")[number] == shown
