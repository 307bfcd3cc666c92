"""Running a study: every cell a run directory, measured on the same images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mimiq_deploy.calibration import LIBRARIES, CalibrationRequest, calibrate
from mimiq_deploy.early_checks import check_runs_to_be
from mimiq_deploy.study.markdown import render_markdown
from mimiq_deploy.study.measuring import LabelledPictures, Measurement, UnseenImages
from mimiq_deploy.study.report import (
    CellResult,
    StudyReport,
    compare_with_method,
    correlate,
    summarise,
)
from mimiq_runtime.atomic import write_json, write_text
from mimiq_runtime.errors import DivergedError, InvalidInputError
from mimiq_runtime.machine import describe_machine, library_versions
from mimiq_runtime.output_file import check_output_folder
from mimiq_runtime.run_lock import hold_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mimiq_calib.recipe import Recipe
    from mimiq_deploy.study.grid import Cell, StudyGrid
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["REPORT", "TABLE", "StudyRequest", "run_study"]

REPORT, TABLE = "study.json", "study.md"
UNSEEN = 256
"""How many synthetic images are measured on without labelled pictures, at least."""


@dataclass(frozen=True)
class StudyRequest:
    """What to study.

    Attributes:
        calibration: Model and device of every cell; its recipe and seed are not used.
        grid: The cells.
        pictures: Folder of labelled pictures to measure on; None for unseen synthetic images.
        limit: At most this many of the pictures.
        batch_size: Pictures a forward pass.
    """

    calibration: CalibrationRequest
    grid: StudyGrid
    pictures: Path | None = None
    limit: int | None = None
    batch_size: int = 64


def run_study(request: StudyRequest, output: Path, *, say: Callable[[str], None]) -> StudyReport:
    """Calibrate and measure every cell; write ``study.json`` and ``study.md``.

    Cells that an earlier call finished in the same folder are kept, and one that it was at work on
    is resumed. Cells with the same source and seed share their images. The report is written
    anew after every cell.

    Args:
        request: What to study.
        output: Folder of the study.
        say: Told what is being done, one sentence at a time.

    Returns:
        What was found. A cell whose training diverged has its failure in it, and is tried again
        when the study is run again.

    Raises:
        InvalidInputError: Something about the request; the model, all recipes and all pictures are
            checked before the first cell is made.
        RunDirectoryError: A cell was made with other choices.
    """
    check_output_folder(output, "--output")
    work = [(cell, request.grid.recipe_of(cell)) for cell in request.grid.cells()]
    if not work:
        raise InvalidInputError("The study has no cell; name bits, a source and a fine-tuning.")
    check_runs_to_be(
        request.calibration,
        [(output / cell.name, recipe) for cell, recipe in work],
        pictures=request.pictures,
        limit=request.limit,
    )
    with hold_directory(output, "study"):
        return _run_cells(request, work, output, say)


def _run_cells(
    request: StudyRequest,
    work: Sequence[tuple[Cell, Recipe]],
    output: Path,
    say: Callable[[str], None],
) -> StudyReport:
    makers: dict[tuple[object, ...], RunDirectory] = {}
    results: dict[str, CellResult] = {}
    measurement = None
    for number, (cell, recipe) in enumerate(work, start=1):
        say(f"{number}/{len(work)} {cell.name}")
        try:
            run = _make_run(request, cell, recipe, output, makers)
        except DivergedError as error:
            say(f"{cell.name} failed: {error}")
            results[cell.name] = _result(cell, failure=str(error))
            continue
        if measurement is None:
            measurement = _measurement(request, work[0][1], run, output)
        results[cell.name] = _measured(cell, run, measurement)
        report = _report(request, list(results.values()), measurement)
        _write(report, output)
    if measurement is None:
        first = results[work[0][0].name]
        raise DivergedError(f"Every cell of the study failed; the first one: {first.failure}")
    report = _report(request, list(results.values()), measurement)
    _write(report, output)
    return report


def _make_run(
    request: StudyRequest,
    cell: Cell,
    recipe: Recipe,
    output: Path,
    makers: dict[tuple[object, ...], RunDirectory],
) -> RunDirectory:
    calibration = replace(request.calibration, recipe=recipe, seed=cell.seed)
    run = calibrate(
        calibration, output / cell.name, resume=True, images_from=makers.get(cell.images)
    )
    makers.setdefault(cell.images, run)
    return run


def _measurement(
    request: StudyRequest, recipe: Recipe, run: RunDirectory, output: Path
) -> Measurement:
    import torch

    from mimiq_calib.run_models import load_teacher

    device = torch.device(request.calibration.device)
    teacher = load_teacher(run).to(device)
    if request.pictures is not None:
        return Measurement(
            teacher,
            LabelledPictures(
                request.pictures, run, limit=request.limit, batch_size=request.batch_size
            ),
            run,
            device,
        )
    images = UnseenImages(
        teacher,
        run,
        recipe.synthesis,
        sources=request.grid.sources,
        count=UNSEEN,
        seed=request.grid.seeds[0],
        device=device,
        folder=output,
    )
    return Measurement(teacher, images, run, device)


def _measured(cell: Cell, run: RunDirectory, measurement: Measurement) -> CellResult:
    measured = measurement.measure(run)
    return _result(
        cell,
        score=measured.score,
        agreement=measured.agreement,
        kl=measured.kl,
        head_similarity=measured.head_similarity,
        squared_similarity=measured.squared_similarity,
        seconds=sum(stage.seconds for stage in run.manifest.stages.values()),
    )


def _result(cell: Cell, **found: float | str | None) -> CellResult:
    return CellResult.model_validate(
        {
            "bits": cell.bits,
            "source": cell.source,
            "fine_tuning": cell.fine_tuning,
            "without": cell.without,
            "seed": cell.seed,
            "run": cell.name,
            **found,
        }
    )


def _report(
    request: StudyRequest, cells: list[CellResult], measurement: Measurement
) -> StudyReport:
    return StudyReport(
        model=request.calibration.model,
        recipe=request.grid.recipe,
        settings=list(request.grid.settings),
        yardstick=measurement.yardstick,
        cells=cells,
        rows=summarise(cells),
        comparisons=compare_with_method(cells),
        correlations=correlate(cells),
        machine=describe_machine(),
        libraries=library_versions(LIBRARIES),
    )


def _write(report: StudyReport, output: Path) -> None:
    write_json(output / REPORT, report.model_dump(mode="json"))
    write_text(output / TABLE, render_markdown(report))
