"""The whole way through the command line: calibrate, export, validate, bench, on a real model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from _helpers.planted_faults import change_scale
from click.testing import CliRunner, Result

from mimiq_deploy.cli import cli
from mimiq_deploy.demo.digits import load_digits_split, write_image_folder
from mimiq_deploy.demo.story import demo_model
from mimiq_export.export_run import STEPS, write_onnx
from mimiq_runtime.preprocessing import preprocess_files
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = 96


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def calibrate_arguments(run: Path, bits: str) -> list[str | Path]:
    """The command line for the built-in model, as a user with an own checkpoint writes it."""
    description, weights = demo_model()
    arguments: list[str | Path] = ["calibrate", description["model"], "--checkpoint", weights]
    for key, value in description["model_args"].items():
        arguments += ["--model-arg", f"{key}={value}"]
    for key in ("mean", "std", "crop_pct"):
        arguments += ["--preprocessing", f"{key}={description['preprocessing'][key]}"]
    arguments += ["--recipe", "demo", "--bits", bits, "-o", run]
    for setting in (
        "synthesis.num_images=32",
        "synthesis.batch_size=32",
        "synthesis.iterations=30",
        "distillation.epochs=8",
        "synthesis.held_out=16",
    ):
        arguments += ["--set", setting]
    return arguments


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    digits = load_digits_split()
    folder = tmp_path_factory.mktemp("digits")
    write_image_folder(digits.test_images[:PICTURES], digits.test_labels[:PICTURES], folder)
    return folder


@pytest.fixture(scope="module", params=["w8a8", "w4a4"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was calibrated and exported through the command line."""
    run = tmp_path_factory.mktemp("runs") / request.param
    result = invoke(*calibrate_arguments(run, request.param))
    assert result.exit_code == 0, result.output
    # The folder's length decides where the sentence is wrapped.
    assert "by 16 held-out images (mimiq)" in " ".join(result.output.split())
    result = invoke("export", run, "--target", "ort-cpu", "--json")
    assert result.exit_code == 0, result.output
    return run


