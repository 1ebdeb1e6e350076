"""How every session of ONNX Runtime is set up here, whether it runs an artefact or is timed."""

from __future__ import annotations

import onnxruntime

from asvd_q.process import thread_limit

__all__ = ["LEVEL", "PROVIDERS", "session_options"]

PROVIDERS = ["CPUExecutionProvider"]

LEVEL = "session.qdq_matmulnbits_accuracy_level"


def session_options(accuracy_level: int | None = None) -> onnxruntime.SessionOptions:
    """The runtime's defaults, as many threads as `limited_threads` allows, and no log lines.

    Args:
        accuracy_level: of the kernels that the runtime puts in place of `DequantizeLinear` and
            `MatMul`, of which a file cannot say it; None for the runtime's own, 4.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = thread_limit() or 0  # 0: as many as it wants to take
    if accuracy_level is not None:
        options.add_session_config_entry(LEVEL, str(accuracy_level))
    return options
