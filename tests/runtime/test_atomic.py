from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import NoReturn

import pytest

from mimiq_runtime.atomic import (
    atomic_group,
    atomic_path,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)
from mimiq_runtime.errors import InvalidInputError


def test_writes_new_and_replaces_old(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "old ü\n")
    assert path.read_bytes() == "old ü\n".encode()
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failing_writer_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> NoReturn:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the ne")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_old_content_is_there_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename is atomic within one file system only
    assert path.read_text() == "new"


@pytest.mark.parametrize("step", ["fsync", "replace", "mkstemp", "write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_failing_disk_is_one_sentence_and_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    targets = {
        "fsync": "os.fsync",
        "replace": "pathlib.Path.replace",
        "mkstemp": "tempfile.mkstemp",
        "write": "pathlib.Path.write_bytes",
    }
    with monkeypatch.context() as patch:
        patch.setattr(targets[step], fail)
        with pytest.raises(InvalidInputError, match="writable and has room") as caught:
            write_bytes(path, b"new")
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_content_is_flushed_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(f"flush {kind}")
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    write_text(path, "new")
    assert events == ["flush file", "rename", "flush folder"]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(InvalidInputError, match="Cannot write"):
        write_text(tmp_path / "a" / "b.txt", "y")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInputError, match="Is a directory"):
        write_text(tmp_path / "folder", "y")
    assert sorted(os.listdir(tmp_path)) == ["a", "folder"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "x")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


def test_json_is_readable_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None, "ü"]})
    assert json.loads(path.read_text()) == {"a": [1, None, "ü"]}
    assert path.read_text().endswith("}\n")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(path, {"a": bad})
    assert json.loads(path.read_text()) == {"a": [1, None, "ü"]}
    assert os.listdir(tmp_path) == ["a.json"]


def test_sha256(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_a_group_of_files_appears_at_once_and_the_main_file_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = tmp_path / "deep" / "a.onnx"
    moved = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, target: moved.append(target.name) or replace(self, target)
    )
    with atomic_group(main) as temporary:
        temporary.write_text("refers to z.data")
        (temporary.parent / "z.data").write_text("weights")
        assert [path.name for path in main.parent.glob("[az]*")] == []
    assert moved == ["z.data", "a.onnx"]
    assert sorted(os.listdir(main.parent)) == ["a.onnx", "z.data"]
    assert (main.parent / "z.data").read_text() == "weights"
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in main.parent.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_failing_group_leaves_the_old_files_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    for name in ("a.onnx", "z.data"):
        (tmp_path / name).write_text("old")

    def write_half() -> NoReturn:
        with atomic_group(tmp_path / "a.onnx") as temporary:
            (temporary.parent / "z.data").write_text("half of the ne")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.onnx": "old",
        "z.data": "old",
    }


@pytest.mark.parametrize("step", ["fsync", "mkdtemp"])
def test_a_disk_that_fails_a_group_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.onnx").write_text("old")
    monkeypatch.setattr({"fsync": "os.fsync", "mkdtemp": "tempfile.mkdtemp"}[step], fail)
    with (
        pytest.raises(InvalidInputError, match=r"Cannot write .*a\.onnx: No space left"),
        atomic_group(tmp_path / "a.onnx") as temporary,
    ):
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "old"
