"""Fixtures and rules for all tests."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

SHARED_DATA = "MIMIQ_SHARED_DATA"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    reasons = {
        "shared_data": None
        if os.environ.get(SHARED_DATA)
        else f"needs DeiT-T weights and photographs in the folder that {SHARED_DATA} names",
        "gpu": None if _has_nvidia_gpu() else "needs an NVIDIA GPU",
        "trt": None if _has_nvidia_gpu() and _has_tensorrt() else "needs TensorRT and a GPU",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with ``models/deit_tiny_patch16_224.safetensors`` and ``photos/labels.csv``."""
    return Path(os.environ[SHARED_DATA])


def _has_tensorrt() -> bool:
    return importlib.util.find_spec("tensorrt") is not None


def _has_nvidia_gpu() -> bool:
    return Path("/dev/nvidia0").exists()
