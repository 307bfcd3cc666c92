"""Fake sessions on a fake clock: every latency is known, so is every figure of the report."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
import scipy.stats
from _helpers.tiny_classifiers import save_model

from mimiq_runtime import benchmark
from mimiq_runtime.benchmark import (
    BenchmarkReport,
    _order,
    _speedup,
    benchmark_sessions,
    mirrored_openings,
)
from mimiq_runtime.benchmark_compare import compare_benchmarks, read_benchmark
from mimiq_runtime.errors import EngineError, InvalidInputError
from mimiq_runtime.gpu_monitor import GpuLoad, GpuMonitor
from mimiq_runtime.memory_probe import measure_peak_memory
from mimiq_runtime.peak_memory import peak_rss_mib
from mimiq_runtime.session import DeviceTimes, SessionInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
        opening = contextlib.nullcontext(self.sessions)
        return benchmark_sessions({1: [opening]}, **{**defaults, **arguments}, clock=self.clock)


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
    speedup = _speedup([ratios], seed=0)
    assert speedup.median == pytest.approx(np.median(ratios))
    # Two bootstraps of one sample differ by chance: a small part of the interval's width.
    width = reference.high - reference.low
    assert speedup.low == pytest.approx(reference.low, abs=0.15 * width)
    assert speedup.high == pytest.approx(reference.high, abs=0.15 * width)
    assert speedup == _speedup([ratios], seed=0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"batch_sizes": []}, "at least one opening and one batch size; got 1 and 0"),
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


class DeviceSession(FakeSession):
    """Also has times of its device: compute in 1, 2, ... ms, and as much again for the copies."""

    def device_times(self) -> DeviceTimes:
        calls = len(self.images)
        return DeviceTimes(compute_ms=float(calls), total_ms=2.0 * calls)


def test_times_of_the_device_by_hand() -> None:
    bench = Bench(host=lambda _: 1e-3)
    bench.sessions["device"] = DeviceSession("device", bench.clock, bench.log, lambda _: 1e-3)
    host, device = bench.run(rounds=9).rows
    assert host.device is None
    assert device.device is not None
    assert (device.device.compute_p50_ms, device.device.total_p50_ms) == (5, 10)
    # Calls of 1 to 9 ms: linear interpolation between the order statistics.
    assert device.device.compute_p90_ms == pytest.approx(8.2)
    assert device.device.total_p99_ms == pytest.approx(2 * 8.92)


@pytest.mark.parametrize("penalty", [0.0, 0.3], ids=["fair", "the second call is slower"])
def test_a_model_against_itself_gives_an_interval_that_contains_one(
    penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sessions of one distribution, on a machine that slows down and speeds up.

    A 95 % interval misses 1 in 5 % of all benchmarks: of 40, more than 7 would be a fault
    (binomial, p < 0.1 %). Who goes second may be slower; the turns cancel it.
    """
    monkeypatch.setattr(benchmark, "_RESAMPLES", 200)
    missed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        bench = Bench(a=lambda _: 0.0, b=lambda _: 0.0)

        def latency(call: int, bench: Bench = bench, rng: np.random.Generator = rng) -> float:
            turn = len(bench.log)
            drift = 1 + 0.5 * np.sin(turn / 15)
            return float(1e-3 * drift * rng.lognormal(0, 0.1) * (1 + penalty * (turn % 2)))

        for session in bench.sessions.values():
            session.latency = latency
        speedup = bench.run(rounds=50).rows[1].speedup
        missed += not speedup.low <= 1 <= speedup.high
    assert missed <= 7


class Placed(FakeSession):
    """As fast as where it came to lie in memory; writes down when it is opened and closed."""

    def __enter__(self) -> Self:
        self.log.append(f"+{self.name}")
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append(f"-{self.name}")


