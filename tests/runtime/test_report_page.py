"""The page as a reader's browser gets it: parsed, not compared with a golden file."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from _helpers.report_runs import PICTURES, bench_on_a_gpu, make_bare_run, make_full_run, parity
from PIL import Image

from mimiq_runtime.errors import InvalidInputError, MissingDependencyError
from mimiq_runtime.report.page import check_libraries, render_page, write_page

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_runtime.run_directory import RunDirectory

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

SECTIONS = [
    *("model", "images", "attention", "head-similarity", "losses"),
    *("layer-errors", "estimate", "disagreements", "parity", "speed"),
]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What is in a page: tags with attributes, text by section; complains about bad nesting."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.pictures: dict[str, int] = {}
        self._open: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if "data-section" in attributes:
            self._section = attributes["data-section"] or ""
            self.text.setdefault(self._section, "")
        if tag in ("img", "svg"):
            self.pictures[self._section] = self.pictures.get(self._section, 0) + 1
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self.handle_data(" ")
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        self.text[self._section] = self.text.get(self._section, "") + data

    def attributes(self, name: str) -> list[str]:
        return [
            value or "" for _, found in self.tags for key, value in found.items() if key == name
        ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_full_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def html(run: RunDirectory) -> str:
    return render_page([run])


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Page:
    root = tmp_path_factory.mktemp("several")
    runs = [
        make_full_run(root / "small" / "run", accuracy=0.7, milliseconds=1.0),
        make_full_run(root / "large" / "run", accuracy=0.8, milliseconds=3.0),
    ]
    return Page(render_page(runs))


def photographs(folder: Path) -> Path:
    folder.mkdir()
    for shade, name in enumerate(PICTURES):
        Image.new("RGB", (300, 200), (60 * shade, 80, 90)).save(folder / name)
    return folder


def test_every_section_is_there_with_its_content(page: Page) -> None:
    assert list(page.text)[1:] == [*SECTIONS, "pareto"]
    assert not any("Make it with" in page.text[name] for name in SECTIONS)
    assert "needs more than one run" in page.text["pareto"]
    for name, pictures in {
        "images": 1,
        "attention": 2 + 2 * 2 * 2,  # two images, and two layers of two models for each
        "head-similarity": 1,
        "losses": 4,
        "layer-errors": 1,
        "estimate": 1,
        "speed": 3,
    }.items():
        assert page.pictures[name] == pictures, name


def test_the_figures_of_the_files_are_in_the_page(page: Page) -> None:
    assert "75.0 %" in page.text[""]  # accuracy of the engine, as a tile
    assert "-15.00 points" in page.text["parity"]
    assert "passed" in page.text["parity"]
    assert "failed" in page.text["parity"]
    assert "torch is not installed" in page.text["parity"]
    assert "11.0 dB" in page.text["layer-errors"]
    assert "2.00 (1.80 to 2.20)" in page.text["speed"]
    assert "From 0.110 to 0.310" in page.text["head-similarity"]
    assert "It fell" not in page.text["head-similarity"]


def test_what_the_images_began_as_is_said(tmp_path: Path) -> None:
    texts = []
    for number, (start, mixed) in enumerate((("noise", 0), ("dead-leaves", 12))):
        run = make_full_run(tmp_path / str(number))
        begun = {"source": "mimiq", "start": start, "dead_leaves": mixed}
        run.manifest.recipe["synthesis"] = begun
        texts.append(" ".join(Page(render_page([run])).text["images"].split()))
    assert "Made from noise with" in texts[0]
    assert "mixed in" not in texts[0]
    assert "Made from pictures of random shapes with" in texts[1]
    assert "12 more pictures of random shapes are mixed in." in texts[1]


def test_what_a_gpu_told_and_a_regression_are_in_the_page(tmp_path: Path) -> None:
    run = make_bare_run(tmp_path / "run")
    run.write_json("bench.json", bench_on_a_gpu().model_dump(mode="json"))
    text = " ".join(Page(render_page([run])).text["speed"].split())
    assert "1.234 1.300 1.400 1.567" in text
    # A GPU that does not tell its lowest clock has a dash there.
    assert "8 151 1980 - 50 3000" in text
    assert "3.00 2.00 -33.3 regressed" in text
    assert "older.json was measured on another machine." in text
    assert "A GPU, driver 1.2." in text


def test_a_head_similarity_that_fell_is_said(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run")
    for shard in range(2):
        rows = [{"step": step, "loss": 1.0, "head_similarity": 0.5 - step / 100} for step in (0, 9)]
        run.write_metrics("synthesis", shard, rows)
    text = Page(render_page([run])).text["head-similarity"]
    assert "From 0.500 to 0.410" in text
    assert "It fell in this run" in text


def test_nothing_is_loaded_from_anywhere(html: str, page: Page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "image"}
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    assert all(target.startswith("#") for target in page.attributes("href"))
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    assert "://" not in html
    policies = page.attributes("content")
    assert any(policy.startswith("default-src 'none'") for policy in policies)


def test_anchors_and_identifiers_are_unique_and_lead_somewhere(html: str, page: Page) -> None:
    names = page.attributes("id")
    assert len(names) == len(set(names))
    used = re.findall(r"url\(#([^)]+)\)", html)
    targets = [target.removeprefix("#") for target in page.attributes("href")]
    assert set(targets + used) <= set(names)


def test_it_follows_the_theme_and_fits_a_phone(html: str, page: Page) -> None:
    assert "prefers-color-scheme: dark" in html
    assert any("width=device-width" in content for content in page.attributes("content"))
    # No colour of matplotlib is left: each is a variable, which the dark theme sets anew.
    assert not re.search(r"(fill|stroke): *#", html)
    assert "var(--series-1)" in html
    assert "currentColor" in html


def test_the_pictures_in_it_can_be_decoded(page: Page) -> None:
    for source in page.attributes("src"):
        _, _, data = source.partition("base64,")
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()


def test_a_map_is_bright_where_the_model_looks(tmp_path: Path) -> None:
    from mimiq_runtime.report.embedding import embed_map

    values = np.array([[0.0, 0.5], [0.25, 1.0]])
    _, _, data = embed_map(values, 1.0).partition("base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        brightness = np.asarray(image.convert("L"), dtype=float)
    assert np.array_equal(np.argsort(brightness.ravel()), np.argsort(values.ravel()))


def test_a_run_without_anything_says_what_makes_each_part(tmp_path: Path) -> None:
    page = Page(render_page([make_bare_run(tmp_path / "bare")], not_inside={}))
    empty = {
        "images": "mimiq-deploy calibrate",
        "attention": "mimiq-deploy report",
        "head-similarity": "synthesis.source=mimiq",
        "losses": "mimiq-deploy calibrate",
        "layer-errors": "mimiq-deploy report",
        "estimate": "synthesis.held_out=32",
        "disagreements": "mimiq-deploy validate",
        "parity": "mimiq-deploy validate",
        "speed": "mimiq-deploy bench",
    }
    for name, command in empty.items():
        assert command in page.text[name], name
        assert name not in page.pictures  # never an empty plot


def test_names_of_users_are_text(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    run = make_full_run(
        tmp_path / "<b>run" / "$x^{2$&\"'",
        labels=[bad, '"><img src=x onerror=alert(1)>', "blue"],
        pictures=["a.png", "b.png", f"{bad}.png", "d.png"],
        folder=f"</title>{bad}",
    )
    other = make_full_run(tmp_path / "<i>other")
    html = render_page([run, other])
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not {"b", "i"} & {tag for tag, found in page.tags if not found and tag in ("i",)}
    assert page.attributes("onerror") == []
    assert bad in page.text["disagreements"]
    # Also where matplotlib writes them.
    assert "<i>other" in page.text["pareto"]
    assert "$x^{2$&" in page.text["pareto"]


def test_a_damaged_file_costs_its_section_only(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run")
    run.path("parity.json").write_text('{"engines": 3}')
    run.path("estimate.json").write_text("[]")
    page = Page(render_page([run]))
    assert "is damaged" in page.text["parity"]
    assert "is damaged" in page.text["estimate"]
    assert page.pictures["speed"] == 3


def test_an_inside_view_of_other_weights_is_not_shown(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run")
    run.write_tensors(run.QUANTIZED, {"head.weight": np.zeros((3, 3), dtype=np.float32)})
    page = Page(render_page([run], not_inside={run.root: "There is no torch."}))
    assert "There is no torch." in page.text["attention"]
    assert "attention" not in page.pictures


class TestDisagreements:
    def test_who_is_right_and_what_is_taken_for_what(self, page: Page) -> None:
        text = re.sub(r"\s+", " ", page.text["disagreements"])
        assert "2 of 4 pictures (50.0 %)" in text
        assert "only full precision is right 1" in text
        assert "only the quantized model is right 1" in text
        assert "neither is right 0" in text
        assert "blue red 1" in text
        assert "green red 1" in text
        assert "fake-quantized" not in text

    def test_photographs_come_in_only_when_given(
        self, run: RunDirectory, page: Page, tmp_path: Path
    ) -> None:
        assert "disagreements" not in page.pictures
        assert "--data photographs" in page.text["disagreements"]
        shown = Page(render_page([run], data=photographs(tmp_path / "photographs")))
        assert shown.pictures["disagreements"] == 2

    def test_pictures_without_labels_are_shown_too(self, tmp_path: Path) -> None:
        run = make_full_run(tmp_path / "run", truth=None)
        page = Page(render_page([run], data=photographs(tmp_path / "photographs")))
        text = re.sub(r"\s+", " ", page.text["disagreements"])
        assert "2 of 4 pictures (50.0 %)" in text
        assert "blue red 1" in text
        assert "is right" not in text
        assert page.pictures["disagreements"] == 2

    def test_a_record_cannot_lead_out_of_the_folder(self, tmp_path: Path) -> None:
        folder = photographs(tmp_path / "photographs")
        shutil.copy(folder / "c.png", tmp_path / "secret.png")
        run = make_full_run(tmp_path / "run", pictures=["a.png", "b.png", "../secret.png", "d.png"])
        page = Page(render_page([run], data=folder))
        assert page.pictures["disagreements"] == 1
        assert "lies outside" in page.text["disagreements"]

    def test_a_later_export_is_noticed(self, tmp_path: Path) -> None:
        run = make_full_run(tmp_path / "run")
        path = "export/ort-cpu/model.onnx"
        run.path(path).write_bytes(b"another")
        run.record_files(path)
        assert "has changed since" in Page(render_page([run])).text["disagreements"]


class TestSeveralRuns:
    def test_they_are_compared_by_latency_and_by_size(self, both: Page) -> None:
        assert both.pictures["pareto"] == 2
        text = both.text["pareto"]
        for name in ("small/run", "large/run", "full precision"):
            assert name in text
        assert "70.0 %" in text
        assert "3.00" in text

    def test_each_has_its_sections(self, both: Page) -> None:
        assert both.attributes("data-section") == ["pareto", *SECTIONS, *SECTIONS]
        names = both.attributes("id")
        assert len(names) == len(set(names))

    def test_what_cannot_be_compared_is_said(self, tmp_path: Path) -> None:
        first, second = (make_full_run(tmp_path / name) for name in ("first", "second"))
        second.write_json("parity.json", parity(0.5, "other photographs"))
        third = make_bare_run(tmp_path / "third")
        text = Page(render_page([first, second, third])).text["pareto"]
        assert "different pictures" in text
        assert "Not in the plot, since this was not measured: third" in text

    def test_nothing_to_compare_is_no_empty_plot(self, tmp_path: Path) -> None:
        page = Page(render_page([make_bare_run(tmp_path / name) for name in ("a", "b")]))
        assert "pareto" not in page.pictures
        assert "mimiq-deploy validate" in page.text["pareto"]


def test_it_is_written_at_once_and_reproducible(run: RunDirectory, tmp_path: Path) -> None:
    output = tmp_path / "new" / "report.html"
    write_page([run], output)
    assert output.read_text(encoding="utf-8") == render_page([run])
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


def test_mistakes_are_sentences(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least one run"):
        render_page([])
    with pytest.raises(InvalidInputError, match="no folder"):
        render_page([run], data=tmp_path / "none")


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_names_the_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(MissingDependencyError, match=rf"{library}.*mimiq-deploy\[report\]"):
        check_libraries()


def test_predictions_are_json_without_nan(tmp_path: Path) -> None:
    from mimiq_runtime.predictions import answers_of, read_predictions

    logits = np.array([[0.0, np.log(3.0)], [np.nan, 1.0]], dtype=np.float32)
    answers = answers_of(logits, "0" * 64)
    assert answers.top1 == [1, None]
    assert answers.probability == [0.75, None]
    run = make_full_run(tmp_path / "run")
    content = json.loads(run.path("predictions.json").read_text())
    content["labels"].pop()
    run.write_json("predictions.json", content)
    with pytest.raises(InvalidInputError, match="not equally many"):
        read_predictions(run)
