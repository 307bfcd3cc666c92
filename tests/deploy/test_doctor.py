"""``mimiq-deploy doctor``: machine, extras, conflicts, capabilities."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement as ReferenceRequirement
from packaging.specifiers import SpecifierSet

from mimiq_deploy.cli import cli
from mimiq_runtime import doctor, extras, library_conflicts
from mimiq_runtime.doctor import (
    CAPABILITIES,
    CudaState,
    OnnxRuntimeState,
    capabilities,
    gpu_fault,
)
from mimiq_runtime.extras import (
    ExtraState,
    State,
    describe_extras,
    parse_requirement,
    satisfies,
)
from mimiq_runtime.hardware import Gpu, cpu_instructions, nvidia_gpus
from mimiq_runtime.import_probe import CUDA_DRIVER, CUDA_PROVIDER
from mimiq_runtime.library_conflicts import CONFLICTING, conflicts
from mimiq_runtime.library_probe import LibraryProbe, probe_libraries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOTHING: dict[str, str | None] = dict.fromkeys(CONFLICTING)
COMMANDS = ("calibrate", "export", "build", "report", "demo")
CPU_ONLY = OnnxRuntimeState(providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def probed() -> dict[str, LibraryProbe]:
    """What the libraries of this environment really do; once, as torch takes seconds."""
    return probe_libraries()


@pytest.fixture
def machine(
    probed: dict[str, LibraryProbe], monkeypatch: pytest.MonkeyPatch
) -> dict[str, LibraryProbe]:
    """What ``doctor`` finds when it imports the libraries; may be changed."""
    found = dict(probed)
    monkeypatch.setattr(doctor, "probe_libraries", lambda: found)
    return found


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
    calibrate = found_with([], CPU_ONLY, has_gpu=False)[0]
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
    ("versions", "words"),
    [
        (
            {"onnxruntime": "1.20", "onnxruntime-gpu": "1.20"},
            (
                "both installed and overwrite each other's files: pip uninstall -y onnxruntime "
                "onnxruntime-gpu, then pip install 'mimiq-deploy[ort-gpu]' for a GPU"
            ),
        ),
        ({"torch": "2.10.0", "torchvision": "0.24"}, "asks for torch ==2.9.0"),
        (
            {"tensorrt-cu12": "10.13.2", "tensorrt-cu13": "11.4.0"},
            "tensorrt-cu12 10.13.2 and tensorrt-cu13 11.4.0 are both installed",
        ),
        (
            {"tensorrt-cu13": "11.4.0"},
            (
                "driver here supports CUDA 12.8: update the driver, or pip uninstall -y tensorrt "
                "tensorrt-cu13, then pip install tensorrt-cu12 'cuda-python<13'"
            ),
        ),
    ],
    ids=["two runtimes", "torchvision", "two TensorRTs", "a TensorRT for a newer driver"],
)
def test_conflicts(versions: dict[str, str], words: str) -> None:
    (sentence,) = conflicts({**NOTHING, **versions}, torch_bounds="==2.9.0", cuda="12.8")
    assert words in sentence


@pytest.mark.parametrize(
    "versions",
    [
        {"onnxruntime": "1.20"},
        {"onnxruntime-gpu": "1.20"},
        {"torch": "2.9.0+cu130", "torchvision": "0.24"},
        {"torch": "2.10.0"},
        {"tensorrt-cu12": "10.13.2"},
    ],
    ids=str,
)
def test_no_conflict(versions: dict[str, str]) -> None:
    assert conflicts({**NOTHING, **versions}, torch_bounds="==2.9.0", cuda="12.8") == []


@pytest.mark.parametrize("cuda", ["13.0", None])
def test_no_conflict_with_a_driver_that_is_new_or_not_there(cuda: str | None) -> None:
    assert conflicts({**NOTHING, "tensorrt-cu13": "11.4.0"}, cuda=cuda) == []


def ready(found: list[doctor.Capability]) -> set[str]:
    return {item.name for item in found if item.ready}


def found_with(
    installed: list[ExtraState],
    runtime: OnnxRuntimeState,
    *,
    has_gpu: bool,
    commands: tuple[str, ...] = COMMANDS,
    **broken: str,
) -> list[doctor.Capability]:
    fault = None if has_gpu else "no GPU"
    return capabilities(installed, runtime, gpu_fault=fault, commands=commands, broken=broken)


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


@pytest.mark.parametrize(
    ("module", "lost", "remedy"),
    [
        ("torch", {"calibrate", "export", "demo"}, "--force-reinstall 'mimiq-deploy[calib]'"),
        ("tensorrt", {"build-trt", "trt", "ort-trt"}, "--force-reinstall 'mimiq-deploy[trt]'"),
        ("polygraphy.backend.trt", {"build-trt"}, "--force-reinstall 'mimiq-deploy[trt]'"),
        (CUDA_PROVIDER, {"ort-cuda", "ort-trt"}, "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        ("sklearn", {"demo"}, "--force-reinstall 'mimiq-deploy[demo]'"),
    ],
)
def test_a_library_that_is_broken_makes_nothing_ready(
    module: str, lost: set[str], remedy: str
) -> None:
    found = found_with(all_extras(), GPU_RUNTIME, has_gpu=True, **{module: "it crashes"})
    assert set(CAPABILITIES) - ready(found) == lost
    for item in found:
        if item.name in lost:
            (sentence,) = item.missing
            assert "(it crashes)" in sentence
            assert remedy in sentence


GPU = Gpu(name="NVIDIA H200", driver="580.1", memory="1 MiB", compute_capability="9.0")


@pytest.mark.parametrize(
    ("gpus", "devices", "words"),
    [
        ([GPU], 1, None),
        # A Jetson may have no nvidia-smi.
        ([], 1, None),
        ([], 0, "no NVIDIA GPU found"),
        ([GPU], 0, "nvidia-smi lists NVIDIA H200, and CUDA cannot use it (error 100): check"),
    ],
)
def test_the_driver_is_asked_and_not_only_nvidia_smi(
    gpus: list[Gpu], devices: int, words: str | None
) -> None:
    fault = gpu_fault(gpus, CudaState(version="13.0", devices=devices, error="error 100"))
    assert fault is None if words is None else fault is not None and fault.startswith(words)


@pytest.mark.gpu
def test_a_gpu_of_this_machine(probed: dict[str, LibraryProbe]) -> None:
    """The driver and nvidia-smi speak of the same one."""
    driver = probed[CUDA_DRIVER]
    assert (driver.error, driver.installed) == (None, True)
    assert (driver.devices or 0) >= 1
    assert gpu_fault(nvidia_gpus(), doctor._cuda_state(driver)) is None


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


@pytest.mark.usefixtures("machine")
def test_json_of_this_machine() -> None:
    result = run_doctor("--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["python"] == sys.version.split()[0]
    assert found["cores"] >= 1
    assert [extra["name"] for extra in found["extras"]] == list(extras.EXTRAS)
    assert [item["name"] for item in found["capabilities"]] == list(CAPABILITIES)
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert found["broken"] == {}


@pytest.mark.usefixtures("machine")
def test_tables_of_this_machine() -> None:
    result = run_doctor()
    assert result.exit_code == 0, result.output
    for words in ("Python", "Extras", "openvino", "What this machine is ready for", "ort-cpu"):
        assert words in result.output


@pytest.mark.usefixtures("machine")
def test_a_requirement_that_is_met() -> None:
    assert run_doctor("--require", "ort-cpu", "--require", "export").exit_code == 0


def test_a_requirement_that_is_not_met(
    machine: dict[str, LibraryProbe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "nvidia_gpus", list)
    machine[CUDA_DRIVER] = LibraryProbe(name=CUDA_DRIVER, installed=False, error="no libcuda")
    result = run_doctor("--require", "ort-cpu", "--require", "trt")
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: This machine lacks what was required: trt is not ready (")
    assert "nvidia-smi" in last
    assert "ort-cpu" not in last


@pytest.mark.usefixtures("machine")
def test_an_unknown_requirement() -> None:
    result = run_doctor("--require", "time-travel")
    assert result.exit_code == 2
    assert result.output.startswith("Error: Expected one of the capabilities")


@pytest.mark.usefixtures("machine")
def test_warnings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_conflicts, "installed_version", lambda name: "1.20")
    assert "Warning: onnxruntime and onnxruntime-gpu are both" in run_doctor().output


def test_what_is_broken_is_told(machine: dict[str, LibraryProbe]) -> None:
    machine["openvino"] = LibraryProbe(name="openvino", installed=True, error="no libtbb")
    machine["onnxruntime"] = LibraryProbe(name="onnxruntime", installed=True, error="no libcudart")
    machine[CUDA_DRIVER] = LibraryProbe(
        name=CUDA_DRIVER, installed=True, error=None, version=12080, devices=2
    )
    result = run_doctor("--require", "openvino")
    assert result.exit_code == 1
    shown = " ".join(result.output.split())
    assert "Warning: openvino cannot be imported (no libtbb): pip install" in shown
    assert "ONNX Runtime cannot be imported (no libcudart)" in shown
    assert "driver for CUDA 12.8, 2 devices" in shown


@pytest.mark.parametrize(
    ("error", "told"),
    [("libcudnn.so.9: cannot open", True), ("libcuda.so.1: cannot open", False)],
    ids=["cuDNN", "driver"],
)
def test_a_provider_without_a_driver_is_not_broken(
    error: str, told: bool, machine: dict[str, LibraryProbe]
) -> None:
    """Seen with onnxruntime-gpu 1.31.1: its last library that is missing is the driver's."""
    machine[CUDA_PROVIDER] = LibraryProbe(name=CUDA_PROVIDER, installed=True, error=error)
    found = json.loads(run_doctor("--json").output)
    assert found["broken"] == ({CUDA_PROVIDER: error} if told else {})
    shown = any("onnxruntime-gpu[cuda,cudnn]" in warning for warning in found["warnings"])
    assert shown == told