def validate(run: Path, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    result = invoke("validate", run, "--json", *arguments)
    return result.exit_code, json.loads(result.stdout)


def test_accuracy_survives_and_torch_agrees(run: Path, pictures: Path) -> None:
    # 96 pictures and a very short calibration: five pictures are 5.2 points.
    code, report = validate(run, "--data", pictures, "--max-drop", "6", "--min-agreement", "0.96")
    assert code == 0, report
    assert report["pictures"] == [str(pictures), PICTURES]
    assert report["references"]["full-precision"]["top1"] >= 0.95
    assert {gate["name"] for gate in report["engines"]["ort-cpu"]["gates"]} == {
        "max_drop",
        "min_agreement",
    }
    assert report["engines"]["ort-cpu"]["recorded"]["n"] == 32


def test_the_reported_accuracy_is_that_of_the_file(run: Path, pictures: Path) -> None:
    """Independent of our session, dataset and metrics: ONNX Runtime and a few lines of numpy."""
    _, report = validate(run, "--data", pictures)
    rows = [line.split(",") for line in (pictures / "labels.csv").read_text().splitlines()[1:]]
    preprocessing = RunDirectory.open(run).manifest.preprocessing
    images = preprocess_files([pictures / name for name, _ in rows], preprocessing)
    session = onnxruntime.InferenceSession(run / "export" / "ort-cpu" / "model.onnx")
    logits = session.run(None, {"images": images})[0]
    expected = np.mean(logits.argmax(1) == [int(label) for _, label in rows])
    assert report["engines"]["ort-cpu"]["accuracy"]["top1"] == pytest.approx(expected)


def test_a_gate_that_fails_is_exit_code_1(run: Path, pictures: Path) -> None:
    code, report = validate(run, "--data", pictures, "--min-accuracy", "1.0")
    assert code == 1
    assert report["passed"] is False
    assert json.loads((run / "parity.json").read_text()) == report


def test_without_pictures_the_recorded_answers_are_compared(run: Path) -> None:
    code, report = validate(run, "--min-agreement", "0.9")
    assert code == 0
    assert report["pictures"] is None
    assert report["engines"]["ort-cpu"]["accuracy"] is None
    refused = invoke("validate", run, "--max-drop", "1")
    assert refused.exit_code == 2
    assert "max_drop" in refused.output


def test_a_changed_scale_fails_the_parity_gate(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Parity must notice a wrong file: one scale of the first block is 5 % too large."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    change_scale(copy / "export" / "ort-cpu" / "model.onnx", "blocks.0.mlp.fc1.input_quantizer")
    _, before = validate(run, "--data", pictures)
    _, after = validate(copy, "--data", pictures)
    right, wrong = (
        report["engines"]["ort-cpu"]["parity"]["fake-quantized"] for report in (before, after)
    )
    # Two correct implementations differ by flips alone: most pictures are the same bits.
    assert right["sqnr_db"] is None or right["sqnr_db"] > 60
    assert wrong["sqnr_db"] < 50


def bench(run: Path, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    given = ["--batch-size", "2", "--rounds", "5", "--threads", "1", "--json", *arguments]
    result = invoke("bench", run, *given)
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


def test_an_export_of_linear_layers_is_compared_with_that_student(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    full = json.loads((copy / "export" / "ort-cpu" / "export.json").read_text())
    result = invoke("export", copy, "--scope", "linear", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (full["scope"], record["scope"]) == ("full", "linear")
    quantized = {row["quantizer"] for row in record["quantized"]}
    left = {row["quantizer"].rpartition(".")[2] for row in full["quantized"]} - {
        name.rpartition(".")[2] for name in quantized
    }
    assert left == {"query_quantizer", "key_quantizer", "probability_quantizer", "value_quantizer"}
    code, report = validate(copy, "--data", pictures, "--min-agreement", "0.96")
    assert code == 0, report
    engine = report["engines"]["ort-cpu"]
    assert set(engine["parity"]) == {
        "full-precision",
        "fake-quantized, linear scope",
        "fake-quantized, floating-point products, linear scope",
    }
    assert set(report["references"]) == set(engine["parity"])
    assert engine["recorded"]["agreement"] >= 0.9


def test_export_for_tensorrt_needs_no_tensorrt(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the ONNX, its lint, and what is left to the device."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    result = invoke("export", copy, "--trt")
    assert result.exit_code == 3, result.output
    assert result.output.count("Lint for trt: 0 errors") == 1
    assert f"ONNX: {copy / 'export' / 'trt' / 'model.onnx'}" in result.output
    command = result.output.splitlines()[-1].strip()
    assert command == f"pip install 'mimiq-deploy[trt]' && mimiq-deploy build {copy} --engine trt"
    record = json.loads((copy / "export" / "trt" / "export.json").read_text())
    assert (record["target"], record["scope"], record["opset"]) == ("trt", "linear", 20)
    # The full-precision model was there; its half precision was not.
    made = [f"{step} of {name}" for name in ("fp16", "trt") for step in STEPS]
    assert steps_in_events(copy, "export/trt") == [
        (number, 7, name) for number, name in enumerate([*made, "reference logits"])
    ]
    assert record["lint"]
    assert {finding["severity"] for finding in record["lint"]} == {"warning"}
    result = invoke("inspect", copy / "export" / "trt" / "model.onnx", "--lint", "trt", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["findings"] == record["lint"]
    assert agreement_with_half_precision(copy) >= 0.95
    result = invoke("export", copy, "--trt", "--target", "openvino")
    assert (result.exit_code, "--trt is --target trt" in result.output) == (2, True)


def steps_in_events(run: Path, stage: str) -> list[tuple[int, int, str]]:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [
        (event["piece"], event["of"], event["message"])
        for event in events
        if (event["event"], event.get("stage")) == ("progress", stage)
    ]


def agreement_with_half_precision(run: Path) -> float:
    """Of fp16 beside fp32, on the images of the run, in ONNX Runtime; its weights are halves."""
    half = onnx.load(run / "export" / "fp16" / "model.onnx")
    types = {tensor.data_type for tensor in half.graph.initializer if len(tensor.dims) == 2}
    assert types == {onnx.TensorProto.FLOAT16}
    images = np.random.default_rng(0).normal(size=(64, 1, 32, 32)).astype(np.float32)
    logits = [
        onnxruntime.InferenceSession(run / "export" / name / "model.onnx").run(
            None, {"images": images}
        )[0]
        for name in ("fp32", "fp16")
    ]
    np.testing.assert_allclose(*logits, rtol=0, atol=0.02 * np.abs(logits[0]).max())
    return float((logits[0].argmax(1) == logits[1].argmax(1)).mean())


def test_the_full_precision_model_has_no_scope(run: Path) -> None:
    result = invoke("export", run, "--target", "fp32", "--scope", "linear")
    assert result.exit_code == 2
    assert "fp32 quantizes nothing" in result.output


def test_pixels_and_packed_weights_change_no_answer(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    if run.name != "w4a4":
        pytest.skip("nothing to pack")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    result = invoke("export", copy, "--packed-int4", "--with-preprocessing")
    assert result.exit_code == 0, result.output
    assert "weights stored as INT4" in result.output
    record = json.loads((copy / "export" / "ort-cpu" / "export.json").read_text())
    assert (record["input"], record["opset"]) == ("pixels", 21)

    _, before = validate(run, "--data", pictures)
    _, after = validate(copy, "--data", pictures)
    outside, inside = (report["engines"]["ort-cpu"] for report in (before, after))
    assert (outside["session"]["takes"], inside["session"]["takes"]) == ("normalised", "pixels")
    # Every logit is the same number, so every measure is.
    for part in ("recorded", "parity", "accuracy"):
        assert inside[part] == outside[part]

    answers = [
        json.loads(invoke("predict", folder, pictures / "0000.png", "--json").stdout)
        for folder in (run, copy)
    ]
    assert answers[0]["predictions"] == answers[1]["predictions"]
    assert bundled_answers(copy, tmp_path / "b", pictures / "0000.png") == answers[0]["predictions"]
    # What pyproject.toml asks for is too old for INT4.
    assert "onnxruntime>=1.23\n" in (tmp_path / "b" / "requirements.txt").read_text()
    assert bench(copy)[0] == 0
    assert invoke("inspect", copy, "--verify").exit_code == 0


def test_a_model_beyond_2_gib_goes_the_whole_way(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as a small one can show: weights lie in a file of their own from 1000 bytes on."""
    if run.name != "w4a4":
        pytest.skip("one model shows it")
    copy, picture = tmp_path / "copy", pictures / "0000.png"
    shutil.copytree(run, copy)
    with monkeypatch.context() as patch:
        patch.setitem(write_onnx.__kwdefaults__, "external_data_above", 1000)
        assert invoke("export", copy, "--packed-int4").exit_code == 0
    folder = copy / "export" / "ort-cpu"
    (weights,) = folder.glob("model.onnx.*.data")
    record = json.loads((folder / "export.json").read_text())
    assert list(record["external_data"]) == [weights.name]
    assert (folder / "model.onnx").stat().st_size < weights.stat().st_size
    name = f"export/ort-cpu/{weights.name}"
    assert RunDirectory.open(copy).manifest.files[name].bytes == weights.stat().st_size

    _, before = validate(run, "--data", pictures)
    _, after = validate(copy, "--data", pictures)
    for part in ("recorded", "parity", "accuracy"):
        assert after["engines"]["ort-cpu"][part] == before["engines"]["ort-cpu"][part]
    answer = json.loads(invoke("predict", run, picture, "--json").stdout)["predictions"]
    assert bundled_answers(copy, tmp_path / "bundle", picture) == answer
    assert invoke("inspect", folder / "model.onnx", "--lint", "ort-cpu").exit_code == 0
    assert invoke("inspect", copy, "--verify").exit_code == 0

    # The next small export takes the file away, and the run knows.
    assert invoke("export", copy).exit_code == 0
    assert not weights.exists()
    assert name not in RunDirectory.open(copy).manifest.files
    assert invoke("inspect", copy, "--verify").exit_code == 0


def bundled_answers(
    run: Path, folder: Path, *pictures: Path, engine: str = "ort-cpu"
) -> list[dict[str, Any]]:
    """What the runner of a bundle says."""
    result = invoke("bundle", run, "--engine", engine, "-o", folder)
    assert result.exit_code == 0, result.output
    done = subprocess.run(
        [sys.executable, folder / "run.py", "--json", *pictures],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["predictions"]
    return rows


def test_a_bundle_of_a_real_model_answers_as_predict_does(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    chosen = sorted(pictures.glob("*.png"))[:3]
    assert bundled_answers(run, tmp_path / "bundle", *chosen) == predicted(run, *chosen)


def predicted(run: Path, *pictures: Path, engine: str = "ort-cpu") -> list[dict[str, Any]]:
    """What ``predict`` says of each picture alone, as the runner takes them."""
    commands = [["predict", run, picture, "--engine", engine, "--json"] for picture in pictures]
    return [
        row for command in commands for row in json.loads(invoke(*command).stdout)["predictions"]
    ]


def test_options_that_do_not_fit_are_refused(run: Path) -> None:
    refused = invoke("export", run, "--target", "fp32", "--packed-int4")
    assert refused.exit_code == 2
    assert "without --packed-int4" in refused.output
    if run.name == "w8a8":
        refused = invoke("export", run, "--packed-int4")
        assert refused.exit_code == 2
        assert "needs weights of at most 4 bits" in refused.output
        assert invoke("validate", run).exit_code == 0  # the old export is still there


def test_bench_measures_both_models(run: Path) -> None:
    code, report = bench(run, "--threads", "2")  # beside the 1 that is always given
    assert code == 0
    cells = [(row["batch_size"], row["threads"]) for row in report["rows"]]
    assert cells == [(2, 1), (2, 1), (2, 2), (2, 2)]
    for baseline, quantized in (report["rows"][:2], report["rows"][2:]):
        assert baseline["speedup"]["median"] == 1
        assert 0 < quantized["p50_ms"] <= quantized["p99_ms"]
    memory = {(row["session"], row["threads"]): row["peak_rss_mib"] for row in report["memory"]}
    assert set(memory) == {(row["session"], row["threads"]) for row in report["rows"]}
    assert min(memory.values()) > 10
    assert json.loads((run / "bench.json").read_text()) == report


def test_bench_of_a_model_against_itself_and_against_the_past(run: Path, tmp_path: Path) -> None:
    """The exported file is its own baseline; an older report that promised more fails the gate."""
    code, report = bench(run, "--baseline", "ort-cpu")
    assert code == 0
    baseline, same = report["rows"]
    digests = {info["model_sha256"] for info in report["sessions"].values()}
    assert len(digests) == 1
    assert (baseline["session"], report["baseline"]) == ("ort-cpu in ort-cpu",) * 2
    # How near to 1 it is depends on what else the machine does: benchmarks/ tells it.
    assert same["speedup"]["median"] > 0
    older = tmp_path / "older.json"
    for promise, expected in ((0.01, 0), (100.0, 1)):
        same["speedup"]["median"] = promise
        older.write_text(json.dumps(report))
        code, newer = bench(run, "--baseline", "ort-cpu", "--compare", older)
        assert code == expected
        assert newer["comparison"]["passed"] is (expected == 0)
        assert newer["comparison"]["changes"][0]["old_speedup"] == promise
    gates = tmp_path / "gates.yaml"
    gates.write_text("bench: {tolerance: 0.999}\n")
    arguments = ("--baseline", "ort-cpu", "--compare", older, "--gates", gates)
    assert bench(run, *arguments)[0] == 0
    files = ("--junit", tmp_path / "bench.xml", "--markdown", tmp_path / "bench.md")
    assert bench(run, *arguments, "--tolerance", "0.1", *files)[0] == 1
    assert (tmp_path / "bench.xml").read_text().count("<failure") == 1
    assert (tmp_path / "bench.md").read_text().startswith("## mimiq-deploy bench: REGRESSED")


def test_openvino_runs_what_was_exported_for_it(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Two engines side by side: in parity, in accuracy, in the benchmark."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    # What is exported for ONNX Runtime is valid for OpenVINO, too.
    for name in ("model.onnx", "reference.safetensors"):
        (copy / "export" / "openvino").mkdir(exist_ok=True)
        shutil.copy(copy / "export" / "ort-cpu" / name, copy / "export" / "openvino" / name)
        RunDirectory.open(copy).record_files(f"export/openvino/{name}")
    engines = ["--engine", "ort-cpu", "--engine", "openvino"]
    code, report = validate(copy, *engines, "--data", pictures, "--min-agreement", "0.95")
    assert code == 0, report
    openvino = report["engines"]["openvino"]
    products = openvino["session"]["products"]
    assert openvino["session"]["precision"] == "f32"
    graph = onnx.load(copy / "export" / "openvino" / "model.onnx").graph
    named = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert sum(products.values()) == len(named)
    # Probabilities have a zero point in this export at 8 bits: OpenVINO leaves them in f32.
    assert products["i8"] >= 0.8 * len(named), products
    assert openvino["accuracy"]["top1"] == pytest.approx(
        report["engines"]["ort-cpu"]["accuracy"]["top1"], abs=0.05
    )
    code, measured = bench(copy, *engines, "--engine", "openvino")
    assert [row["session"].rpartition(" ")[2] for row in measured["rows"]] == [
        *("ort-cpu", "ort-cpu", "openvino")
    ]


def check_on_a_gpu(run: Path, engine: str, pictures: Path, folder: Path) -> dict[str, Any]:
    """Parity, accuracy, the benchmark, and the bundle of an engine; gives the benchmark."""
    code, report = validate(
        run, "--engine", engine, "--data", pictures, "--max-drop", "6", "--min-agreement", "0.95"
    )
    assert code == 0, report
    against = ["--engine", engine, "--against", "ort-cpu", "--data", pictures]
    code, report = validate(run, *against, "--min-agreement", "0.95")
    assert code == 0, report
    code, measured = bench(run, "--engine", engine, "--baseline", "fp32", "--baseline", "fp16")
    assert code == 0
    names = [f"fp32 in {engine}", f"fp16 in {engine}", f"{run.name} in {engine}"]
    assert [row["session"] for row in measured["rows"]] == names
    for session in measured["sessions"].values():
        assert session["device"] != "cpu"
    assert invoke("inspect", run, "--verify").exit_code == 0
    chosen = sorted(pictures.glob("*.png"))[:3]
    expected = predicted(run, *chosen, engine=engine)
    assert bundled_answers(run, folder, *chosen, engine=engine) == expected
    return measured


@pytest.mark.gpu
def test_onnxruntime_on_a_gpu(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Q/DQ in floating point: it has to answer as the CPU does, and to stay on the GPU."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has no CUDAExecutionProvider")
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    assert invoke("export", copy, "--target", "ort-cuda").exit_code == 0
    measured = check_on_a_gpu(copy, "ort-cuda", pictures, tmp_path / "bundle")
    for session in measured["sessions"].values():
        assert session["provider"] == "CUDAExecutionProvider"
        assert set(session["products"] or {}) <= {"CUDAExecutionProvider"}


@pytest.mark.trt
def test_tensorrt_on_a_gpu(run: Path, pictures: Path, tmp_path: Path) -> None:
    """Built, proved, compared, timed by CUDA events, and packed."""
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    result = invoke("export", copy, "--trt", "--json")
    # Layers of 96 channels are small: TensorRT may have no INT8 kernel for one.
    assert result.exit_code in (0, 1), result.output
    proofs = json.loads(result.stdout)["build"]["precision"]["products"]
    assert len(proofs) > 10
    # Whatever it runs in, each product has to be found: their names come from the parser.
    assert [proof["product"] for proof in proofs if proof["verdict"] == "not found"] == []
    if result.exit_code == 1:
        assert not list(copy.glob("engines/*/trt/engine.plan"))
        assert invoke("build", copy, "--allow-floating-point").exit_code == 0
    for target in ("fp32", "fp16"):
        result = invoke("build", copy, "--target", target)
        assert result.exit_code == 0, result.output
    measured = check_on_a_gpu(copy, "trt", pictures, tmp_path / "bundle")
    for row in measured["rows"]:
        assert 0 < row["device"]["compute_p50_ms"] <= row["device"]["total_p50_ms"]
        # The host's clock sees the device's work, and its own on top.
        assert row["device"]["total_p50_ms"] <= row["p50_ms"]


def test_predict_and_inspect_read_the_run(run: Path, pictures: Path) -> None:
    answer = json.loads(invoke("predict", run, pictures / "0000.png", "--json").stdout)
    assert str(load_digits_split().test_labels[0]) in json.dumps(answer)
    assert invoke("inspect", run, "--verify").exit_code == 0
    assert invoke("inspect", run / "export" / "ort-cpu" / "model.onnx").exit_code == 0


def test_resuming_a_finished_run_changes_nothing(run: Path) -> None:
    before = (run / "quantized.safetensors").read_bytes()
    result = invoke(*calibrate_arguments(run, run.name), "--resume")
    assert result.exit_code == 0, result.output
    assert (run / "quantized.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["calibrate", "no_such_model"], "no_such_model", id="model"),
        pytest.param(["--recipe", "nowhere.yaml"], "nowhere.yaml", id="recipe"),
        pytest.param(["--set", "synthesis.sped=3"], "synthesis.sped", id="key"),
        pytest.param(["--bits", "w1a8"], "w1a8", id="bits"),
        pytest.param(["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors", id="weights"),
        pytest.param(["--num-classes", "7"], "head", id="classes"),
        pytest.param(["--device", "abacus"], "abacus", id="device"),
        pytest.param(["--model-arg", "depth=deep"], "deep", id="argument"),
        pytest.param(["--preprocessing", "mean=[0.5,0.5]"], "mean", id="preprocessing"),
    ],
)
def test_a_users_mistake_is_one_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = calibrate_arguments(run, "w8a8")
    if arguments[0] == "calibrate":
        given[1] = arguments[1]
    else:
        given += arguments
    result = invoke(*given)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not run.exists()


@pytest.mark.parametrize("command", ["export", "validate", "bench", "inspect"])
def test_a_directory_that_is_no_run_is_refused(command: str, tmp_path: Path) -> None:
    result = invoke(command, tmp_path)
    assert result.exit_code == 2
    assert "run.json" in result.output


def test_an_unwritable_output_is_refused(tmp_path: Path) -> None:
    """A file stands where the folder should be: root, too, cannot write below it."""
    (tmp_path / "file").write_text("")
    result = invoke(*calibrate_arguments(tmp_path / "file" / "run", "w8a8"))
    assert result.exit_code == 2, result.output
    assert "Cannot write" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("file,label\n0000.png,10\n", "10", id="label-outside"),
        pytest.param("file,label\n", "", id="empty"),
        pytest.param("name,class\n0000.png,1\n", "file", id="columns"),
        pytest.param("file,label\nnowhere.png,1\n", "nowhere.png", id="missing"),
    ],
)
def test_bad_pictures_are_refused(run: Path, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    (tmp_path / "0000.png").write_bytes(b"not a picture")
    result = invoke("validate", run, "--data", tmp_path)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_picture_that_cannot_be_read_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n0000.png,1\n")
    (tmp_path / "0000.png").write_bytes(b"not a picture")
    result = invoke("validate", run, "--data", tmp_path)
    assert result.exit_code == 2
    assert "0000.png" in result.output
