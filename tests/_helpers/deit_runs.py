"""DeiT-T from its checkpoint to the validation of its engine on the photographs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from mimiq_deploy.cli import cli

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def validate_deit(
    shared_data: Path, run: Path, bits: str, settings: Sequence[str]
) -> dict[str, Any]:
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
