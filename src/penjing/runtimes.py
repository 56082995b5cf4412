"""What penjing asks of other runtimes, wherever it runs a file in them."""

from typing import Any

EXACT_INTEGERS = ("session.x64quantprecision", "1")
"""An option of ONNX Runtime's sessions: without it pairs of 8-bit products are cut off at 16 bits where there is no VNNI."""


def onnx_session(content: str | bytes, threads: int = 1, *, exact: bool = True) -> Any:
    """An ONNX Runtime session on the CPU, for a file's path or its content.

    Args:
        exact: integers are, on any processor. It cannot load files whose weights share zero points then.
    Raises: ImportError: there is no ONNX Runtime. Whatever it raises itself: it cannot load the file.
    """
    import onnxruntime  # noqa: PLC0415  optional dependency

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if exact:
        options.add_session_config_entry(*EXACT_INTEGERS)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
