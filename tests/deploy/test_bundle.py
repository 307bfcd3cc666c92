"""``mimiq-deploy bundle``: what is packed runs by itself, and answers as ``predict`` does."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from _helpers.plans import PLAN, add_plan
from _helpers.runs import LABELS, ONNX_PATH, make_run, write_classifier
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper
from PIL import Image

import mimiq_runtime
from mimiq_deploy.bundle.device_files import device_files
from mimiq_deploy.bundle.make import bundle_run
from mimiq_deploy.cli import cli
from mimiq_runtime.edge.engine import LOADERS
from mimiq_runtime.session import known_engines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mimiq_runtime.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]

# Everything that a device does not have; the runner must not even look for it.
NOT_THERE = [
    *("torch", "timm", "onnx", "onnx_ir", "pydantic", "click", "rich", "safetensors", "yaml"),
    *("mimiq_deploy", "mimiq_calib", "mimiq_export"),
]
BLOCKED_RUN = """
import json, runpy, sys

missing, script = set(json.loads(sys.argv[1])), sys.argv[2]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, script.rpartition("/")[0])
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""


def bundle(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["bundle", *map(str, arguments)])


def run_on_device(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The bundle's runner in a process that has none of our dependencies."""
    given = [json.dumps(NOT_THERE), str(folder / "run.py"), *map(str, arguments)]
    return subprocess.run(
        [sys.executable, "-c", BLOCKED_RUN, *given],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )


def answers(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    predictions: list[dict[str, Any]] = json.loads(done.stdout)["predictions"]
    return predictions


def predicted(run: RunDirectory, *pictures: Path, engine: str = "ort-cpu") -> list[dict[str, Any]]:
    """What ``predict`` says of each picture alone, as the runner takes them."""
    rows = []
    for picture in pictures:
        words = ["predict", str(run.root), str(picture), "--engine", engine, "--json"]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.output
        rows += json.loads(result.stdout)["predictions"]
    return rows


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Noise of several shapes, modes and orientations: a wrong step changes the answer."""
    rng = np.random.default_rng(0)
    paths = []
    for index, (height, width) in enumerate([(8, 8), (50, 31), (7, 90), (640, 480)]):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(tmp_path / f"noise{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(paths[1]).save(tmp_path / "turned.jpg", exif=turned)
    Image.open(paths[2]).convert("L").save(tmp_path / "grey.png")
    Image.open(paths[3]).convert("RGBA").save(tmp_path / "transparent.png")
    return [*paths, *(tmp_path / name for name in ("turned.jpg", "grey.png", "transparent.png"))]


def test_a_bundle_answers_as_predict_does(
    run: RunDirectory, pictures: list[Path], tmp_path: Path
) -> None:
    """Bit by bit, in a process without pydantic, torch and mimiq-deploy."""
    result = bundle(run.root, "-o", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    done = run_on_device(tmp_path / "bundle", "--json", *pictures)
    assert answers(done) == predicted(run, *pictures)
    line = run_on_device(tmp_path / "bundle", "--top", "1", pictures[0]).stdout
    best = answers(done)[0]["top"][0]
    assert line == f"{pictures[0]}: {best['label']} {best['probability']:.2%}\n"


def test_openvino_too(run: RunDirectory, pictures: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    write_classifier(run.path("export/openvino/model.onnx"))
    run.record_files("export/openvino/model.onnx")
    result = bundle(run.root, "--engine", "openvino", "-o", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    done = run_on_device(tmp_path / "bundle", "--json", *pictures)
    assert answers(done) == predicted(run, *pictures, engine="openvino")


def test_what_is_in_it(run: RunDirectory, tmp_path: Path) -> None:
    result = bundle(run.root, "-o", tmp_path / "bundle", "--json")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "bundle"
    manifest = json.loads((folder / "manifest.json").read_text())
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"run.py", "model.onnx", "labels.txt", "requirements.txt", "README.md"} < there
    assert set(manifest["files"]) == there - {"manifest.json"}
    for name, record in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert record == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert (folder / "model.onnx").read_bytes() == run.path(ONNX_PATH).read_bytes()
    assert (folder / "labels.txt").read_text().split() == LABELS
    facts = {key: manifest[key] for key in ("engine", "target", "bits", "takes", "built_for")}
    assert facts == {
        "engine": "ort-cpu",
        "target": "ort-cpu",
        "bits": "w4a8",
        "takes": "normalised",
        "built_for": None,
    }
    assert manifest["preprocessing"] == run.manifest.preprocessing.model_dump(mode="json")
    summary = json.loads(result.stdout)
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert (summary["manifest_sha256"], summary["archive_sha256"]) == (digest, None)
    assert set(summary["files"]) == there


def test_the_code_is_ours_byte_by_byte() -> None:
    package = Path(mimiq_runtime.__file__).parent
    for engine in known_engines():
        for name, content in device_files(engine).items():
            source = "edge/run.py" if name == "run.py" else name.removeprefix("mimiq_runtime/")
            assert content == (package / source).read_bytes()


@pytest.mark.parametrize("engine", known_engines())
def test_nothing_is_imported_that_is_not_packed(engine: str) -> None:
    """Also for engines that do not run here; what stands in functions is the engine's library."""
    files = device_files(engine)
    allowed = {"mimiq_runtime", "numpy", "PIL"}
    for name, content in files.items():
        for module in module_level_imports(ast.parse(content)):
            top = module.partition(".")[0]
            assert top in allowed | sys.stdlib_module_names, f"{name} imports {module}"
            if top == "mimiq_runtime":
                path = module.replace(".", "/")
                assert {f"{path}.py", f"{path}/__init__.py"} & set(files), f"{name}: {module}"
    assert set(LOADERS) == set(known_engines())


def module_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def damage_model(folder: Path) -> str:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)
    return "model.onnx was changed"


def lose_labels(folder: Path) -> str:
    (folder / "labels.txt").unlink()
    return "labels.txt is missing"


def change_code(folder: Path) -> str:
    path = folder / "mimiq_runtime" / "preprocessing.py"
    path.write_text(path.read_text().replace("255", "256"))
    return "mimiq_runtime/preprocessing.py was changed"


def cut_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text("{")
    return "manifest.json is damaged"


def lose_keys(folder: Path) -> str:
    (folder / "manifest.json").write_text('{"schema_version": 1, "files": {}}')
    return "manifest.json is damaged"


def point_elsewhere(folder: Path) -> str:
    """Another model, whose digest nobody has."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "model_file": "other.onnx"}))
    return "manifest.json is damaged"


def climb(folder: Path) -> str:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../outside"] = manifest["files"]["run.py"]
    path.write_text(json.dumps(manifest))
    return "../outside lies outside of the bundle"


def swap_model(folder: Path) -> str:
    """A file that is no model, with its right digest: what the engine says becomes a sentence."""
    path, manifest_path = folder / "model.onnx", folder / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    path.write_bytes(b"no model")
    manifest["files"]["model.onnx"]["sha256"] = hashlib.sha256(b"no model").hexdigest()
    manifest_path.write_text(json.dumps(manifest))
    return "cannot open model.onnx"


def renumber(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    return "schema version 1, got 2"


@pytest.mark.parametrize(
    "fault",
    [
        *(damage_model, lose_labels, change_code, cut_manifest, renumber),
        *(lose_keys, point_elsewhere, climb, swap_model),
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_bundle_that_was_changed_does_not_run(
    fault: Any, run: RunDirectory, pictures: list[Path], tmp_path: Path
) -> None:
    bundle_run(run, "ort-cpu", tmp_path / "bundle")
    words = fault(tmp_path / "bundle")
    # Whether pictures are given makes no difference; each is tried by some of the faults.
    arguments = ["--verify"] if fault in (change_code, renumber) else [pictures[0]]
    done = run_on_device(tmp_path / "bundle", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_mistakes_on_the_device_are_sentences(run: RunDirectory, tmp_path: Path) -> None:
    bundle_run(run, "ort-cpu", tmp_path / "bundle")
    done = run_on_device(tmp_path / "bundle", tmp_path / "nowhere.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"There is no picture {tmp_path / 'nowhere.png'}" in done.stderr
    done = run_on_device(tmp_path / "bundle")
    assert done.returncode == 2
    assert "give pictures, or --verify" in done.stderr
    done = run_on_device(tmp_path / "bundle", "--verify")
    assert (done.returncode, done.stdout) == (0, "Every file is the one that was packed.\n")


def test_an_archive_is_reproducible_and_runs(
    run: RunDirectory, pictures: list[Path], tmp_path: Path
) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        archive = tmp_path / name / "model.tar.gz"
        result = bundle(run.root, "-o", archive)
        assert result.exit_code == 0, result.output
        digests.add(hashlib.sha256(archive.read_bytes()).hexdigest())
        assert f"sha256 {hashlib.sha256(archive.read_bytes()).hexdigest()}" in result.output
    assert len(digests) == 1
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
        opened.extractall(tmp_path / "device", filter="data")
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {name.partition("/")[0] for name in names} == {"model"}
    owners = {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode) for m in members}
    assert owners == {(0, 0, "", "", 315532800, 0o644)}
    done = run_on_device(tmp_path / "device" / "model", "--json", *pictures)
    assert answers(done) == predicted(run, *pictures)


@pytest.mark.parametrize("name", ["bundle", "bundle.tar", "bundle.tgz"])
def test_nothing_is_overwritten_without_force(name: str, run: RunDirectory, tmp_path: Path) -> None:
    output = tmp_path / "out" / name
    assert bundle(run.root, "-o", output).exit_code == 0
    before = sorted((tmp_path / "out").rglob("*"))
    refused = bundle(run.root, "-o", output)
    assert refused.exit_code == 2
    assert f"{output} exists already" in refused.output
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n")
    assert bundle(run.root, "-o", output, "--force", "--labels", labels).exit_code == 0
    assert sorted((tmp_path / "out").rglob("*")) == before
    if name == "bundle":
        assert (output / "labels.txt").read_text() == "a\nb\nc\n"


def test_a_folder_of_others_is_never_replaced(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    result = bundle(run.root, "-o", tmp_path / "mine", "--force")
    assert result.exit_code == 2
    assert "is not what this command writes" in result.output
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_weights_beside_the_onnx_come_along(
    run: RunDirectory, pictures: list[Path], tmp_path: Path
) -> None:
    expected = predicted(run, *pictures)
    path = run.path(ONNX_PATH)
    model = onnx.load(path)
    onnx.save(
        model, path, save_as_external_data=True, location="model.onnx.beef.data", size_threshold=0
    )
    relative = "export/ort-cpu/model.onnx.beef.data"
    run.record_files(ONNX_PATH, relative)
    digest = run.manifest.files[relative].model_dump()
    record = {"target": "ort-cpu", "external_data": {"model.onnx.beef.data": digest}}
    run.write_json("export/ort-cpu/export.json", record)
    bundle_run(run, "ort-cpu", tmp_path / "bundle")
    shutil.rmtree(run.root)
    assert answers(run_on_device(tmp_path / "bundle", "--json", *pictures)) == expected


def test_weights_from_elsewhere_are_not_packed(run: RunDirectory, tmp_path: Path) -> None:
    path = run.path(ONNX_PATH)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value="../../../secret")
    path.write_bytes(model.SerializeToString())
    run.record_files(ONNX_PATH)
    result = bundle(run.root, "-o", tmp_path / "bundle")
    assert result.exit_code == 2
    assert "secret" in result.output
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_takes_pixels(run: RunDirectory, pictures: list[Path], tmp_path: Path) -> None:
    """The same network behind ``(pixel / 255 - 0.5) / 0.5`` gives the same answers."""
    expected = predicted(run, *pictures)
    path = run.path(ONNX_PATH)
    model = onnx.load(path)
    prefix = [
        helper.make_node("Transpose", ["pixels"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["first"], ["float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["float", "full"], ["unit"]),
        helper.make_node("Sub", ["unit", "half"], ["centred"]),
        helper.make_node("Div", ["centred", "half"], ["images"]),
    ]
    nodes = [*prefix, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in (("full", 255), ("half", 0.5)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    del model.graph.input[:]
    pixels = helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["N", 8, 8, 3])
    model.graph.input.append(pixels)
    helper.set_model_props(model, {"mimiq_deploy.input": "pixels"})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    run.record_files(ONNX_PATH)
    run.write_json("export/ort-cpu/export.json", {"target": "ort-cpu", "input": "pixels"})
    bundle_run(run, "ort-cpu", tmp_path / "bundle")
    assert answers(run_on_device(tmp_path / "bundle", "--json", *pictures)) == expected
    assert "`pixels`, uint8 `(batch, 8, 8, 3)`" in (tmp_path / "bundle" / "README.md").read_text()


class TestLabels:
    def test_of_a_file(self, run: RunDirectory, pictures: list[Path], tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("rot\ngrün\nblau\n")
        result = bundle(run.root, "-o", tmp_path / "b", "--labels", tmp_path / "names.txt")
        assert result.exit_code == 0, result.output
        top = answers(run_on_device(tmp_path / "b", "--json", pictures[0]))[0]["top"]
        assert {row["label"] for row in top} == {"rot", "grün", "blau"}

    def test_none_are_fine_and_said(self, pictures: list[Path], tmp_path: Path) -> None:
        run = make_run(tmp_path / "nameless", labels=None)
        result = bundle(run.root, "-o", tmp_path / "b")
        assert "no names of classes are known" in result.output
        assert not (tmp_path / "b" / "labels.txt").exists()
        assert answers(run_on_device(tmp_path / "b", "--json", *pictures)) == predicted(
            run, *pictures
        )

    def test_too_few_are_refused(self, run: RunDirectory, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("a\nb\n")
        result = bundle(run.root, "-o", tmp_path / "b", "--labels", tmp_path / "names.txt")
        assert result.exit_code == 2
        assert "3 classes, and 2 labels" in result.output
        assert not (tmp_path / "b").exists()


def test_the_device_needs_what_pyproject_says(run: RunDirectory, tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = [line for line in project["dependencies"] if line.startswith(("numpy", "pillow"))]
    bundle_run(run, "ort-cpu", tmp_path / "bundle")
    lines = (tmp_path / "bundle" / "requirements.txt").read_text().splitlines()
    assert lines == [*base, *project["optional-dependencies"]["ort"]]
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["requires"] == lines
    assert manifest["python"] == project["requires-python"]


class TestPlans:
    @pytest.fixture
    def run(self, run: RunDirectory) -> RunDirectory:
        write_classifier(run.path("export/trt/model.onnx"))
        run.record_files("export/trt/model.onnx")
        return run

    def test_a_plan_is_packed_without_a_gpu(self, run: RunDirectory, tmp_path: Path) -> None:
        add_plan(run)
        result = bundle(run.root, "--engine", "trt", "-o", tmp_path / "bundle")
        assert result.exit_code == 0, result.output
        assert (tmp_path / "bundle" / "engine.plan").read_bytes() == PLAN
        manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
        assert "tensorrt==10.3.0" in manifest["requires"]
        assert manifest["built_for"] == {
            "gpu": "Orin",
            "compute_capability": "8.7",
            "hardware_compatibility": "none",
            "tensorrt": "10.3.0",
        }
        page = (tmp_path / "bundle" / "README.md").read_text()
        assert "with TensorRT 10.3.0 on Orin (compute capability 8.7)" in page

    def test_a_version_compatible_plan_takes_later_versions(
        self, run: RunDirectory, tmp_path: Path
    ) -> None:
        add_plan(run, version_compatible=True)
        assert "tensorrt>=10.3.0" in bundle_run(run, "trt", tmp_path / "bundle").requires
        manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
        assert manifest["version_compatible"] is True

    def test_one_of_several_is_named(self, run: RunDirectory, tmp_path: Path) -> None:
        orin = add_plan(run)
        add_plan(run, gpu="NVIDIA H200", capability="9.0")
        arguments = [run.root, "--engine", "trt", "-o", tmp_path / "bundle"]
        refused = bundle(*arguments)
        assert refused.exit_code == 2
        assert "orin-sm87, nvidia-h200-sm90; say with --device" in refused.output
        assert bundle(*arguments, "--device", orin).exit_code == 0
        unknown = bundle(*arguments, "--device", "a100")
        assert "Expected a TensorRT plan for a100" in unknown.output

    @pytest.mark.parametrize(
        ("facts", "words"),
        [
            (None, "none was built: run mimiq-deploy build"),
            ({"weights": "stripped"}, "built without its weights"),
            ({"min_batch": 2}, "takes batches of 2 and more"),
        ],
    )
    def test_what_cannot_run_is_refused(
        self, facts: dict[str, Any] | None, words: str, run: RunDirectory, tmp_path: Path
    ) -> None:
        if facts is not None:
            add_plan(run, **facts)
        result = bundle(run.root, "--engine", "trt", "-o", tmp_path / "bundle")
        assert result.exit_code == 2
        assert words in result.output

    def test_a_device_is_for_plans_only(self, run: RunDirectory, tmp_path: Path) -> None:
        result = bundle(run.root, "--device", "orin", "-o", tmp_path / "bundle")
        assert "ort-cpu opens an ONNX file" in result.output


def test_what_was_not_exported_or_was_changed_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    result = bundle(run.root, "--engine", "openvino", "-o", tmp_path / "bundle")
    assert result.exit_code == 2
    assert "--target openvino first" in result.output
    run.path(ONNX_PATH).write_bytes(b"something else")
    result = bundle(run.root, "-o", tmp_path / "bundle")
    assert "is damaged: its content is not what run.json has" in result.output
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["x.zip", "x.RAR", "x.7z", "x.tar.xz", "x.TAR.GZ"])
@pytest.mark.parametrize("option", [(), ("--triton",)], ids=["device", "triton"])
def test_no_folder_is_named_like_an_archive(
    name: str, option: tuple[str, ...], run: RunDirectory, tmp_path: Path
) -> None:
    result = bundle(run.root, "-o", tmp_path / "out" / name, *option)
    assert result.exit_code == 2
    assert "only .tar.gz, .tgz, .tar are written" in result.output
    assert not (tmp_path / "out").exists()


def test_a_dot_in_the_name_of_a_folder_is_fine(run: RunDirectory, tmp_path: Path) -> None:
    assert bundle(run.root, "-o", tmp_path / "deit-v1.2").exit_code == 0
    assert (tmp_path / "deit-v1.2" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "content",
    [
        *([], {"input": "bytes"}, {"scope": ["linear"]}, {"quantized": [1]}),
        # Packed beside the runner, it would be the runner.
        {"external_data": {"run.py": {}}},
        {"external_data": {"../../model.safetensors": {}}},
    ],
    ids=str,
)
def test_a_damaged_record_is_one_sentence(content: Any, run: RunDirectory, tmp_path: Path) -> None:
    run.write_json("export/ort-cpu/export.json", content)
    result = bundle(run.root, "-o", tmp_path / "bundle")
    assert result.exit_code == 2
    assert "export.json is damaged; export ort-cpu again" in result.output


def test_an_environment_of_its_own_classifies_a_picture(
    run: RunDirectory, pictures: list[Path], tmp_path: Path
) -> None:
    """A new virtual environment, filled from the bundle's requirements.txt as its page says."""
    bundle_run(run, "ort-cpu", tmp_path / "bundle")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    requirements = ["-r", tmp_path / "bundle" / "requirements.txt"]
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "30", "--constraint", ROOT / "constraints.txt"]
    done = subprocess.run(
        [*command, *requirements], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"pip cannot install the requirements: {done.stderr.strip()[-200:]}")
    clean = {"PATH": "/usr/bin:/bin"}  # above all no PYTHONPATH
    there = "import importlib.util as u; print([n for n in {} if u.find_spec(n)])"
    found = subprocess.run(
        [python, "-c", there.format(NOT_THERE)],
        capture_output=True,
        text=True,
        env=clean,
        cwd=tmp_path,
        check=True,
    )
    assert found.stdout == "[]\n"
    done = subprocess.run(
        [python, tmp_path / "bundle" / "run.py", "--json", *pictures],
        capture_output=True,
        text=True,
        env=clean,
        cwd=tmp_path,
        check=False,
    )
    assert answers(done) == predicted(run, *pictures)
