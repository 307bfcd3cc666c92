"""The command line: lazy imports, exit codes, one sentence an error."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from _helpers.runs import ONNX_PATH, make_run
from click.testing import CliRunner

import mimiq_deploy
from mimiq_deploy.cli import COMMANDS, KEPT, LazyCommand, LazyGroup, Terminated, cli, main
from mimiq_deploy.engine_models import known_targets
from mimiq_export.targets.registry import TARGETS
from mimiq_runtime.errors import MimiqDeployError

# Everything that --help may not import: it fails as if it were not installed.
BLOCKER = """
import sys

HEAVY = {
    "torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino",
    "tensorrt", "polygraphy", "sklearn", "matplotlib", "mimiq_export",
}
TORCH_FREE = {"mimiq_calib", "mimiq_calib.recipe"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in HEAVY or (root == "mimiq_calib" and name not in TORCH_FREE):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

assert not HEAVY & set(sys.modules), HEAVY & set(sys.modules)
sys.meta_path.insert(0, Blocker())
"""
RUN_CLI = "from mimiq_deploy.cli import main; main()"


def run_blocked(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mimiq_deploy", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", ["onnx", "mimiq_calib.conversion", "mimiq_export"])
def test_the_blocker_blocks(module: str) -> None:
    result = run_blocked(f"import {module}")
    assert "blocked" in result.stderr


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_needs_no_heavy_library(arguments: list[str]) -> None:
    result = run_blocked(RUN_CLI, *arguments, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith(f"Usage: {' '.join(['mimiq-deploy', *arguments])} ")


def test_overview_imports_no_command() -> None:
    code = f"""
import atexit
atexit.register(lambda: print(sorted(m for m in sys.modules if "mimiq_deploy.commands" in m)))
{RUN_CLI}
"""
    result = run_blocked(code, "--help")
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_overview_says_what_the_command_says(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(limit=200) == COMMANDS[name].help
    assert COMMANDS[name].help in CliRunner().invoke(cli, ["--help"]).output


def test_commands_are_those_of_the_folder() -> None:
    folder = Path(mimiq_deploy.__file__).parent / "commands"
    modules = {
        f"mimiq_deploy.commands.{path.stem}"
        for path in folder.glob("*.py")
        if "@click.command" in path.read_text(encoding="utf-8")
    }
    assert modules == {command.module for command in COMMANDS.values()}


def test_version() -> None:
    result = CliRunner().invoke(cli, ["--version"], prog_name="mimiq-deploy")
    assert result.output == f"mimiq-deploy {mimiq_deploy.__version__}\n"
    assert mimiq_deploy.__version__[0].isdigit()


def test_package_has_no_other_lazy_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mimiq_deploy.nonsense


@pytest.mark.parametrize(
    ("typed", "hint"), [("inspekt", " Did you mean 'inspect'?"), ("zzz", "")], ids=["near", "far"]
)
def test_unknown_command(typed: str, hint: str) -> None:
    result = CliRunner().invoke(cli, [typed])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == f"Error: No such command '{typed}'.{hint}"


def test_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = run_module("inspect", str(tmp_path))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {tmp_path} is not a run directory")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("bench run --tolerance 0.1", "--tolerance counts only with --compare; give --compare"),
        ("validate run --layer-threshold 40", "--layer-threshold counts only with --per-layer"),
        ("validate run --limit 3", "--limit counts only with --data or --against; give"),
        ("bundle run --name tiny", "--name counts only with --triton; give --triton, too"),
        ("bundle run --max-batch 32", "--max-batch counts only with --triton"),
        ("bundle run --name a --max-batch 1", "--name and --max-batch count only with --triton"),
        (
            "bundle run --triton --engine trt --max-batch 4",
            "--max-batch counts only without --engine trt; leave one of the two out",
        ),
        ("build run --refit --refittable", "--refittable counts only without --refit; leave"),
        ("build run --refit --timing-cache kept", "--timing-cache counts only without --refit"),
        ("study deit -o out --limit 4", "--limit counts only with --data; give --data, too"),
        ("study deit -o out --batch-size 64", "--batch-size counts only with --data"),
    ],
)
def test_an_option_that_nothing_would_look_at_is_refused(line: str, sentence: str) -> None:
    """Also where it says what the default is; before the run is opened, which is not there."""
    result = CliRunner().invoke(cli, line.split())
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {sentence}")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "bench run --compare nowhere.json --tolerance 0.1",
        "validate run --per-layer --layer-threshold 40",
        "validate run --against fp32 --limit 3",
        "bundle run --triton --name tiny --max-batch 4",
        "build run --refit --target fp16 --allow-floating-point",
        "build run --max-batch 4 --timing-cache kept",
        "inspect run --verify",
    ],
)
def test_an_option_with_its_partner_comes_to_the_run(line: str) -> None:
    result = CliRunner().invoke(cli, line.split())
    assert result.exit_code == 2
    assert " counts only " not in result.output
    assert "run" in result.output


def test_a_tolerance_in_a_gate_file_needs_something_to_compare(tmp_path: Path) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text("bench: {tolerance: 0.05}")
    result = CliRunner().invoke(cli, ["bench", "run", "--gates", str(gates)])
    assert result.exit_code == 2
    assert "nothing is compared; give --compare, too" in result.output


@pytest.mark.parametrize("command", ["build", "bench", "build of a file"])
def test_no_target_of_this_name_is_said_before_anybody_is_sent_to_make_it(
    command: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    words = {
        "build": ["build", str(run.root), "--target", "foo"],
        "bench": ["bench", str(run.root), "--baseline", "foo"],
        "build of a file": ["build", str(run.path(ONNX_PATH)), "--target", "foo"],
    }[command]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert result.output == (
        f"Error: There is no target 'foo'; choose one of {', '.join(known_targets())}.\n"
    )


def test_known_targets_are_those_that_can_be_written() -> None:
    assert set(known_targets()) == set(TARGETS)


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    make_run(tmp_path / "run", exported=False)
    for option in ([], ["--json"]):
        with subprocess.Popen(
            [sys.executable, "-m", "mimiq_deploy", "inspect", str(tmp_path / "run"), *option],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            errors = process.stderr.read()
        assert errors == b""
        assert process.returncode == 1


class StrangeError(MimiqDeployError):
    exit_code = 3


@click.command("fail")
@click.argument("how")
def failing_command(how: str) -> None:
    """Fail."""
    click.get_current_context().meta[KEPT] = lambda: how != "early"
    failures: dict[str, BaseException] = {
        "strange": StrangeError("first line\n  second line"),
        "interrupt": KeyboardInterrupt(),
        "early": KeyboardInterrupt(),
        "bug": ZeroDivisionError("a bug"),
    }
    raise failures[how]


@pytest.fixture
def failing_group(monkeypatch: pytest.MonkeyPatch) -> LazyGroup:
    module = types.ModuleType("failing_module")
    vars(module)["an_arbitrary_name"] = failing_command
    monkeypatch.setitem(sys.modules, "failing_module", module)
    table = {
        "fail": LazyCommand("failing_module", "Fail"),
        "absent": LazyCommand("failing_module", "Not in its module"),
    }
    return LazyGroup(table=table, name="group")


def test_an_error_gives_its_exit_code_and_one_line(failing_group: LazyGroup) -> None:
    result = CliRunner().invoke(failing_group, ["fail", "strange"])
    assert result.exit_code == 3
    assert result.output == "Error: first line second line\n"


def test_an_interrupt_is_exit_code_130(failing_group: LazyGroup) -> None:
    result = CliRunner().invoke(failing_group, ["fail", "interrupt"])
    assert result.exit_code == 130
    assert result.output.startswith("Error: Interrupted;")
    assert result.output.count("\n") == 1


def test_an_interrupt_before_anything_was_written_says_so(failing_group: LazyGroup) -> None:
    result = CliRunner().invoke(failing_group, ["fail", "early"])
    assert result.exit_code == 130
    assert result.output == (
        "Error: Interrupted; nothing was written: run the same command again.\n"
    )


@pytest.mark.parametrize("begun", [False, True])
def test_calibrate_tells_of_a_run_only_where_there_is_one(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_request: object, output: Path, **_: object) -> None:
        output.mkdir()
        if begun:
            (output / "run.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("mimiq_deploy.calibration.calibrate", interrupted)
    result = CliRunner().invoke(cli, ["calibrate", "deit", "-o", str(tmp_path / "run")])
    assert result.exit_code == 130
    assert ("--resume to go on" in result.output) == begun
    assert ("nothing was written" in result.output) != begun


@pytest.mark.parametrize("command", ["study deit", "demo"])
def test_a_file_in_the_place_of_a_folder(command: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    result = CliRunner().invoke(cli, [*command.split(), "-o", str(notes)])
    assert result.exit_code == 2
    assert result.output == f"Error: --output: {notes} is a file; give a folder.\n"
    assert notes.read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "example"), [("--model-arg", "img_size=32"), ("--preprocessing", "mean=[0.5,")]
)
def test_a_slip_names_its_option_and_an_example_of_it(
    option: str, example: str, tmp_path: Path
) -> None:
    words = ["calibrate", "deit", "-o", str(tmp_path / "run"), option, "img_size", option, "=3"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {option} is written like {example}")
    assert "got 'img_size'" in result.output
    assert "got '=3'" in result.output


def test_a_bug_keeps_its_traceback(failing_group: LazyGroup) -> None:
    result = CliRunner().invoke(failing_group, ["fail", "bug"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_module_without_its_command_is_a_bug(failing_group: LazyGroup) -> None:
    result = CliRunner().invoke(failing_group, ["absent"])
    assert isinstance(result.exception, LookupError)
    assert "failing_module defines no click command named 'absent'" in str(result.exception)


@pytest.mark.parametrize(("command", "remedy"), [("calibrate", "--resume"), ("build", "again.")])
def test_sigterm_a_moment_before_a_command_begins(
    command: str, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminate(**_: object) -> None:
        raise Terminated

    monkeypatch.setattr(cli, "main", terminate)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["mimiq-deploy", command, "run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    said = capsys.readouterr().err
    assert said.startswith("Error: Terminated; what was finished is kept: ")
    assert remedy in said
