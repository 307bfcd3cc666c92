"""What any model's input keeps to; for runs, and for bundles, whose devices have no schemas."""

from __future__ import annotations

__all__ = ["FARTHEST_MEAN", "LARGEST_INPUT", "LARGEST_STD", "SMALLEST_STD"]

FARTHEST_MEAN, SMALLEST_STD, LARGEST_STD = 1e3, 1e-4, 1e3
"""Pixels are from 0 to 1: beyond these, normalised ones would all be alike, or not finite."""

LARGEST_INPUT = 64_000_000
"""Values of one input image; a picture of more pixels is not read either."""