@pytest.mark.parametrize(("openings", "contains"), [(1, False), (4, True)])
def test_what_is_opened_first_has_no_disadvantage(openings: int, contains: bool) -> None:
    """Two sessions of one model; the first one that is opened is 1 % slower than the second."""
    clock, log, rng = FakeClock(), [], np.random.default_rng(0)

    def opener(name: str) -> Placed:
        first = sum(entry[0] == "+" for entry in log) % 2 == 0
        factor = 1.01 if first else 1.0
        return Placed(name, clock, log, lambda _: float(1e-3 * factor * rng.lognormal(0, 0.005)))

    report = benchmark_sessions(
        {1: mirrored_openings({name: lambda name=name: opener(name) for name in "ab"}, openings)},
        batch_sizes=[1],
        input_shape=SHAPE,
        rounds=50,
        warmup=1,
        clock=clock,
    )
    a, b = report.rows
    assert (a.session, b.session, report.baseline) == ("a", "b", "a")
    assert (a.rounds, b.rounds) == (50, 50)
    assert (b.speedup.low <= 1 <= b.speedup.high) is contains
    assert b.speedup.high - b.speedup.low < 0.03
    doors = "".join(entry for entry in log if entry[0] in "+-")
    assert doors == ("+a+b-b-a+b+a-a-b" * 2)[: 8 * openings]


def test_rounds_are_shared_among_openings() -> None:
    bench = Bench(a=lambda _: 1e-3)
    told: list[int] = []
    report = benchmark_sessions(
        {1: mirrored_openings({"a": lambda: bench.sessions["a"]}, 4)},
        batch_sizes=[1, 2],
        input_shape=SHAPE,
        rounds=10,
        warmup=0,
        advance=lambda rounds, note: told.append(rounds),
        clock=bench.clock,
    )
    assert [row.rounds for row in report.rows] == [10, 10]
    assert sum(told) == len(bench.log) == 20


def test_numbers_of_threads_take_turns_and_are_compared_each_with_its_own_baseline() -> None:
    """With 1 thread "b" is twice as fast as "a", with 2 threads four times."""
    clock, log = FakeClock(), []

    def openers(threads: int) -> dict[str, Callable[[], FakeSession]]:
        seconds = {"a": 0.016 / threads, "b": 0.008 / threads**2}
        return {
            name: lambda name=name: Placed(f"{name}{threads}", clock, log, lambda _: seconds[name])
            for name in seconds
        }

    told: list[int] = []
    report = benchmark_sessions(
        {threads: mirrored_openings(openers(threads), 2) for threads in (1, 2)},
        batch_sizes=[8, 1],
        input_shape=SHAPE,
        rounds=4,
        warmup=0,
        advance=lambda rounds, note: told.append(rounds),
        clock=clock,
    )
    assert [(row.batch_size, row.threads, row.session) for row in report.rows] == [
        (size, threads, name) for size in (8, 1) for threads in (1, 2) for name in "ab"
    ]
    assert {row.rounds for row in report.rows} == {4}
    assert sum(told) == 4 * 2 * 2
    speedups = {(row.session, row.threads): row.speedup.median for row in report.rows}
    assert speedups == pytest.approx({("a", 1): 1, ("a", 2): 1, ("b", 1): 2, ("b", 2): 4})
    doors = " ".join(entry for entry in log if entry[0] == "+")
    assert doors == "+a1 +b1 +a2 +b2 +b2 +a2 +b1 +a1"


def test_peak_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    """The larger batch needs more; the memory that this process holds is not counted."""
    ballast = np.ones(2**27, dtype=np.uint8)
    model = save_model(tmp_path / "model.onnx", shape=("N", 3, 256, 256))
    rows = measure_peak_memory(
        "tiny", "ort-cpu", model, batch_sizes=[64, 1], input_shape=(3, 256, 256), threads=1
    )
    found = [(row.session, row.batch_size, row.threads) for row in rows]
    assert found == [("tiny", 1, 1), ("tiny", 64, 1)]
    images_mib = 63 * 3 * 256 * 256 * 4 / 2**20
    # A little less: the smaller batch's memory is used again.
    assert rows[1].peak_rss_mib > rows[0].peak_rss_mib + 0.95 * images_mib
    assert ballast.nbytes / 2**20 + rows[0].peak_rss_mib < peak_rss_mib() + 2**10
    assert 5 < rows[0].peak_rss_mib < 1000


