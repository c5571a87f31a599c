"""Serving: ONNX sessions, the prediction over their outputs, the gate in front of them. Knows no HTTP and no torch."""
