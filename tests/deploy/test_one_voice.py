from __future__ import annotations

import sys

import pytest

from mimiq_deploy import one_voice as module
from mimiq_deploy.one_voice import one_voice, several_processes


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """As if torchrun had started two, and this is the one of the parameter."""
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)
    rank = str(request.param)
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


def speak(code: int | None) -> None:
    print("a table")
    print("a warning", file=sys.stderr)
    if code is not None:
        sys.exit(code)


@pytest.mark.parametrize("process", [0], indirect=True)
@pytest.mark.usefixtures("process")
def test_the_first_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    assert several_processes()
    with pytest.raises(SystemExit), one_voice():
        speak(2)
    assert capsys.readouterr() == ("a table\n", "a warning\n")


@pytest.mark.parametrize("process", [1], indirect=True)
@pytest.mark.usefixtures("process")
def test_another_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with one_voice():
        speak(None)
    with pytest.raises(SystemExit), one_voice():
        speak(0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("process", [1], indirect=True)
@pytest.mark.usefixtures("process")
def test_another_that_fails_alone_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_voice():
        speak(2)
    assert capsys.readouterr() == ("", "a warning\n")


@pytest.mark.parametrize("process", [1], indirect=True)
@pytest.mark.usefixtures("process")
def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), one_voice():
        _ = 1 / 0
    assert not isinstance(sys.stderr, type(module.io.StringIO()))


def test_one_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    assert not several_processes()
    with one_voice():
        speak(None)
    assert capsys.readouterr() == ("a table\n", "a warning\n")