def test_memory_that_cannot_be_measured_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"memory of tiny .*nowhere\.onnx is not one"):
        measure_peak_memory(
            "tiny",
            "ort-cpu",
            tmp_path / "nowhere.onnx",
            batch_sizes=[1],
            input_shape=(3, 4, 4),
            threads=1,
        )


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name that prints what it is given, and goes on until it is stopped."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def write_program(program: Path, *lines: str) -> None:
    text = "".join(f"echo '{line}'\n" for line in lines)
    names = 'case "$*" in *driver_version*) echo "A GPU, 1.2, 8 MiB, 9.0"; exit;; esac\n'
    program.write_text(f"#!/bin/sh\n{names}{text}touch {program.parent}/ready\nexec sleep 60\n")
    program.chmod(0o755)


def wait_for(program: Path) -> None:
    """Until it has printed its lines; 5 seconds at most."""
    for _ in range(500):
        if (program.parent / "ready").exists():
            return
        time.sleep(0.01)


def watch(program: Path) -> GpuLoad | None:
    with GpuMonitor() as monitor:
        wait_for(program)
    return monitor.load(8)


def test_power_and_clocks_by_hand(nvidia_smi: Path) -> None:
    write_program(
        nvidia_smi,
        "100.0, 1500, 2600, 40, 1000",
        "200.0, 1800, 2600, 50, 3000",
        "[N/A], 900, 2600, 45, 2000",
        "cut o",
    )
    assert watch(nvidia_smi) == GpuLoad(
        batch_size=8,
        samples=3,
        power_w=150,
        sm_clock_mhz=1500,
        sm_clock_min_mhz=900,
        memory_clock_mhz=2600,
        temperature_c=50,
        memory_used_mib=3000,
    )


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        (None, "--id=0"),
        ("3", "--id=3"),
        (" 2,0", "--id=2"),
        (
            "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,1",
            "--id=GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
        ),
        ("MIG-GPU-8932f937-d72c/1/2", "--id=GPU-8932f937-d72c"),
        ("MIG-41b36014-1c26", "--id=MIG-41b36014-1c26"),
    ],
)
def test_the_gpu_that_cuda_uses_is_asked(
    visible: str | None, asked: str, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    write_program(nvidia_smi, "100.0, 1500, 2600, 40, 1000")
    program = nvidia_smi.read_text().replace("touch", f'echo "$1" > {nvidia_smi}.asked\ntouch')
    nvidia_smi.write_text(program)
    assert watch(nvidia_smi) is not None
    assert nvidia_smi.with_name("nvidia-smi.asked").read_text() == f"{asked}\n"


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles", "none"])
def test_no_gpu_is_asked_where_none_may_be_used(
    visible: str, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(nvidia_smi, "100.0, 1500, 2600, 40, 1000")
    assert watch(nvidia_smi) is not None
    (nvidia_smi.parent / "ready").unlink()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with GpuMonitor() as monitor:
        time.sleep(0.1)  # the program says that it is ready in far less
    assert monitor.load(8) is None
    assert not (nvidia_smi.parent / "ready").exists()


@pytest.mark.gpu
def test_a_real_gpu_tells_its_load() -> None:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("there is no nvidia-smi")
    with GpuMonitor() as monitor:
        time.sleep(1)
    load = monitor.load(1)
    assert load is not None
    assert load.samples >= 2
    assert load.memory_used_mib is not None
    assert load.memory_used_mib >= 0


def test_a_gpu_that_tells_nothing(nvidia_smi: Path) -> None:
    write_program(nvidia_smi)
    assert watch(nvidia_smi) is None


def test_without_nvidia_smi_there_is_no_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = Bench(a=lambda _: 1e-3).run(watch_gpu=True)
    assert report.gpu == []


def test_the_load_is_in_the_report(nvidia_smi: Path) -> None:
    write_program(nvidia_smi, "100.0, 1500, 2600, 40, 1000")

    def latency(call: int) -> float:
        wait_for(nvidia_smi)
        return 1e-3

    bench = Bench(a=latency)
    report = bench.run(batch_sizes=[2], rounds=3, watch_gpu=True)
    (load,) = report.gpu
    assert (load.batch_size, load.power_w) == (2, 100)
    assert report.machine["gpu"] == "A GPU, driver 1.2"
    assert bench.run(rounds=3).gpu == []


def report_with(speedup: float, **changes: Any) -> BenchmarkReport:
    bench = Bench(base=lambda _: speedup * 1e-3, tested=lambda _: 1e-3)
    return bench.run().model_copy(update=changes)


@pytest.mark.parametrize(
    ("old", "new", "passed"),
    [(2.0, 2.0, True), (2.0, 1.81, True), (2.0, 1.79, False), (1.0, 3.0, True)],
)
def test_a_speedup_may_lose_the_tolerance_and_no_more(old: float, new: float, passed: bool) -> None:
    comparison = compare_benchmarks(
        report_with(new), report_with(old), against="old.json", tolerance=0.1
    )
    (change,) = comparison.changes
    assert (change.session, change.batch_size) == ("tested", 1)
    assert change.change == pytest.approx(new / old - 1)
    assert comparison.passed is passed
    assert change.regressed is not passed
    assert comparison.same_machine


def test_another_number_of_threads_is_another_row() -> None:
    def with_threads(threads: int) -> BenchmarkReport:
        report = report_with(2.0)
        rows = [row.model_copy(update={"threads": threads}) for row in report.rows]
        return report.model_copy(update={"rows": rows})

    one, two = with_threads(1), with_threads(2)
    with pytest.raises(InvalidInputError, match="tested at batch size 1 and 2 threads, which"):
        compare_benchmarks(one, two, against="old.json", tolerance=0.1)
    both = one.model_copy(update={"rows": [*one.rows, *two.rows]})
    (change,) = compare_benchmarks(both, two, against="old.json", tolerance=0.1).changes
    assert change.threads == 2


def test_a_row_of_the_older_benchmark_that_is_not_measured_is_refused() -> None:
    """Who leaves the slow row out must not pass."""
    older = Bench(base=lambda _: 2e-3, tested=lambda _: 1e-3, slow=lambda _: 3e-3).run()
    with pytest.raises(InvalidInputError, match="row for slow at batch size 1"):
        compare_benchmarks(report_with(2.0), older, against="old.json", tolerance=0.1)


@pytest.mark.parametrize("change", [{"cpu": "another"}, {"gpu": "A GPU, driver 1.2"}])
def test_another_machine_is_said(change: dict[str, str]) -> None:
    old = report_with(2.0, machine={**report_with(2.0).machine, **change})
    assert not compare_benchmarks(
        report_with(2.0), old, against="old.json", tolerance=0.1
    ).same_machine


@pytest.mark.parametrize(
    ("changes", "tolerance", "words"),
    [
        ({"baseline": "other"}, 0.1, "over 'other', these over 'base'"),
        ({"rows": []}, 0.1, "no row beside its baseline"),
        ({}, 1.0, "tolerance from 0 to below 1, got 1.0"),
        ({}, float("nan"), "tolerance from 0 to below 1, got nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    changes: dict[str, Any], tolerance: float, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        compare_benchmarks(
            report_with(2.0), report_with(2.0, **changes), against="old", tolerance=tolerance
        )


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_what_is_no_benchmark_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"bench\.json"):
        read_benchmark(path)


def test_reports_from_before_the_additions_are_read(tmp_path: Path) -> None:
    """Keys that a first version did not write have defaults."""
    content = report_with(2.0).model_dump(mode="json")
    for key in ("memory", "gpu", "comparison"):
        del content[key]
    for row in content["rows"]:
        del row["device"], row["threads"]
    for info in content["sessions"].values():
        del info["precision"], info["products"]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(content))
    older = read_benchmark(path)
    assert len(older.rows) == 2
    # Its only number of threads stands with the sessions: 1, as that of the new one.
    comparison = compare_benchmarks(report_with(2.0), older, against="old", tolerance=0.1)
    assert [change.threads for change in comparison.changes] == [1]
