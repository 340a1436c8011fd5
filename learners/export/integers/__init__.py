"""Quantized networks as ONNX files of integers."""
