"""The student in the arithmetic of an integer engine (docs/decisions/0010-engine-arithmetic.md)."""
