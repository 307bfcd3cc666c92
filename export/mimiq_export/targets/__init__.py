"""Kinds of engine that an ONNX file can be written for, each a list of passes."""
