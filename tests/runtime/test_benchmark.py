"""Fake sessions on a fake clock: every latency is known, so is every figure of the report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
import scipy.stats

from mimiq_runtime.benchmark import BenchmarkReport, _order, _speedup, benchmark_sessions
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.session import SessionInfo

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (3, 4, 4)


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeSession:
    """Takes ``latency(call)`` seconds of the fake clock and writes down that it ran."""

    def __init__(
        self, name: str, clock: FakeClock, log: list[str], latency: Callable[[int], float]
    ) -> None:
        self.name, self.clock, self.log, self.latency = name, clock, log, latency
        self.images: list[np.ndarray[Any, Any]] = []
        self.info = SessionInfo(
            engine="fake",
            device="cpu",
            provider="fake",
            libraries={},
            threads=1,
            model=name,
            model_sha256="0",
            input_shape=(None, *SHAPE),
        )

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.clock.now += self.latency(len(self.images))
        self.images.append(images)
        self.log.append(self.name)
        return np.zeros((len(images), 2), dtype=np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class Bench:
    def __init__(self, **latencies: Callable[[int], float]) -> None:
        self.clock, self.log = FakeClock(), []
        self.sessions = {
            name: FakeSession(name, self.clock, self.log, latency)
            for name, latency in latencies.items()
        }

    def run(self, **arguments: Any) -> BenchmarkReport:
        defaults = {"batch_sizes": [1], "input_shape": SHAPE, "rounds": 10, "warmup": 0}
        return benchmark_sessions(self.sessions, **{**defaults, **arguments}, clock=self.clock)


def test_figures_by_hand() -> None:
    bench = Bench(fp32=lambda _: 0.020, int8=lambda call: 0.001 * (call + 1))
    report = bench.run(batch_sizes=[4], rounds=9)
    fp32, int8 = report.rows
    assert (report.baseline, fp32.session, int8.session) == ("fp32", "fp32", "int8")
    assert fp32.mean_ms == pytest.approx(20)
    assert fp32.images_per_second == pytest.approx(200)
    assert (fp32.speedup.low, fp32.speedup.median, fp32.speedup.high) == (1, 1, 1)
    # 1, 2, ... 9 ms: linear interpolation between the order statistics.
    assert (int8.mean_ms, int8.p50_ms) == pytest.approx((5, 5))
    assert (int8.p90_ms, int8.p99_ms) == pytest.approx((8.2, 8.92))
    assert int8.images_per_second == pytest.approx(800)
    assert int8.speedup.median == pytest.approx(4)
    assert int8.speedup.low < 4 < int8.speedup.high
    assert int8.rounds == 9


def test_speedup_is_paired_by_round() -> None:
    """The machine slows down tenfold half-way; every single round still says: twice as fast."""

    def slow(call: int) -> float:
        return 0.02 if call < 5 else 0.2

    bench = Bench(a=slow, b=lambda call: slow(call) / 2)
    speedup = bench.run(rounds=10).rows[1].speedup
    assert (speedup.low, speedup.median, speedup.high) == pytest.approx((2, 2, 2))


def test_two_sessions_take_turns_and_the_lead() -> None:
    bench = Bench(a=lambda _: 1e-3, b=lambda _: 1e-3)
    bench.run(rounds=4)
    assert "".join(bench.log) == "ab" + "ba" + "ba" + "ab"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_order_is_balanced(count: int) -> None:
    orders = [_order(index, count) for index in range(2 * count)]
    for place in range(count):
        places = [order[place] for order in orders]
        assert [places.count(index) for index in range(count)] == [2] * count
    before = [order.index(0) < order.index(count - 1) for order in orders]
    if count > 1:
        assert sum(before) == count


def test_warmup_is_run_by_each_session_and_not_timed() -> None:
    bench = Bench(a=lambda call: 5.0 if call < 3 else 0.001, b=lambda _: 0.001)
    report = bench.run(rounds=4, warmup=3)
    assert "".join(bench.log[:6]) == "aaabbb"
    assert [row.mean_ms for row in report.rows] == pytest.approx([1, 1])


def test_images_are_the_same_normal_ones_for_all() -> None:
    bench = Bench(a=lambda _: 1e-3, b=lambda _: 1e-3)
    bench.run(batch_sizes=[64], rounds=2)
    a, b = (session.images[0] for session in bench.sessions.values())
    assert (a.shape, a.dtype) == ((64, *SHAPE), np.float32)
    np.testing.assert_array_equal(a, b)
    assert scipy.stats.kstest(a.ravel(), "norm").pvalue > 0.01


def test_rows_are_by_batch_size_then_session() -> None:
    bench = Bench(a=lambda _: 1e-3, b=lambda _: 1e-3)
    report = bench.run(batch_sizes=[8, 1])
    assert [(row.batch_size, row.session) for row in report.rows] == [
        (8, "a"),
        (8, "b"),
        (1, "a"),
        (1, "b"),
    ]


@pytest.mark.parametrize(("seconds", "done"), [(0.001, 3), (1.0, 5), (1e9, 50)])
def test_seconds_end_the_rounds(seconds: float, done: int) -> None:
    bench = Bench(a=lambda _: 0.15, b=lambda _: 0.1)  # a quarter of a second a round
    told: list[int] = []
    report = bench.run(rounds=50, seconds=seconds, advance=lambda rounds, note: told.append(rounds))
    # The fourth round ends at exactly one second or a rounding error before it.
    assert report.rows[0].rounds in ((4, 5) if done == 5 else (done,))
    assert sum(told) == 50


def test_report_survives_strict_json() -> None:
    report = Bench(a=lambda _: 0.0, b=lambda _: 1e-3).run()
    text = json.dumps(report.model_dump(mode="json"), allow_nan=False)
    assert BenchmarkReport.model_validate_json(text) == report
    assert report.machine["cpu"]


def test_interval_equals_scipys_bootstrap() -> None:
    ratios = np.random.default_rng(3).lognormal(0.5, 0.2, 80)
    reference = scipy.stats.bootstrap(
        (ratios,), np.median, method="percentile", rng=np.random.default_rng(0), n_resamples=5000
    ).confidence_interval
    speedup = _speedup(ratios, seed=0)
    assert speedup.median == pytest.approx(np.median(ratios))
    # Two bootstraps of one sample differ by chance: a small part of the interval's width.
    width = reference.high - reference.low
    assert speedup.low == pytest.approx(reference.low, abs=0.15 * width)
    assert speedup.high == pytest.approx(reference.high, abs=0.15 * width)
    assert speedup == _speedup(ratios, seed=0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"batch_sizes": []}, "at least one session and one batch size"),
        ({"batch_sizes": [0]}, r"got \[0\], 10 and 0"),
        ({"rounds": 0}, "rounds of at least 1"),
        ({"warmup": -1}, "warm-up of at least 0"),
        ({"seconds": 0}, "more than 0 seconds"),
        ({"seconds": float("nan")}, "more than 0 seconds"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        Bench(a=lambda _: 1e-3).run(**arguments)


def test_no_sessions_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one session"):
        Bench().run()
