"""``mimiq-deploy doctor``: machine, extras, conflicts, capabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement as ReferenceRequirement
from packaging.specifiers import SpecifierSet

from mimiq_deploy.cli import cli
from mimiq_runtime import doctor, extras
from mimiq_runtime.doctor import CAPABILITIES, OnnxRuntimeState, capabilities, conflicts
from mimiq_runtime.extras import (
    ExtraState,
    State,
    describe_extras,
    parse_requirement,
    satisfies,
)
from mimiq_runtime.hardware import cpu_instructions, nvidia_gpus

if TYPE_CHECKING:
    from pathlib import Path

NOTHING: dict[str, str | None] = dict.fromkeys(
    ("onnxruntime", "onnxruntime-gpu", "torch", "torchvision")
)
COMMANDS = ("calibrate", "export", "build", "report", "demo")
CPU_ONLY = OnnxRuntimeState(providers=["CPUExecutionProvider"])


def run_doctor(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments])


def all_extras(*missing: str) -> list[ExtraState]:
    return [
        ExtraState(
            name=name,
            state=State.MISSING if name in missing else State.INSTALLED,
            libraries=[],
            remedy=f"pip install {name}" if name in missing else None,
        )
        for name in extras.EXTRAS
    ]


def state_of(found: list[ExtraState], name: str) -> ExtraState:
    return next(extra for extra in found if extra.name == name)


@pytest.mark.parametrize("bounds", [">=2.9", ">2.9", "<=2.9", "<2.9", "==2.9", "!=2.9", ">=2,<3"])
@pytest.mark.parametrize(
    "version", ["2.8.9", "2.9", "2.9.0", "2.9.0rc1", "2.9.1", "2.10.0+cu130", "2.10", "3.0", "10"]
)
def test_satisfies_as_packaging_does(version: str, bounds: str) -> None:
    expected = SpecifierSet(bounds).contains(version, prereleases=True)
    # packaging holds a pre-release of the bound itself against "<": PEP 440's exception.
    if (version, bounds) == ("2.9.0rc1", "<2.9"):
        expected = True
    assert satisfies(version, bounds) == expected


@pytest.mark.parametrize("version", ["unknown", "2.9"])
@pytest.mark.parametrize("bounds", ["", "~=3.0", "==3.*"])
def test_what_cannot_be_read_is_no_illness(version: str, bounds: str) -> None:
    assert satisfies(version, bounds)


@pytest.mark.parametrize(
    "distribution", ["mimiq-deploy", "torchvision", "onnxruntime", "openvino", "timm", "pytest"]
)
def test_requirements_are_read_as_packaging_does(distribution: str) -> None:
    for line in metadata.requires(distribution) or []:
        reference = ReferenceRequirement(line)
        found = parse_requirement(line)
        assert found is not None, line
        assert found.name == reference.name
        assert SpecifierSet(found.bounds) == reference.specifier
        marker = str(reference.marker or "")
        assert (found.extra is not None) == ("extra" in marker)
        assert found.extra is None or f'"{found.extra}"' in marker


def test_a_line_of_another_form_is_passed_over() -> None:
    assert parse_requirement("thing @ https://example.org/thing.whl") is None


def test_export_asks_for_what_calib_asks_for() -> None:
    libraries = {item.name: item for item in state_of(describe_extras(), "export").libraries}
    assert {"torch", "timm", "onnx", "onnx-ir"} <= set(libraries)
    assert libraries["onnx"].version == metadata.version("onnx")
    assert libraries["onnx"].bounds.startswith(">=1.")


@pytest.mark.parametrize(
    ("version", "state", "remedy"),
    [
        ("9.0", State.INSTALLED, None),
        ("0.1", State.TOO_OLD, "pip install --upgrade 'mimiq-deploy[ort]'"),
        (None, State.MISSING, "pip install 'mimiq-deploy[ort]'"),
    ],
    ids=["new", "old", "missing"],
)
def test_states_of_an_extra(
    monkeypatch: pytest.MonkeyPatch, version: str | None, state: State, remedy: str | None
) -> None:
    monkeypatch.setattr(extras, "installed_version", lambda name: version)
    extra = state_of(describe_extras(), "ort")
    assert (extra.state, extra.remedy) == (state, remedy)
    assert extra.libraries[0].version == version


def test_a_source_tree_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "DISTRIBUTION", "mimiq-deploy-that-nobody-installed")
    assert describe_extras() == []
    calibrate = capabilities([], CPU_ONLY, has_gpu=False, commands=COMMANDS)[0]
    assert calibrate.missing == ["mimiq-deploy is not installed: pip install 'mimiq-deploy[calib]'"]


def test_x86_instructions() -> None:
    cpuinfo = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx_vnni\n\nprocessor: 1\nflags: fpu\n"
    assert cpu_instructions(cpuinfo) == {
        "AVX2": True,
        "AVX-512": True,
        "VNNI": True,
        "AMX": False,
        "bf16": False,
    }


def test_arm_instructions() -> None:
    cpuinfo = "processor : 0\nFeatures : fp asimd asimddp\n"
    assert cpu_instructions(cpuinfo) == {"dotprod": True, "i8mm": False, "bf16": False}


def test_unknown_instructions() -> None:
    assert cpu_instructions("processor : 0\nisa : rv64imafdc\n") is None


def test_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.1, 143771 MiB, 9.0'\necho 'odd line'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [gpu.model_dump() for gpu in nvidia_gpus()] == [
        {
            "name": "NVIDIA H200",
            "driver": "580.1",
            "memory": "143771 MiB",
            "compute_capability": "9.0",
        }
    ]
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.1, 1 MiB, 9.0'\nexit 9\n")
    assert nvidia_gpus() == []


def test_no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpus() == []


@pytest.mark.parametrize(
    ("versions", "torch_bounds", "words"),
    [
        ({"onnxruntime": "1.20", "onnxruntime-gpu": "1.20"}, "", "both installed"),
        ({"torch": "2.10.0", "torchvision": "0.24"}, "==2.9.0", "asks for torch ==2.9.0"),
    ],
    ids=["two runtimes", "torchvision"],
)
def test_conflicts(versions: dict[str, str], torch_bounds: str, words: str) -> None:
    (sentence,) = conflicts({**NOTHING, **versions}, torch_bounds)
    assert words in sentence


@pytest.mark.parametrize(
    "versions",
    [
        {"onnxruntime": "1.20"},
        {"onnxruntime-gpu": "1.20"},
        {"torch": "2.9.0+cu130", "torchvision": "0.24"},
        {"torch": "2.10.0"},
    ],
    ids=str,
)
def test_no_conflict(versions: dict[str, str]) -> None:
    assert conflicts({**NOTHING, **versions}, "==2.9.0") == []


def ready(found: list[doctor.Capability]) -> set[str]:
    return {item.name for item in found if item.ready}


def found_with(
    installed: list[ExtraState],
    runtime: OnnxRuntimeState,
    *,
    has_gpu: bool,
    commands: tuple[str, ...] = COMMANDS,
) -> list[doctor.Capability]:
    return capabilities(installed, runtime, has_gpu=has_gpu, commands=commands)


GPU_RUNTIME = OnnxRuntimeState(
    providers=["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
)


def test_capabilities_follow_what_is_there() -> None:
    assert ready(found_with(all_extras(), GPU_RUNTIME, has_gpu=True)) == set(CAPABILITIES)
    assert ready(found_with(all_extras(), GPU_RUNTIME, has_gpu=False)) == set(CAPABILITIES) - {
        *("build-trt", "ort-cuda", "ort-trt", "trt")
    }
    no_runtime = OnnxRuntimeState(providers=[], error="broken")
    edge = found_with(all_extras("calib", "export", "demo"), no_runtime, has_gpu=True)
    assert ready(edge) == {"build-trt", "trt", "openvino", "report"}
    ort_cpu = next(item for item in edge if item.name == "ort-cpu")
    assert ort_cpu.missing == ["broken: pip install 'mimiq-deploy[ort]'"]


def test_an_engine_that_is_not_there_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "known_engines", lambda: ("ort-cpu",))
    found = found_with(all_extras(), CPU_ONLY, has_gpu=True)
    assert "openvino" not in ready(found)
    assert "ort-cpu" in ready(found)


@pytest.mark.parametrize("name", ["build-trt", "report", "calibrate"])
def test_a_command_that_is_not_there_is_not_ready(name: str) -> None:
    """Libraries alone make nobody able to run a command that does not exist."""
    command = {"build-trt": "build"}.get(name, name)
    others = tuple(other for other in COMMANDS if other != command)
    found = found_with(all_extras(), GPU_RUNTIME, has_gpu=True, commands=others)
    assert ready(found) == set(CAPABILITIES) - {name}
    (capability,) = [item for item in found if item.name == name]
    assert capability.missing == [f"this version of mimiq-deploy has no command {command}"]


def test_a_provider_for_another_tensorrt_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    mismatch = GPU_RUNTIME.model_copy(update={"tensorrt_mismatch": "linked against TensorRT 10"})
    found = found_with(all_extras(), mismatch, has_gpu=True)
    assert ready(found) == set(CAPABILITIES) - {"ort-trt"}
    monkeypatch.setattr(doctor, "installed_version", lambda name: "11.0.1")
    assert doctor._tensorrt_warnings(mismatch) == ["linked against TensorRT 10"]
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    assert doctor._tensorrt_warnings(mismatch) == []


@pytest.mark.parametrize("version", ["10.2.0", "12.0"])
def test_a_tensorrt_that_is_not_known_is_not_ready(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: version)
    found = found_with(all_extras(), GPU_RUNTIME, has_gpu=True)
    assert ready(found) == set(CAPABILITIES) - {"build-trt", "trt"}
    assert f"got {version}" in next(item for item in found if item.name == "trt").missing[0]


def test_json_of_this_machine() -> None:
    result = run_doctor("--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["python"] == sys.version.split()[0]
    assert found["cores"] >= 1
    assert [extra["name"] for extra in found["extras"]] == list(extras.EXTRAS)
    assert [item["name"] for item in found["capabilities"]] == list(CAPABILITIES)
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]


def test_tables_of_this_machine() -> None:
    result = run_doctor()
    assert result.exit_code == 0, result.output
    for words in ("Python", "Extras", "openvino", "What this machine is ready for", "ort-cpu"):
        assert words in result.output


def test_a_requirement_that_is_met() -> None:
    assert run_doctor("--require", "ort-cpu", "--require", "export").exit_code == 0


def test_a_requirement_that_is_not_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "nvidia_gpus", list)
    result = run_doctor("--require", "ort-cpu", "--require", "trt")
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: This machine lacks what was required: trt is not ready (")
    assert "nvidia-smi" in last
    assert "ort-cpu" not in last


def test_an_unknown_requirement() -> None:
    result = run_doctor("--require", "time-travel")
    assert result.exit_code == 2
    assert result.output.startswith("Error: Expected one of the capabilities")


def test_warnings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.20")
    assert "Warning: onnxruntime and onnxruntime-gpu are both" in run_doctor().output


def test_a_broken_onnxruntime_is_no_traceback(tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libcudart.so: no such file')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.modules['torch'] = None\n"
        "from mimiq_runtime.doctor import diagnose\n"
        "print(diagnose([]).onnxruntime.error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.stdout == ("ONNX Runtime cannot be imported (libcudart.so: no such file)\n"), (
        result.stderr
    )
