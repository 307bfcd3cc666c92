"""Seeds for each piece of work, so that pieces can be made in any order, on any rank, again."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["piece_generator", "piece_seed"]


def piece_seed(seed: int, stage: str, piece: int) -> int:
    """A seed that differs for each stage and each piece of it, for the same run seed.

    Args:
        seed: Seed of the run, not negative.
        stage: Name of the stage.
        piece: Number of the shard, epoch or step.
    """
    entropy = [seed, piece, *stage.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def piece_generator(seed: int, stage: str, piece: int) -> torch.Generator:
    """A generator on the CPU, seeded by :func:`piece_seed`: the same numbers on every device."""
    return torch.Generator().manual_seed(piece_seed(seed, stage, piece))
