"""Our own parsers on what hypothesis makes of valid and of hostile texts.

A parser gives a value or raises an error of :mod:`mimiq_runtime.errors`, and nothing else. The
texts to start from, and those that once found a fault, are in ``corpus/<parser>/``.
``MIMIQ_FUZZ=10`` makes ten times as many cases.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _helpers.runs import make_run
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import load_model_from_string
from PIL import Image

from mimiq_deploy.exporting import exported_scope
from mimiq_deploy.gate_file import read_gate_file
from mimiq_deploy.recipe_loading import load_recipe, parse_bits, parse_setting
from mimiq_runtime.benchmark_compare import read_benchmark
from mimiq_runtime.dataset import open_labelled_images
from mimiq_runtime.edge.bundle import MANIFEST, open_bundle
from mimiq_runtime.edge.engine import LOADERS
from mimiq_runtime.engine_record import RECORD, read_engine_record
from mimiq_runtime.errors import MimiqDeployError
from mimiq_runtime.estimate import ESTIMATE_PATH, read_estimate
from mimiq_runtime.evaluation import EVALUATION
from mimiq_runtime.event_log import EVENTS, read_events, record_events
from mimiq_runtime.inside_view import INSIDE_RECORD, read_inside_record
from mimiq_runtime.manifest import FileRecord
from mimiq_runtime.onnx_external_data import check_external_data, external_data_of
from mimiq_runtime.predictions import PREDICTIONS, read_predictions
from mimiq_runtime.preprocessing import preprocess_image
from mimiq_runtime.report.pareto import candidates_of
from mimiq_runtime.report.shown_parity import read_parity
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.run_lock import LOCK_FILE, lock_holder
from mimiq_runtime.trt_inspector import parse_engine_information

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CORPUS = Path(__file__).parent / "corpus"
CASES = 900 * int(os.environ.get("MIMIQ_FUZZ", "1"))
"""Of each parser: 18,900 in all."""

TOKENS = [
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\x00", b"\xff", b"\\u0000", b"&a", b"*a"),
    *(b"null", b"true", b"NaN", b"-1", b"0", b"1e999", b"9" * 30, b"9" * 5000, b"../", b"/", b"=."),
    *(b"\\ud800", b"\x1b[2J", b"1e-3", b"0x" + b"f" * 5000, b"*/_ORT_MEM_ADDR_/*", b"\xff\xfe"),
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
    """What is accepted takes its weights from plain files of its own folder."""
    path = run.root / "model.onnx"
    path.write_bytes(data)
    check_external_data(path)
    for reference in external_data_of(path):
        place = (run.root / reference.location).resolve()
        assert place.parent == run.root.resolve()
        assert place.is_file()


def gates(run: RunDirectory, data: bytes) -> None:
    path = run.root / "gates.yaml"
    path.write_bytes(data)
    found = read_gate_file(path).validate_
    limits = [found, *found.engines.values()]
    assert all(isinstance(limit, float) for each in limits for limit in each.given.values())


def bench_json(run: RunDirectory, data: bytes) -> None:
    (run.root / "bench.json").write_bytes(data)
    read_benchmark(run.root / "bench.json")


def estimate_json(run: RunDirectory, data: bytes) -> None:
    write(run, ESTIMATE_PATH, data)
    read_estimate(run)


def parity_json(run: RunDirectory, data: bytes) -> None:
    write(run, "parity.json", data)
    read_parity(run)


def predictions_json(run: RunDirectory, data: bytes) -> None:
    write(run, PREDICTIONS, data)
    read_predictions(run)


def inside_json(run: RunDirectory, data: bytes) -> None:
    (run.root / INSIDE_RECORD).parent.mkdir(exist_ok=True)
    write(run, INSIDE_RECORD, data)
    read_inside_record(run)


def evaluation_json(run: RunDirectory, data: bytes) -> None:
    """What the report shows of it are shares."""
    write(run, EVALUATION, data)
    candidates = candidates_of("run", run)
    assert all(0 <= share <= 1 for each in candidates for share in each.quality.values())


def bundle_json(run: RunDirectory, data: bytes) -> None:
    """A bundle that is opened has a model that is in it, and prepares a picture for it."""
    folder = run.root / "bundle"
    folder.mkdir(exist_ok=True)
    (folder / "engine.plan").write_bytes(b"a model")
    (folder / "labels.txt").write_text("cat\ndog\n")
    (folder / MANIFEST).write_bytes(data)
    bundle = open_bundle(folder)
    assert bundle.engine in LOADERS
    assert bundle.model.is_file()
    assert bundle.version_compatible in (True, False)
    picture = Image.new("L" if bundle.preprocessing.input_size[0] == 1 else "RGB", (9, 7))
    preprocess_image(picture, bundle.preprocessing)


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
        *(lock, recipe, labels_csv, onnx, inspector, bits, setting, gates),
        *(bench_json, estimate_json, parity_json, predictions_json, inside_json),
        *(evaluation_json, bundle_json),
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


@st.composite
def odd(draw: st.DrawFn, texts: list[bytes]) -> bytes:
    """A JSON text of the corpus with one value replaced by another, or left out."""
    text = draw(st.sampled_from(texts))
    content = json.loads(text.split(b"\n")[0] if text.startswith(b'{"') else text)
    place, key = [content], 0
    while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 5)):
        place = place[key]
        key = draw(st.sampled_from(list(place if isinstance(place, dict) else range(len(place)))))
    if place is not content and draw(st.integers(0, 3)) == 0:
        del place[key]
    else:
        place[key] = draw(st.sampled_from(VALUES))
    return json.dumps(content).encode()


VALUES: list[object] = [
    *(None, True, False, -1, 0, 1, 0.5, 1e300, -1e300, 2**63, 2**70, 10**40),
    *("", "x", "0.5", "\ud800", "\x1b[2J", "a" * 5000, [], [[]], [1], {}, {"a": 1}),
]


@st.composite
def overwritten(draw: st.DrawFn, data: bytes) -> bytes:
    """A file with up to three of its bytes replaced: lengths, tags and texts change their sense."""
    content = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        content[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


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
    @given(texts_like(name))
    def fuzz(data: bytes) -> None:
        accepts_or_refuses(name, run, data)

    fuzz()


def texts_like(name: str) -> st.SearchStrategy[bytes]:
    any_text = changed(corpus(name)) | st.binary(max_size=64)
    return any_text | odd([corpus(name)[0]]) if corpus(name)[0].startswith(b"{") else any_text


def test_no_reference_is_overlooked(tmp_path: Path) -> None:
    """Against protobuf's own reader, by reflection: where it finds a file's name, so do we."""
    path = tmp_path / "model.onnx"
    found = 0

    @settings(max_examples=CASES, deadline=None, derandomize=True, database=None)
    @given(changed(corpus("onnx")) | overwritten(corpus("onnx")[1]))
    def fuzz(data: bytes) -> None:
        nonlocal found
        try:
            theirs = set(locations(load_model_from_string(data)))
        except DecodeError:
            return
        path.write_bytes(data)
        try:
            ours = {reference.location for reference in external_data_of(path)}
        except MimiqDeployError:
            return
        assert theirs <= ours
        found += bool(theirs)

    fuzz()
    assert found > CASES // 20


def locations(message: Message) -> Iterator[str]:
    """The file of each tensor below a message; the last one of a tensor, as readers take it."""
    if message.DESCRIPTOR.name == "TensorProto":
        named = {entry.key: entry.value for entry in message.external_data}
        if "location" in named:
            yield named["location"]
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                yield from locations(inner)
