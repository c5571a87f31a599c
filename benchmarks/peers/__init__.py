"""Other servers of models, each with the same ONNX graph: what runs in their environments, not in Winnow's."""
