"""The study: its cells, its sums, and a small one for real on the built-in model of digits."""

from __future__ import annotations

import json
import statistics
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from mimiq_calib.distillation import distill as distilling
from mimiq_calib.recipe import ImageSource
from mimiq_calib.run_models import load_student, load_teacher
from mimiq_calib.synthesis import sources
from mimiq_deploy.cli import cli
from mimiq_deploy.demo.digits import load_digits_split, write_image_folder
from mimiq_deploy.demo.story import demo_model
from mimiq_deploy.study.grid import StudyGrid, known_fine_tunings, known_sources
from mimiq_deploy.study.report import CellResult, compare_with_method, correlate, summarise
from mimiq_runtime.errors import DivergedError, InvalidInputError, RecipeError
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = 40
SETTINGS = (
    "synthesis.num_images=8",
    "synthesis.held_out=0",
    "synthesis.batch_size=8",
    "synthesis.iterations=2",
    "distillation.epochs=1",
    "distillation.precision=fp32",
)


def grid(**others: Any) -> StudyGrid:
    chosen = {
        "bits": ("w4a4", "w3a3"),
        "sources": ("mimiq", "noise"),
        "fine_tunings": ("none", "distill"),
        "seeds": (0, 1),
    }
    return StudyGrid(**(chosen | others))


class TestGrid:
    def test_names_are_those_of_the_recipe(self) -> None:
        assert known_sources() == [source.value for source in ImageSource]
        assert {"none", "distill"} <= set(known_fine_tunings())

    def test_every_combination_once(self) -> None:
        names = [cell.name for cell in grid().cells()]
        assert len(names) == len(set(names)) == 2**4
        assert "w3a3-noise-distill-seed1" in names
        assert [name[-1] for name in names] == ["0"] * 8 + ["1"] * 8

    def test_losses_are_taken_from_the_method_only_and_only_where_they_are_used(self) -> None:
        cells = grid(ablations=True, bits=("w4a4",), seeds=(3,)).cells()
        assert [cell.name for cell in cells if cell.without] == [
            "w4a4-mimiq-without-head-similarity-none-seed3",
            "w4a4-mimiq-without-head-similarity-distill-seed3",
            "w4a4-mimiq-without-structure-distill-seed3",
        ]

    def test_recipes(self, tmp_path: Path) -> None:
        folder = tmp_path / "a folder: with 'all' # of \"it\""
        study = grid(sources=("mimiq", "folder"), folder=folder, ablations=True, settings=SETTINGS)
        for cell in study.cells():
            recipe = study.recipe_of(cell)
            assert recipe.synthesis.source == cell.source
            assert recipe.synthesis.folder == (str(folder) if cell.source == "folder" else None)
            assert recipe.synthesis.num_images == 8
            widths = recipe.quantization.weight_bits, recipe.quantization.activation_bits
            assert widths == {"w4a4": (4, 4), "w3a3": (3, 3)}[cell.bits]
            off = cell.without == "head-similarity"
            assert (recipe.synthesis.head_similarity_weight == 0) == off
            assert (recipe.distillation.structure_weight == 0) == (cell.without == "structure")

    def test_cells_that_share_images(self) -> None:
        cells = grid(ablations=True).cells()
        assert len({cell.images for cell in cells}) == 2 * 3, "seeds; mimiq, without, noise"

    def test_what_cannot_be(self) -> None:
        with pytest.raises(InvalidInputError, match="--folder"):
            grid(sources=("folder",)).recipe_of(grid(sources=("folder",)).cells()[0])
        wrong = grid(settings=("synthesis.nonsense=1",))
        with pytest.raises(RecipeError, match="nonsense"):
            wrong.recipe_of(wrong.cells()[0])


def cell(
    source: str, seed: int, score: float | None, similarity: float = 0.0, **others: Any
) -> CellResult:
    chosen: dict[str, Any] = {"bits": "w4a4", "fine_tuning": "none", "without": None, "run": "r"}
    failure = "it diverged" if score is None else None
    return CellResult(
        **(chosen | others),
        source=source,
        seed=seed,
        score=score,
        head_similarity=None if score is None else similarity,
        squared_similarity=None if score is None else -similarity,
        failure=failure,
    )


