"""Real processes that talk through gloo; and one alone."""

from __future__ import annotations

import multiprocessing
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mimiq_calib.processes import Processes, join_processes
from mimiq_runtime.errors import InvalidInputError, LostProcessError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

COUNT = 3
GIFTS = [b"", b"one", bytes(range(256)) * 50]


def work(processes: Processes) -> dict[str, object]:
    """Add, gather, and lose the last process, which leaves word."""
    rank = processes.rank
    a = torch.full((2, 3), 10.0**rank)
    b = torch.tensor([1e-8 * (rank + 1), 1.0, -float(rank)])
    processes.sum_([a, b])
    answer: dict[str, object] = {
        "sums": (a.tolist(), b.tolist()),
        "gathered": (processes.gather(GIFTS[rank]), processes.gather(b"")),
    }
    if rank == 2:
        raise InvalidInputError("the third stumbled")
    if rank == 0:
        with pytest.raises(LostProcessError, match="again with --resume") as caught:
            processes.wait()
        answer["reason"] = caught.value.reason
    return answer


def one_of(rank: int, port: int, connection: Connection) -> None:
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ |= {"WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        with join_processes("cpu") as (processes, device):
            assert device == torch.device("cpu")
            assert (processes.rank, processes.count) == (rank, COUNT)
            assert processes.first == (rank == 0)
            connection.send(work(processes))
    except InvalidInputError as error:
        connection.send(str(error))


@pytest.fixture(scope="module")
def answers() -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe(duplex=False) for _ in range(COUNT)]
    started = [
        context.Process(target=one_of, args=(rank, port, ends[rank][1])) for rank in range(COUNT)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    return [reader.recv() for reader, _ in ends]


def test_sums_are_equal_everywhere(answers: list[Any]) -> None:
    a, b = answers[0]["sums"]
    assert a == [[111.0] * 3] * 2
    assert b == [pytest.approx(6e-8, rel=1e-6), 3.0, -3.0]
    assert answers[1]["sums"] == (a, b)


def test_the_first_gets_what_all_gave(answers: list[Any]) -> None:
    assert answers[0]["gathered"] == (GIFTS, [b"", b"", b""])
    assert answers[1]["gathered"] == ([], [])


def test_the_first_hears_why_another_ended(answers: list[Any]) -> None:
    assert answers[0]["reason"] == "process 2: the third stumbled"
    assert answers[2] == "the third stumbled"


class TestAlone:
    def test_nothing_is_sent(self) -> None:
        processes = Processes()
        x = torch.ones(2)
        processes.sum_([x])
        processes.wait()
        assert x.tolist() == [1, 1]
        assert processes.gather(b"mine") == [b"mine"]
        assert processes.first

    @pytest.mark.parametrize(
        "environment", [{}, {"WORLD_SIZE": "4"}, {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}], ids=str
    )
    def test_what_is_not_several_of_torchrun(
        self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with join_processes("cpu") as (processes, device):
            assert (processes.count, device) == (1, torch.device("cpu"))
            assert not torch.distributed.is_initialized()

    @pytest.mark.parametrize("name", ["nonsense", "cuda:1", "mps"])
    def test_with_others_a_device_is_a_kind(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for variable, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(variable, value)
        with pytest.raises(InvalidInputError, match="cpu or cuda"), join_processes(name):
            pass

    @pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", "meta", "xla", "n" * 9999])
    def test_a_device_that_is_not_there(self, name: str) -> None:
        with (
            pytest.raises(InvalidInputError, match="cpu always can") as caught,
            join_processes(name),
        ):
            pass
        assert len(str(caught.value)) < 400
