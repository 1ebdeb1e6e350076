"""How every session of ONNX Runtime is set up here, whether it runs an artefact or is timed."""

from __future__ import annotations

import onnxruntime

__all__ = ["PROVIDERS", "session_options"]

PROVIDERS = ["CPUExecutionProvider"]


def session_options() -> onnxruntime.SessionOptions:
    """The runtime's defaults, as many threads as it wants to take, and no log lines."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options
