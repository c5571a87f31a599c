"""The bare session of the serving benchmark, which the peers open, too: it needs ONNX Runtime and nothing of Winnow."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

Session = Any


def open_session(graph: bytes, *, threads: int = 1) -> Session:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
