"""ONNX graphs: the forms they are exported in, sessions, quantization sensitivity."""
