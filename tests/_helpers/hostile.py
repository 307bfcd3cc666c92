"""What every hostile file must come to: one sentence, exit code 2, and nothing else."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import timm  # noqa: F401  what libraries take when they are loaded is not the hostile file's
import torch  # noqa: F401
from click.testing import CliRunner

from mimiq_deploy.cli import cli

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_MIB = 600
"""A picture of the largest allowed size in RGB and as an array, with room to spare."""


def refused(arguments: Sequence[object], outside: Path) -> str:
    """Run a command that must refuse what it is given; the sentence.

    Args:
        arguments: Of ``mimiq-deploy``.
        outside: A folder that must be left as it is.
    """
    before = _snapshot(outside)
    peak = _peak_mib()
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in result.output
    assert _peak_mib() - peak < MOST_MIB
    assert _snapshot(outside) == before
    return lines[0]


def _snapshot(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else None,
            path.lstat().st_mtime_ns,
        )
        for path in folder.rglob("*")
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
