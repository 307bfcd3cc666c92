"""Linters: the rules of each engine, checked before anyone waits for a build.

They look at any ONNX graph, whoever made it, and need no torch and no engine.
"""
