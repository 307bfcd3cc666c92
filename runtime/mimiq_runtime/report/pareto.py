"""Several runs side by side: how good each is, against latency and size."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mimiq_runtime.errors import MimiqDeployError
from mimiq_runtime.estimate import read_estimate
from mimiq_runtime.evaluation import read_evaluation
from mimiq_runtime.report.drawing import FAINT, INK, SERIES, draw
from mimiq_runtime.report.numbers import bytes_as, percent
from mimiq_runtime.report.overview import size_of_export
from mimiq_runtime.report.section import DataTable, Figure, Note, Section, missing_section
from mimiq_runtime.report.shown_parity import FULL_PRECISION_REFERENCE, read_parity
from mimiq_runtime.report.speed import read_speed
from mimiq_runtime.session import known_engines, target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["Candidate", "candidates_of", "chosen_measure", "pareto_front", "pareto_section"]

NAME, TITLE = "pareto", "Runs side by side"

MEASURES = {
    "accuracy": "top-1 accuracy on the pictures",
    "agreement": "same answer as full precision on the pictures",
    "study": "same answer as full precision in the study",
    "estimate": "share of the accuracy kept, estimated without data",
}
"""How good a run is, by what is known; the first ones say most."""

_LONGEST = 28
_LINE = 13  # points
FP32 = "fp32"


@dataclass(frozen=True)
class Candidate:
    """One model that could be deployed.

    Attributes:
        name: Run and, where a run has several, engine.
        quality: Shares by the keys of :data:`MEASURES`, 0 to 1, as far as they are known.
        latency_ms: Median latency at the smallest batch size and the most threads that were
            measured; None if unknown.
        batch_size: That batch size.
        size: Bytes of the ONNX; None where it was not exported.
        pictures: Folder and number of the pictures that ``quality`` is of.
        machine: The CPU of the latency.
        baseline: Whether it is the full-precision model.
    """

    name: str
    quality: dict[str, float] = field(default_factory=dict)
    latency_ms: float | None = None
    batch_size: int | None = None
    size: int | None = None
    pictures: tuple[str, int] | None = None
    machine: str | None = None
    baseline: bool = False


def pareto_section(runs: Sequence[tuple[str, RunDirectory]]) -> Section:
    """The models of several runs, and those that no other one beats.

    Args:
        runs: Runs by the names that the page gives them.
    """
    candidates = [found for name, run in runs for found in candidates_of(name, run)]
    measure = chosen_measure(candidates)
    if measure is None:
        return missing_section(
            NAME,
            TITLE,
            "Nothing is known yet of how good these runs are.",
            f"mimiq-deploy validate {runs[0][1].root} --data FOLDER",
        )
    shown = _one_baseline(candidates)
    figures = [
        Figure(
            draw(
                f"pareto-{axis}",
                f"{MEASURES[measure]} against {label}",
                functools.partial(_paint, points=points, label=label, measure=measure),
                size=(5.6, 4.0),
            ),
            f"{MEASURES[measure].capitalize()} against {label}; up and left is better. The line "
            "joins those that no other beats in both.",
        )
        for axis, label, key in (
            ("latency", "latency in ms", _latency),
            ("size", "size of the ONNX in MB", _megabytes),
        )
        if len(points := _points(shown, measure, key)) > 1
    ]
    return Section(
        name=NAME,
        title=TITLE,
        intro=f"Compared by: {MEASURES[measure]}.",
        parts=(*figures, _table(shown, measure), *_cautions(shown, measure, bool(figures), runs)),
    )


def candidates_of(name: str, run: RunDirectory) -> list[Candidate]:
    """The models of one run: each engine that was validated or timed, and full precision."""
    parity, bench = read_parity(run), read_speed(run)
    exports = [s.partition("/")[2] for s in run.manifest.stages if s.startswith("export/")]
    engines = list(parity.engines) if parity is not None else []
    timed: dict[str, tuple[float, int]] = {}
    if bench is not None:
        smallest = min(row.batch_size for row in bench.rows)
        most = max(row.threads or 0 for row in bench.rows)
        timed = {
            r.session: (r.p50_ms, r.batch_size)
            for r in bench.rows
            if (r.batch_size, r.threads or 0) == (smallest, most)
        }
        engines += [e for e in known_engines() if f"{run.manifest.bits} in {e}" in timed]
    engines = list(dict.fromkeys(engines)) or [e for e in exports if e in known_engines()][:1]
    everywhere = _quality_of_run(run)
    machine = bench.machine.get("cpu") if bench is not None else None
    found = []
    shown: list[str | None] = [*engines] or [None]
    for engine in shown:
        own = parity.engines.get(engine) if parity is not None and engine is not None else None
        quality = dict(everywhere)
        if own is not None and own.accuracy is not None:
            quality["accuracy"] = own.accuracy.top1
        if own is not None and FULL_PRECISION_REFERENCE in own.parity:
            quality["agreement"] = own.parity[FULL_PRECISION_REFERENCE].agreement
        latency, batch = timed.get(f"{run.manifest.bits} in {engine}", (None, None))
        found.append(
            Candidate(
                name=f"{name} in {engine}" if len(engines) > 1 else name,
                quality=quality,
                latency_ms=latency,
                batch_size=batch,
                size=size_of_export(run, _target(engine)) if engine is not None else None,
                pictures=parity.pictures if parity is not None else None,
                machine=machine,
            )
        )
    exact = Candidate(
        name="full precision",
        quality={"agreement": 1.0, "study": 1.0, "estimate": 1.0}
        | (
            {"accuracy": parity.references[FULL_PRECISION_REFERENCE].top1}
            if parity is not None and FULL_PRECISION_REFERENCE in parity.references
            else {}
        ),
        latency_ms=next((ms for s, (ms, _) in timed.items() if s.startswith(f"{FP32} in ")), None),
        batch_size=min((batch for _, batch in timed.values()), default=None),
        size=size_of_export(run, FP32),
        pictures=parity.pictures if parity is not None else None,
        machine=machine,
        baseline=True,
    )
    return [*found, exact]


def chosen_measure(candidates: Sequence[Candidate]) -> str | None:
    """The measure that most quantized models have; of equally frequent ones the first."""
    count = Counter(
        key for each in candidates if not each.baseline for key in MEASURES if key in each.quality
    )
    return max(MEASURES, key=lambda key: count[key]) if count else None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points ``(cost, quality)`` that none other beats, by rising cost.

    A point is beaten by one that costs no more and is no worse, and is better in one of the two;
    of equal points all stay.
    """

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    kept = [n for n, own in enumerate(points) if not any(beats(other, own) for other in points)]
    return sorted(kept, key=lambda n: points[n])


