"""ONNX files: float and 8-bit networks, and the runtime that executes them."""
