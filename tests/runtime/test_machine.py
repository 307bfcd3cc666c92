from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING

import pytest

from mimiq_runtime import machine
from mimiq_runtime.machine import describe_machine, library_versions, usable_cores

if TYPE_CHECKING:
    from pathlib import Path

X86 = """processor : 0
model name : Test CPU @ 1 GHz
flags : fpu sse avx512_vnni amx_int8

processor : 1
model name : Another one
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


def test_cpuinfo_of_x86(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(X86)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_BOARD", tmp_path / "none")
    found = describe_machine()
    assert found["cpu"] == "Test CPU @ 1 GHz"
    assert found["int8_instructions"] == "avx512_vnni amx_int8"
    assert found["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert "board" not in found


def test_board_with_an_arm_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(ARM)
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_BOARD", tmp_path / "model")
    found = describe_machine()
    assert found["board"] == "NVIDIA Jetson Orin Nano"
    assert found["int8_instructions"] == "asimddp"
    assert found["cpu"] == (platform.processor() or platform.machine())


def test_without_proc_everything_still_has_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    found = describe_machine()
    assert [key for key, value in found.items() if not value] == []
    assert found["int8_instructions"] == "none known"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_cores_are_those_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
        assert describe_machine()["cores"] == "1"
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores() == len(before)


def test_library_versions_come_without_an_import() -> None:
    import numpy as np

    assert library_versions(["numpy", "no-such-distribution-here"]) == {"numpy": np.__version__}
