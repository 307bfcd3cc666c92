"""``mimiq-deploy build`` where there is no TensorRT, and, marked ``trt``, where there is."""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from _helpers import pretended_tensorrt
from _helpers.plans import add_plan
from _helpers.runs import make_run, write_classifier
from _helpers.tiny_classifiers import images, save_model
from click.testing import CliRunner, Result
from onnx import numpy_helper

from mimiq_deploy import building
from mimiq_deploy.building import build_command, build_model
from mimiq_deploy.cli import cli
from mimiq_deploy.engine_models import engine_model
from mimiq_runtime import cuda_runtime, trt_session
from mimiq_runtime.engine_record import BuildOptions, HardwareCompatibility
from mimiq_runtime.errors import EngineError, InvalidInputError, RunDirectoryError
from mimiq_runtime.event_log import EVENTS, read_events
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.session import TimedOnDevice, open_session

if TYPE_CHECKING:
    from pathlib import Path


def build(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["build", *map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that was exported for TensorRT."""
    run = make_run(tmp_path / "run")
    write_classifier(run.path("export/trt/model.onnx"))
    run.record_files("export/trt/model.onnx")
    return run


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.mark.usefixtures("no_tensorrt")
class TestWithoutTensorRT:
    def test_a_run_ends_with_its_onnx_and_the_command(self, run: RunDirectory) -> None:
        result = build(run.root, "--max-batch", "64", "--version-compatible")
        assert result.exit_code == 3, result.output
        assert f"ONNX: {run.path('export/trt/model.onnx')}" in result.output
        command = result.output.splitlines()[-1].strip()
        install, _, rebuild = command.partition(" && ")
        assert install == "pip install 'mimiq-deploy[trt]'"
        assert shlex.split(rebuild) == [
            *("mimiq-deploy", "build", str(run.root), "--engine", "trt"),
            *("--max-batch", "64", "--version-compatible"),
        ]

    def test_the_command_is_one_that_is_understood(self, run: RunDirectory) -> None:
        """Given back to the command line, it comes to the same end."""
        arguments = ["--strip-weights", "--hardware-compatibility", "ampere-plus", "--target"]
        first = build(run.root, *arguments, "ort-cpu")
        command = shlex.split(first.output.splitlines()[-1].partition("&& ")[2])
        assert CliRunner().invoke(cli, command[1:]).output == first.output

    def test_json(self, run: RunDirectory) -> None:
        result = build(run.root, "--json")
        assert result.exit_code == 3
        told = json.loads(result.stdout)
        assert set(told) == {"reason", "onnx", "command", "lint"}
        assert {finding["node"] for finding in told["lint"]} >= {"body/MatMul"}

    def test_the_lint_is_told(self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "Lint for trt: " in build(run.root).output
        monkeypatch.setitem(sys.modules, "mimiq_export.lint.linters", None)
        onnx = run.path("export/trt/model.onnx")
        assert f"then mimiq-deploy inspect {onnx} --lint trt" in build(run.root).output

    def test_an_onnx_file(self, tmp_path: Path) -> None:
        onnx = save_model(tmp_path / "my model.onnx")
        result = build(onnx, "--output", tmp_path / "out")
        assert result.exit_code == 3
        assert f"build '{onnx}' --engine trt --output {tmp_path / 'out'}" in result.output

    def test_nothing_is_written(self, run: RunDirectory) -> None:
        before = sorted(run.root.rglob("*"))
        build(run.root)
        (run.root / EVENTS).unlink()  # which say that it was tried
        assert sorted(run.root.rglob("*")) == before

    def test_a_run_that_was_not_exported_comes_first(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        result = build(run.root)
        assert result.exit_code == 2
        assert f"run mimiq-deploy export {run.root} --target trt first" in result.output


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "raise ImportError('libnvinfer.so.11: cannot open')",
            "cannot be loaded (libnvinfer.so.11",
        ),
        ("raise OSError('libcudart.so.13: cannot open')", "cannot be loaded (libcudart.so.13"),
        ("__version__ = '8.6.1'", "Expected TensorRT >=10.3,<12, got 8.6.1"),
    ],
    ids=["no libnvinfer", "no CUDA", "old"],
)
def test_a_tensorrt_that_cannot_be_used_is_as_good_as_none(
    source: str, words: str, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed beside the exporter by another project; the engine is built elsewhere."""
    (tmp_path / "site" / "tensorrt").mkdir(parents=True)
    (tmp_path / "site" / "tensorrt" / "__init__.py").write_text(source)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    result = build(run.root, "--json")
    sys.modules.pop("tensorrt", None)
    assert result.exit_code == 3, result.output
    told = json.loads(result.stdout)
    assert words in told["reason"]
    assert told["command"] == f"mimiq-deploy build {run.root} --engine trt"


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder in the place of TensorRT and a GPU."""
    for name in ("import_tensorrt", "import_polygraphy", "CudaRuntime", "build_engine"):
        monkeypatch.setattr(building, name, getattr(building, name))
    pretended_tensorrt.pretend()


@pytest.mark.usefixtures("pretended")
def test_nothing_is_left_in_a_run_but_what_it_records(run: RunDirectory, tmp_path: Path) -> None:
    """Polygraphy's lock is removed; beside a shared timing cache others may wait for it."""
    _, plan = build_model(run.root, BuildOptions())
    device = plan.parents[1]
    assert {path.name for path in device.iterdir()} == {"trt", "timing.cache"}
    shared = tmp_path / "shared.cache"
    build_model(run.root, BuildOptions(), timing_cache=shared)
    assert shared.with_name("shared.cache.lock").is_file()


@pytest.mark.usefixtures("pretended")
def test_the_steps_of_a_build_are_in_the_events(run: RunDirectory) -> None:
    record, _ = build_model(run.root, BuildOptions())
    told = [
        (event.stage, event.piece, event.of, event.message)
        for event in read_events(run.root)
        if event.event == "progress"
    ]
    stage = f"build/{record.device.slug}/trt"
    assert told == [
        (stage, 0, 3, "parse"),
        (stage, 1, 3, "choose kernels"),
        (stage, 2, 3, "prove precision"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--min-batch", "9", "--opt-batch", "8"], "1 <= min <= opt <= max, got 9, 8 and 32"),
        (["--min-batch", "0"], "got 0, 8 and 32"),
        (["--min-batch", "9", "--max-batch", "4"], "got 9, 9 and 4"),
        (["--max-batch", "4", "--opt-batch", "8"], "got 1, 8 and 4"),
        (["--workspace-mib", "0"], "at least 1 MiB, got 0"),
        (["--optimization-level", "6"], "must be 0 to 5, got 6"),
        (["--output", "elsewhere"], "written into the run"),
    ],
)
def test_options_that_cannot_be_are_refused(
    arguments: list[str], words: str, run: RunDirectory
) -> None:
    result = build(run.root, *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.output


@pytest.mark.parametrize(
    ("sizes", "tuned_for"),
    [({}, 8), ({"max_batch": 4}, 4), ({"min_batch": 9}, 9), ({"max_batch": 4, "opt_batch": 2}, 2)],
)
def test_the_batch_to_tune_for_is_one_that_the_engine_takes(
    sizes: dict[str, int], tuned_for: int, tmp_path: Path
) -> None:
    options = BuildOptions(**sizes)  # type: ignore[arg-type]
    assert options.opt_batch == tuned_for
    assert ("--opt-batch" in build_command(tmp_path, options)) == ("opt_batch" in sizes)
    assert BuildOptions.model_validate(options.model_dump()) == options


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = build(tmp_path / "nowhere.onnx")
    assert result.exit_code == 2
    assert "nowhere.onnx is not one" in result.output


def test_every_option_is_in_the_command(tmp_path: Path) -> None:
    options = BuildOptions(
        min_batch=2,
        opt_batch=4,
        max_batch=6,
        workspace_mib=512,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility=HardwareCompatibility.AMPERE_PLUS,
        refittable=True,
        strip_weights=True,
        tf32=True,
    )
    command = build_command(tmp_path, options)
    for name in BuildOptions.model_fields:
        assert f"--{name.replace('_', '-')}" in command


@pytest.mark.usefixtures("no_tensorrt")
def test_the_file_of_an_engine(run: RunDirectory) -> None:
    assert engine_model(run, "ort-trt") == run.path("export/trt/model.onnx")
    assert engine_model(run, "ort-cpu") == run.path("export/ort-cpu/model.onnx")
    with pytest.raises(RunDirectoryError, match="--target openvino first"):
        engine_model(run, "openvino")
    with pytest.raises(RunDirectoryError, match="--target fp32 first"):
        engine_model(run, "ort-cpu", target="fp32")


@pytest.mark.parametrize(
    ("compatibility", "built_on", "here", "accepted"),
    [
        ("none", "8.7", "8.7", False),
        ("same-compute-capability", "8.7", "8.7", True),
        ("same-compute-capability", "8.6", "8.9", False),
        ("ampere-plus", "8.6", "10.0", True),
        ("ampere-plus", "10.0", "8.0", True),
        ("ampere-plus", "8.6", "7.5", False),
    ],
)
def test_a_plan_that_was_built_for_other_gpus_too(
    compatibility: str,
    built_on: str,
    here: str,
    accepted: bool,
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = pretended_tensorrt.DEVICE.model_copy(update={"compute_capability": here})
    monkeypatch.setattr(cuda_runtime, "CudaRuntime", lambda: SimpleNamespace(device=lambda: device))
    folder = add_plan(run, gpu="Another", capability=built_on, hardware_compatibility=compatibility)
    if not accepted:
        with pytest.raises(RunDirectoryError, match=f"build {run.root} --engine trt first"):
            engine_model(run, "trt")
        return
    assert engine_model(run, "trt") == run.path(f"engines/{folder}/trt/engine.plan")
    # Its own plan goes first.
    own = add_plan(run, gpu=device.name, capability=here)
    assert engine_model(run, "trt") == run.path(f"engines/{own}/trt/engine.plan")


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("target", ["trt", "fp16"])
def test_a_stripped_plan_names_the_command_that_completes_it(
    target: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is taken from the message and run: the run has its plan then, recorded."""
    monkeypatch.setattr(trt_session, "import_tensorrt", lambda: None)
    monkeypatch.setattr(building, "refit_plan", lambda *_, **__: b"with weights")
    write_classifier(run.path(f"export/{target}/model.onnx"))
    run.record_files(f"export/{target}/model.onnx")
    folder = add_plan(
        run,
        gpu=pretended_tensorrt.DEVICE.name,
        capability=pretended_tensorrt.DEVICE.compute_capability,
        target=target,
        weights="stripped",
        refittable=True,
    )
    plan = run.path(f"engines/{folder}/{target}/engine.plan")
    with pytest.raises(EngineError, match="put them in with mimiq-deploy build") as caught:
        open_session("trt", plan)
    command = shlex.split(str(caught.value).partition("put them in with ")[2])
    result = CliRunner().invoke(cli, command[1:])
    assert result.exit_code == 0, result.output
    assert plan.read_bytes() == b"with weights"
    assert RunDirectory.open(run.root).damaged_files() == []


@pytest.mark.usefixtures("pretended")
def test_a_stripped_plan_of_an_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_session, "import_tensorrt", lambda: None)
    monkeypatch.setattr(building, "refit_plan", lambda *_, **__: b"with weights")
    onnx = save_model(tmp_path / "my model.onnx")
    _, plan = build_model(onnx, BuildOptions(strip_weights=True), output=tmp_path / "engine")
    with pytest.raises(EngineError, match="put them in with mimiq-deploy build") as caught:
        open_session("trt", plan)
    command = shlex.split(str(caught.value).partition("put them in with ")[2])
    assert CliRunner().invoke(cli, command[1:]).exit_code == 0
    assert plan.read_bytes() == b"with weights"


def can_be_refitted_again() -> bool:
    """Whether this TensorRT writes a refitted engine that stays refittable."""
    tensorrt = importlib.import_module("tensorrt")
    return "INCLUDE_REFIT" in tensorrt.SerializationFlag.__members__


@pytest.mark.trt
class TestOnTheDevice:
    """With TensorRT and a GPU; the model has one quantized product and one in floating point."""

    OPTIONS = BuildOptions(min_batch=1, opt_batch=2, max_batch=4, optimization_level=0)

    def test_the_engine_answers_as_onnxruntime_does(self, run: RunDirectory) -> None:
        record, plan = build_model(run.root, self.OPTIONS, allow_floating_point=True)
        assert [proof.product for proof in record.precision.products] == ["body/MatMul"]
        assert record.precision.layers
        assert plan == engine_model(type(run).open(run.root), "trt")
        with (
            open_session("trt", plan) as tested,
            open_session("ort-cpu", run.path("export/trt/model.onnx")) as reference,
        ):
            for batch in (1, 4, 2):
                given = images(batch, 3, 8, 8)
                # The sums over 64 pixels are taken in another order; a code may flip by it.
                np.testing.assert_allclose(
                    tested.run(given), reference.run(given), atol=4.0 / 127 + 1e-3
                )
            assert isinstance(tested, TimedOnDevice)
            times = tested.device_times()
            assert 0 < times.compute_ms < times.total_ms

    def test_a_stripped_engine_is_refitted(self, run: RunDirectory) -> None:
        """It is the engine that it would have been with its weights, and gives its answers."""
        _, plan = build_model(run.root, self.OPTIONS, allow_floating_point=True)
        whole = plan.read_bytes()
        given = images(4, 3, 8, 8)
        with open_session("trt", plan) as session:
            expected = session.run(given)
        options = self.OPTIONS.model_copy(update={"strip_weights": True})
        _, plan = build_model(run.root, options, allow_floating_point=True)
        assert plan.read_bytes() != whole
        with pytest.raises(EngineError, match="without its weights"):
            open_session("trt", plan)
        # A second time, too: with another copy of the same weights.
        for _ in range(2 if can_be_refitted_again() else 1):
            record, plan = build_model(run.root, options, refit=True, allow_floating_point=True)
            assert record.weights.startswith("refitted from ")
            with open_session("trt", plan) as session:
                # Other kernels may have been chosen: a code may flip, as above.
                np.testing.assert_allclose(session.run(given), expected, atol=4.0 / 127 + 1e-3)

    def test_a_refittable_engine_takes_other_weights(
        self, run: RunDirectory, tmp_path: Path
    ) -> None:
        """Twice the weights of the head are twice the logits, and no build."""
        options = self.OPTIONS.model_copy(update={"refittable": True})
        first = tmp_path / "model.onnx"
        shutil.copy(run.path("export/trt/model.onnx"), first)
        _, plan = build_model(first, options, output=tmp_path / "engine", allow_floating_point=True)
        given = images(4, 3, 8, 8)
        with open_session("trt", plan) as session:
            before = session.run(given)
        graph = onnx.load(first)
        (head,) = [value for value in graph.graph.initializer if value.name == "identity"]
        head.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(head), head.name))
        onnx.save(graph, first)
        _, plan = build_model(
            first, options, output=tmp_path / "engine", refit=True, allow_floating_point=True
        )
        with open_session("trt", plan) as session:
            np.testing.assert_allclose(session.run(given), 2 * before, atol=1e-4)

    def test_a_second_build_reads_the_timing_cache(self, run: RunDirectory) -> None:
        first, _ = build_model(run.root, self.OPTIONS, allow_floating_point=True)
        second, plan = build_model(run.root, self.OPTIONS, allow_floating_point=True)
        assert first.timing_cache_sha256 is not None
        assert second.timing_cache_sha256 is not None
        assert {path.name for path in plan.parents[1].iterdir()} == {"trt", "timing.cache"}
        assert run.open(run.root).damaged_files() == []

    @pytest.mark.parametrize(
        "options",
        [
            {"version_compatible": True},
            {"hardware_compatibility": "ampere-plus"},
            {"tf32": True, "workspace_mib": 256},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_what_is_built_so_runs_here(self, options: dict[str, Any], run: RunDirectory) -> None:
        chosen = BuildOptions.model_validate({**self.OPTIONS.model_dump(), **options})
        _, plan = build_model(run.root, chosen, allow_floating_point=True)
        with open_session("trt", plan) as session:
            assert session.run(images(3, 3, 8, 8)).shape == (3, 3)

    def test_a_batch_that_it_was_not_built_for_is_one_sentence(self, run: RunDirectory) -> None:
        _, plan = build_model(run.root, self.OPTIONS, allow_floating_point=True)
        with (
            open_session("trt", plan) as session,
            pytest.raises(InvalidInputError, match="takes batches of 1 to 4 images, got 5"),
        ):
            session.run(images(5, 3, 8, 8))

    def test_a_damaged_plan_is_one_sentence(self, run: RunDirectory) -> None:
        _, plan = build_model(run.root, self.OPTIONS, allow_floating_point=True)
        plan.write_bytes(plan.read_bytes()[:100])
        with pytest.raises(EngineError, match=r"is not the engine that .* describes"):
            open_session("trt", plan)
        # One from elsewhere has no record: TensorRT itself has to notice.
        plan.with_name("engine.json").unlink()
        with pytest.raises(EngineError, match="cannot load the engine"):
            open_session("trt", plan)

    def test_an_onnx_that_cannot_be_parsed_is_one_sentence(self, tmp_path: Path) -> None:
        result = build(save_model(tmp_path / "model.onnx", operator="NoSuchOperator"))
        assert result.exit_code == 2
        assert "TensorRT cannot parse" in result.output

    def test_an_engine_without_int8_is_refused(self, run: RunDirectory, tmp_path: Path) -> None:
        onnx = tmp_path / "float.onnx"
        shutil.copy(save_model(tmp_path / "model.onnx"), onnx)
        result = build(onnx, "--optimization-level", "0")
        assert result.exit_code == 1, result.output
        assert "rejected.json" in result.output
        assert build(onnx, "--optimization-level", "0", "--allow-floating-point").exit_code == 0
