"""Our own parsers on what hypothesis makes of valid and of hostile texts.

A parser gives a value or raises an error of :mod:`mimiq_runtime.errors`, and nothing else. The
texts to start from, and those that once found a fault, are in ``corpus/<parser>/``.
``MIMIQ_FUZZ=10`` makes ten times as many cases.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _helpers.runs import make_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimiq_deploy.exporting import exported_scope
from mimiq_deploy.recipe_loading import load_recipe, parse_bits, parse_setting
from mimiq_runtime.dataset import open_labelled_images
from mimiq_runtime.engine_record import RECORD, read_engine_record
from mimiq_runtime.errors import MimiqDeployError
from mimiq_runtime.event_log import EVENTS, read_events, record_events
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.onnx_external_data import external_data_of
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.run_lock import LOCK_FILE, lock_holder
from mimiq_runtime.trt_inspector import parse_engine_information

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).parent / "corpus"
CASES = 900 * int(os.environ.get("MIMIQ_FUZZ", "1"))
"""Of each parser: 11,700 in all."""

TOKENS = [
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\x00", b"\xff", b"\\u0000", b"&a", b"*a"),
    *(b"null", b"true", b"NaN", b"-1", b"0", b"1e999", b"9" * 30, b"9" * 5000, b"../", b"/", b"=."),
    *(b"[" * 2000, b"{a: " * 500, b"!!python/name:os.system", b"<<", b"\x80" * 12, b"\x7f"),
]


def run_json(run: RunDirectory, data: bytes) -> None:
    (run.root / "run.json").write_bytes(data)
    opened = RunDirectory.open(run.root)
    opened.damaged_files()
    opened.manifest.bits  # noqa: B018


def quantization_json(run: RunDirectory, data: bytes) -> None:
    write(run, run.TABLE, data)
    run.quantization_table()


def metrics_jsonl(run: RunDirectory, data: bytes) -> None:
    write(run, run.METRICS, data)
    run.read_metrics("synthesis")


def events_jsonl(run: RunDirectory, data: bytes) -> None:
    """Lines that are no event are passed over, and what follows is read."""
    (run.root / EVENTS).write_bytes(data)
    read_events(run.root)
    with record_events(run.root, "export"):
        pass
    assert [event.event for event in read_events(run.root)][-2:] == ["started", "finished"]


def export_json(run: RunDirectory, data: bytes) -> None:
    write(run, "export/ort-cpu/export.json", data)
    exported_scope(run, "ort-cpu")


def engine_json(run: RunDirectory, data: bytes) -> None:
    (run.root / RECORD).write_bytes(data)
    read_engine_record(run.root / "engine.plan")


def lock(run: RunDirectory, data: bytes) -> None:
    (run.root / LOCK_FILE).write_bytes(data)
    lock_holder(run.root)


def recipe(run: RunDirectory, data: bytes) -> None:
    path = run.root / "recipe.yaml"
    path.write_bytes(data)
    load_recipe(str(path))


def labels_csv(run: RunDirectory, data: bytes) -> None:
    (run.root / "labels.csv").write_bytes(data)
    open_labelled_images(run.root, num_classes=3)


def onnx(run: RunDirectory, data: bytes) -> None:
    (run.root / "model.onnx").write_bytes(data)
    external_data_of(run.root / "model.onnx")


def inspector(run: RunDirectory, data: bytes) -> None:
    parse_engine_information(data.decode(errors="replace"))


def bits(run: RunDirectory, data: bytes) -> None:
    parse_bits(data.decode(errors="replace"))


def setting(run: RunDirectory, data: bytes) -> None:
    parse_setting(data.decode(errors="replace"))


def write(run: RunDirectory, name: str, data: bytes) -> None:
    """As :meth:`RunDirectory.write_bytes`, without waiting for the disk."""
    (run.root / name).write_bytes(data)
    record = FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    files = {**run.manifest.files, name: record}
    run.manifest = run.manifest.model_copy(update={"files": files})


PARSERS: dict[str, Callable[[RunDirectory, bytes], None]] = {
    parser.__name__: parser
    for parser in (
        *(run_json, quantization_json, metrics_jsonl, events_jsonl, export_json, engine_json),
        *(lock, recipe, labels_csv, onnx, inspector, bits, setting),
    )
}


def corpus(name: str) -> list[bytes]:
    texts = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert texts
    return texts


@st.composite
def changed(draw: st.DrawFn, texts: list[bytes]) -> bytes:
    """A text of the corpus with up to four pieces cut out, put in or replaced."""
    data = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 8, 10_000]))
        piece = draw(st.sampled_from(TOKENS) | st.binary(max_size=4))
        data = data[:start] + piece + data[end:]
    return data


def accepts_or_refuses(name: str, run: RunDirectory, data: bytes) -> bool:
    """Whether it was accepted; any other error than ours is a fault."""
    try:
        PARSERS[name](run, data)
    except MimiqDeployError:
        return False
    return True


@pytest.mark.parametrize("name", PARSERS)
def test_corpus(tmp_path: Path, name: str) -> None:
    """The first of each is valid: what is made of it is near to what a parser accepts."""
    run = make_run(tmp_path / "run")
    accepted = [accepts_or_refuses(name, run, data) for data in corpus(name)]
    assert accepted[0]


@pytest.mark.parametrize("name", PARSERS)
def test_fuzz(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")

    @settings(
        max_examples=CASES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(corpus(name)) | st.binary(max_size=64))
    def fuzz(data: bytes) -> None:
        accepts_or_refuses(name, run, data)

    fuzz()