class TestReport:
    cells = (
        cell("mimiq", 0, 0.9, 0.8),
        cell("mimiq", 1, 0.7, 0.6),
        cell("mimiq", 2, None),
        cell("noise", 0, 0.6, 0.1),
        cell("noise", 1, 0.8, 0.2),
        cell("noise", 2, 0.0, 0.3),
        cell("mimiq", 0, 0.5, 0.8, without="structure"),
        cell("mimiq", 0, 0.0, 0.4, bits="w3a3"),
        cell("noise", 0, 0.25, 0.1, bits="w3a3"),
    )

    def test_means_and_spreads(self) -> None:
        rows = summarise(self.cells)
        assert [(r.bits, r.source, r.without, r.seeds) for r in rows] == [
            ("w4a4", "mimiq", None, 2),
            ("w4a4", "noise", None, 3),
            ("w4a4", "mimiq", "structure", 1),
            ("w3a3", "mimiq", None, 1),
            ("w3a3", "noise", None, 1),
        ]
        assert rows[0].score == pytest.approx(0.8)
        assert rows[0].spread == pytest.approx(np.std([0.9, 0.7], ddof=1))
        assert rows[0].head_similarity == pytest.approx(0.7)
        assert rows[1].spread == pytest.approx(statistics.stdev([0.6, 0.8, 0.0]))
        assert rows[2].spread is None

    def test_gains_are_of_the_same_seed(self) -> None:
        noise, structure, low = compare_with_method(self.cells)
        assert (noise.other, noise.seeds, noise.better) == ("noise", 2, 1)
        assert noise.gain == pytest.approx((0.3 - 0.1) / 2)
        assert noise.spread == pytest.approx(np.std([0.3, -0.1], ddof=1))
        assert (structure.other, structure.gain) == ("mimiq without structure", 0.4)
        assert (low.bits, low.gain, low.better) == ("w3a3", -0.25, 0), "a score of 0 counts"

    def test_correlation_is_over_sources_and_seeds(self) -> None:
        first, second = correlate(self.cells)
        # Similarities .8 .6 .1 .2 .3 rank 5 4 1 2 3, scores .9 .7 .6 .8 .0 rank 5 3 2 4 1.
        assert first.cells == 5
        assert first.spearman == pytest.approx(1 - 6 * (0 + 1 + 1 + 4 + 4) / (5 * 24))
        assert first.spearman_squared == pytest.approx(-first.spearman)
        assert (second.cells, second.spearman) == (2, None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits_split()
    write_image_folder(digits.test_images[:PICTURES], digits.test_labels[:PICTURES], folder)
    return folder


def run_study(output: Path, *others: str) -> Result:
    description, weights = demo_model()
    options = [("--set", setting) for setting in SETTINGS]
    for option, values in (
        ("--model-arg", description["model_args"]),
        ("--preprocessing", description["preprocessing"]),
    ):
        options += [(option, f"{key}={json.dumps(value)}") for key, value in values.items()]
    flat = [part for option in options for part in option]
    return CliRunner().invoke(
        cli,
        [
            *("study", description["model"], "-o", str(output), "--checkpoint", str(weights)),
            *("--recipe", "demo", *flat, *others),
        ],
    )


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("study")
    return output, run_study(
        output,
        *("--source", "mimiq", "--source", "noise", "--folder", str(pictures), "--bits", "W3A3"),
        *("--fine-tuning", "distill", "--data", str(pictures), "--ablations", "--json"),
    )


class TestForReal:
    def test_the_report(self, finished: tuple[Path, Result], pictures: Path) -> None:
        output, result = finished
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report == json.loads((output / "study.json").read_text())
        assert report["yardstick"]["origin"] == str(pictures)
        assert [row["source"] for row in report["rows"]] == ["mimiq"] * 3 + ["noise", "folder"]
        assert report["correlations"][0]["cells"] == 4
        text = (output / "study.md").read_text()
        assert "## W3A3" in text
        assert "| mimiq without head-similarity |" in text
        with Image.open(output / "study.png") as plot:
            assert plot.size[0] > 300
            assert len(plot.convert("L").getcolors(256)) > 20, "it is not empty"

    def test_scores_are_those_of_the_models(self, finished: tuple[Path, Result]) -> None:
        digits = load_digits_split()
        images = torch.from_numpy(digits.test_images[:PICTURES])[:, None].float() / 127.5 - 1
        report = json.loads(finished[1].stdout)
        for result in report["cells"]:
            run = RunDirectory.open(finished[0] / result["run"])
            with torch.inference_mode():
                answers = load_student(run)(images).argmax(1).numpy()
                teacher = load_teacher(run)(images).argmax(1).numpy()
            # A rounding in the preprocessing may flip a code, and with it one digit.
            one = pytest.approx
            expected = (answers == digits.test_labels[:PICTURES]).mean()
            assert result["score"] == one(expected, abs=1.5 / PICTURES)
            assert result["agreement"] == one((answers == teacher).mean(), abs=1.5 / PICTURES)
            full = (teacher == digits.test_labels[:PICTURES]).mean()
            assert report["yardstick"]["full_precision"] == pytest.approx(full)
            assert run.damaged_files() == []

    def test_images_are_shared_but_not_those_of_another_loss(
        self, finished: tuple[Path, Result]
    ) -> None:
        def digest(name: str) -> str:
            run = RunDirectory.open(finished[0] / f"w3a3-{name}-seed0")
            return run.manifest.files["images/shard-00000.safetensors"].sha256

        ours = digest("mimiq-distill")
        assert digest("mimiq-without-structure-distill") == ours
        assert digest("mimiq-without-head-similarity-distill") != ours
        assert digest("noise-distill") != ours

    def test_what_is_finished_is_kept(
        self, finished: tuple[Path, Result], pictures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With one more seed, whose only new images are noise."""
        output = finished[0]
        # The log of events alone grows: it tells that the run was looked at again.
        before = {
            path: path.stat().st_mtime_ns
            for path in output.glob("*seed0/*")
            if path.name != "events.jsonl"
        }
        made: list[int] = []
        original = sources.make_shard

        def count(*arguments: Any, **others: Any) -> Any:
            made.append(arguments[3].first)
            return original(*arguments, **others)

        monkeypatch.setattr(sources, "make_shard", count)
        result = run_study(
            output,
            *("--source", "noise", "--bits", "w3a3", "--fine-tuning", "distill", "--seeds", "2"),
            *("--data", str(pictures)),
        )
        assert result.exit_code == 0, result.output
        assert made == [0]
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert "over 2 cells" in result.stdout

    def test_other_choices_in_the_same_folder(
        self, finished: tuple[Path, Result], pictures: Path
    ) -> None:
        others = ("--source", "noise", "--bits", "w3a3", "--fine-tuning", "distill")
        changed = ("--set", "distillation.epochs=2", "--data", str(pictures))
        result = run_study(finished[0], *others, *changed)
        assert result.exit_code == 2
        assert "another recipe" in result.output

    def test_without_pictures(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Agreement on unseen images; no plot without matplotlib; a failed cell is told."""
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        original = distilling.distill

        def distill(student: Any, teacher: Any, images: Any, *others: Any, **named: Any) -> None:
            if named["seed"] == 1:
                raise DivergedError("it ran away")
            original(student, teacher, images, *others, **named)

        monkeypatch.setattr(distilling, "distill", distill)
        result = run_study(
            tmp_path, "--source", "noise", "--fine-tuning", "distill", "--seeds", "2"
        )
        assert result.exit_code == 1
        assert "No plot: matplotlib is needed" in result.stderr
        assert "w4a4-noise-distill-seed1 failed: it ran away" in result.stdout
        report = json.loads((tmp_path / "study.json").read_text())
        assert report["yardstick"] | {"sha256": ""} == {
            "score": "agreement",
            "images": 256,
            "origin": "noise",
            "full_precision": 1.0,
            "sha256": "",
        }
        assert report["cells"][0]["score"] == report["cells"][0]["agreement"] > 0.1
        assert (report["cells"][1]["score"], report["rows"][0]["seeds"]) == (None, 1)
        assert (tmp_path / "unseen-noise.safetensors").exists()
        assert "it ran away" in (tmp_path / "study.md").read_text()


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    for option in ("--source", "--fine-tuning"):
        result = run_study(tmp_path / "study", option, "nonsense")
        assert result.exit_code == 2
        assert "expected one of" in result.output
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data", "nowhere"], "Expected a folder of labelled pictures, got nowhere"),
        (["--data", "{empty}"], "has neither a labels.csv nor a sub-folder for each class"),
        (["--data", "{other}"], "expected a label in 0..9, got 10"),
        (["--folder", "{empty}"], "has 0: lower them or name another folder"),
        (["--folder", "nowhere"], "Expected a folder of pictures, got nowhere, which is not there"),
        (["--set", "quantization.layer_bits={nothing: a8}"], "no layer of this model matches"),
    ],
)
def test_what_only_a_later_step_needs_is_checked_before_the_first_cell(
    options: list[str], sentence: str, tmp_path: Path
) -> None:
    places = {"empty": tmp_path / "empty", "other": tmp_path / "other"}
    places["empty"].mkdir()
    (places["other"] / "10").mkdir(parents=True)
    filled = [
        word.replace("{empty}", str(places["empty"])).replace("{other}", str(places["other"]))
        for word in options
    ]
    result = run_study(tmp_path / "study", "--source", "mimiq", *filled)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1, "no cell was announced"
    assert sentence in result.output
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("model", "sentence"), [("nope", "no model named 'nope'"), ("resnet18", "ResNet")]
)
def test_a_model_that_cannot_be_is_refused_before_the_first_cell(
    model: str, sentence: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(cli, ["study", model, "-o", str(tmp_path / "study")])
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert sentence in result.output
    assert not (tmp_path / "study").exists()


def test_a_place_that_a_later_cell_cannot_use_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "study" / "w4a4-noise-none-seed0").mkdir(parents=True)
    (tmp_path / "study" / "w4a4-noise-none-seed0" / "thesis.tex").write_text("years of work")
    result = run_study(tmp_path / "study", "--source", "mimiq", "--source", "noise")
    assert result.exit_code == 2
    assert "w4a4-noise-none-seed0 is neither" in result.output
    assert len(list((tmp_path / "study").iterdir())) == 1