def _quality_of_run(run: RunDirectory) -> dict[str, float]:
    quality = {}
    cost = read_estimate(run)
    if cost is not None:
        quality["estimate"] = cost.accuracy_kept
    study = read_evaluation(run)
    if study is not None:
        quality["study"] = study.agreement
    return quality


def _target(engine: str) -> str:
    try:
        return target_of(engine)
    except MimiqDeployError:
        return engine  # of a newer version: its export may bear its name


def _one_baseline(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Full precision once where no two runs measured it differently: else a cloud of one point."""
    shown: list[Candidate] = []
    for each in candidates:
        twin = next((n for n, other in enumerate(shown) if _same_baseline(each, other)), None)
        if twin is None:
            shown.append(each)
        else:
            shown[twin] = _merged(shown[twin], each)
    return shown


def _same_baseline(one: Candidate, other: Candidate) -> bool:
    """Whether both are full precision, and agree wherever both were measured."""
    pairs = ((one.pictures, other.pictures), (one.machine, other.machine), (one.size, other.size))
    agree = all(a is None or b is None or a == b for a, b in pairs)
    return one.baseline and other.baseline and agree


def _merged(first: Candidate, second: Candidate) -> Candidate:
    """The first one, and what only the second one knows."""
    timed = first if first.latency_ms is not None else second
    return dataclasses.replace(
        first,
        quality=second.quality | first.quality,
        latency_ms=timed.latency_ms,
        batch_size=timed.batch_size,
        machine=timed.machine,
        size=first.size if first.size is not None else second.size,
        pictures=first.pictures if first.pictures is not None else second.pictures,
    )


def _latency(candidate: Candidate) -> float | None:
    return candidate.latency_ms


def _megabytes(candidate: Candidate) -> float | None:
    return None if candidate.size is None else candidate.size / 1e6


def _points(
    candidates: Sequence[Candidate], measure: str, key: Callable[[Candidate], float | None]
) -> list[tuple[float, float, Candidate]]:
    return [
        (cost, each.quality[measure], each)
        for each in candidates
        if measure in each.quality and (cost := key(each)) is not None
    ]


def _paint(
    axes: Any, points: Sequence[tuple[float, float, Candidate]], label: str, measure: str
) -> None:
    front = pareto_front([(cost, quality) for cost, quality, _ in points])
    axes.plot(
        [points[place][0] for place in front],
        [100 * points[place][1] for place in front],
        "-",
        color=FAINT,
        lw=1.2,
    )
    costs = [cost for cost, _, _ in points]
    middle = (min(costs) + max(costs)) / 2
    lines = _lines_of_names([(cost > middle, quality) for cost, quality, _ in points])
    for (cost, quality, each), line in zip(points, lines, strict=True):
        marker, colour = ("s", FAINT) if each.baseline else ("o", SERIES[0])
        axes.plot([cost], [100 * quality], marker, color=colour, ms=8)
        left = cost > middle
        note = axes.annotate(
            each.name if len(each.name) <= _LONGEST else f"{each.name[: _LONGEST - 1]}…",
            (cost, 100 * quality),
            xytext=(-8 if left else 8, 6 + _LINE * line),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=10,
            color=INK,
        )
        note.set_in_layout(False)  # a long name may not squeeze the axes
    axes.margins(x=0.12, y=0.16)
    axes.set_xlabel(label)
    axes.set_ylabel(f"{measure} in %" if measure != "study" else "agreement in %")


def _lines_of_names(places: Sequence[tuple[bool, float]]) -> list[int]:
    """How many lines higher each name is written, so that none covers another one.

    Args:
        places: Side of the figure and height of each point. Names on one side whose points are
            nearly at one height are stacked.
    """
    heights = [height for _, height in places]
    near = 0.06 * (max(heights) - min(heights))
    return [
        sum(side == own and abs(height - other) <= near for own, other in places[:number])
        for number, (side, height) in enumerate(places)
    ]


def _table(candidates: Sequence[Candidate], measure: str) -> DataTable:
    quantized = [each for each in candidates if not each.baseline]
    known = [key for key in MEASURES if any(key in each.quality for each in quantized)]
    return DataTable(
        ("model", *(f"{key}" for key in known), "latency ms", "batch", "ONNX"),
        [
            (
                each.name,
                *(percent(each.quality[key]) if key in each.quality else "-" for key in known),
                "-" if each.latency_ms is None else f"{each.latency_ms:.2f}",
                "-" if each.batch_size is None else str(each.batch_size),
                "-" if each.size is None else bytes_as(each.size),
            )
            for each in candidates
        ],
        "; ".join(f"{key}: {MEASURES[key]}" for key in known),
    )


def _cautions(
    candidates: Sequence[Candidate],
    measure: str,
    drawn: bool,
    runs: Sequence[tuple[str, RunDirectory]],
) -> Iterator[Note]:
    if not drawn:
        yield Note(
            "No plot: latency or size is known of less than two models; "
            f"mimiq-deploy bench {runs[0][1].root} measures it.",
        )
    unknown = [each.name for each in candidates if measure not in each.quality]
    if unknown:
        yield Note(f"Not in the plot, since this was not measured: {', '.join(unknown)}.")
    pictures = {each.pictures for each in candidates if each.pictures is not None}
    if len(pictures) > 1 and measure in ("accuracy", "agreement"):
        yield Note("The runs were validated on different pictures.", warning=True)
    if len({each.machine for each in candidates if each.machine is not None}) > 1:
        yield Note("The latencies are of different machines.", warning=True)