class TestImports:
    """Real imports, in processes of their own."""

    @pytest.fixture
    def libraries(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Make modules that are found before all others."""
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

        def make(**sources: str) -> None:
            for name, source in sources.items():
                (tmp_path / f"{name}.py").write_text(source)

        return make

    def test_a_crash_is_a_finding_of_one_library(self, libraries: Callable[..., None]) -> None:
        libraries(first="", second="import os; os.abort()", third="import os; os._exit(7)")
        found = probe_libraries((("first", "second", "third", "nowhere"),))
        assert {name: (probe.installed, probe.error) for name, probe in found.items()} == {
            "first": (True, None),
            "second": (True, "it crashes with SIGABRT"),
            "third": (True, "it ends the process with exit code 7"),
            "nowhere": (False, None),
        }

    def test_what_does_not_fit_its_libraries(self, libraries: Callable[..., None]) -> None:
        libraries(
            onnxruntime="print('noise'); raise OSError('libcudart.so:\\n no such file')",
            openvino="import a_module_that_nobody_has",
        )
        found = probe_libraries((("onnxruntime",), ("openvino",)))
        assert found["onnxruntime"].error == "libcudart.so: no such file"
        assert found["openvino"].installed
        assert found["openvino"].error == "No module named 'a_module_that_nobody_has'"

    def test_the_cuda_provider_is_loaded_with_its_libraries(
        self, tmp_path: Path, libraries: Callable[..., None]
    ) -> None:
        """As ONNX Runtime does it; ``preload_dlls`` prints, and comes before."""
        package = tmp_path / "onnxruntime"
        (package / "capi").mkdir(parents=True)
        (package / "__init__.py").write_text(
            "import pathlib\n"
            "def get_available_providers(): return ['CUDAExecutionProvider']\n"
            "def preload_dlls():\n"
            "    print('Failed to load libcudnn.so.9')\n"
            "    pathlib.Path(__file__).with_name('preloaded').touch()\n"
        )
        group = (("onnxruntime", CUDA_PROVIDER),)
        assert not probe_libraries(group)[CUDA_PROVIDER].installed
        for name in ("shared", "cuda"):
            (package / "capi" / f"libonnxruntime_providers_{name}.so").write_bytes(b"no library")
        found = probe_libraries(group)
        assert found["onnxruntime"].providers == ("CUDAExecutionProvider",)
        assert found[CUDA_PROVIDER].installed
        assert "libonnxruntime_providers_shared.so" in (found[CUDA_PROVIDER].error or "")
        assert (package / "preloaded").is_file()

    def test_the_driver_is_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            pytest.skip("needs a C compiler for a stand-in of NVIDIA's driver")
        source = (
            "int cuDriverGetVersion(int *v) { *v = 13000; return 0; }"
            "int cuInit(unsigned f) { return 0; }"
            "int cuDeviceGetCount(int *n) { *n = 2; return STATUS; }"
        )
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        for status, error in ((0, None), (100, "CUDA's driver gives error 100")):
            subprocess.run(
                [
                    compiler,
                    "-shared",
                    "-fPIC",
                    f"-DSTATUS={status}",
                    "-x",
                    "c",
                    "-",
                    "-o",
                    str(tmp_path / "libcuda.so.1"),
                ],
                input=source,
                text=True,
                check=True,
            )
            probe = probe_libraries(((CUDA_DRIVER,),))[CUDA_DRIVER]
            assert (probe.version, probe.devices, probe.error) == (13000, 2, error)
