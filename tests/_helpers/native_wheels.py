"""NVIDIA's own Python packages, unpacked beside the environment, over native libraries that do
nothing.

The bindings of TensorRT need nine C functions of three libraries to be imported; the libraries
made here have them, and each returns zero. So every class, enumeration and signature of the real
bindings can be looked at on a machine that has neither TensorRT nor a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LIBRARIES = {
    "nvinfer": """
        void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
        void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
        void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
        void *getBuilderPluginRegistry(int capability) { return 0; }
        void *getPluginRegistry(void) { return 0; }
    """,
    "nvinfer_plugin": "int initLibNvInferPlugins(void *logger, const char *name) { return 1; }",
    "nvonnxparser": """
        void *createNvOnnxParser_INTERNAL(void *net, void *logger, int version) { return 0; }
        void *createNvOnnxParserRefitter_INTERNAL(void *r, void *logger, int v) { return 0; }
        int getNvOnnxParserVersion(void) { return 0; }
    """,
}


def unpacked_wheel(requirement: str, cache: Path) -> Path:
    """Folder with the content of a wheel from the package index; kept in ``cache``.

    Skips the test, with the reason, where the index cannot be reached or has no such wheel.
    """
    # Bindings are compiled for one version of Python.
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    folder = cache / f"{requirement.replace('==', '-')}-{python}"
    done = folder / ".complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        wheel = _download(requirement, folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
        done.touch()
    return folder


def stub_libraries(major: int, folder: Path) -> Path:
    """Folder with TensorRT's three libraries of a major version, which do nothing."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stub of TensorRT's native libraries")
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in LIBRARIES.items():
        library = f"lib{name}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-w", "-x", "c", "-o", str(folder / library), "-"],
            input=source,
            text=True,
            check=True,
        )
    return folder


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    command += ["--retries", "1", "--timeout", "15", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{requirement}: the package index did not answer")
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        pytest.skip(f"{requirement} cannot be had from the package index: {reason}")
    return wheels[0]
