from __future__ import annotations

import itertools

import pytest
import torch

from mimiq_calib.randomness import piece_generator, piece_seed


def test_seeds_differ_by_run_stage_and_piece() -> None:
    cases = itertools.product(
        (0, 1, 2**31, 2**32, 2**63), ("synthesis", "distillation", "a"), (0, 1, 2, 999)
    )
    seeds = [piece_seed(*case) for case in cases]
    assert len(set(seeds)) == len(seeds)
    assert piece_seed(1, "s", 2) != piece_seed(2, "s", 1)
    assert piece_seed(0, "epoch 1", 1) != piece_seed(0, "epoch 11", 0)


def test_seeds_are_the_same_forever() -> None:
    """A resumed run is of another process, and maybe of another version."""
    assert piece_seed(0, "synthesis", 0) == 1640513332345757325
    assert piece_seed(7, "distillation", 3) == 6666611470685256802


def test_seeds_fit_a_signed_64_bit_integer() -> None:
    for piece in range(200):
        assert 0 <= piece_seed(0, "synthesis", piece) < 2**63


def test_generators_repeat_and_leave_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    first = torch.randn(5, generator=piece_generator(3, "synthesis", 4))
    torch.randn(5, generator=piece_generator(3, "synthesis", 5))
    again = torch.randn(5, generator=piece_generator(3, "synthesis", 4))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_negative_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        piece_seed(-1, "synthesis", 0)
