"""Quantizers: learned-step functions, modules that hold the scales, and the search for ranges."""
