"""The demonstration: a small model of handwritten digits, and its story."""
