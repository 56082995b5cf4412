"""Other people's formats."""

from penjing.export.ending import export
from penjing.export.executorch import export_executorch
from penjing.export.onnx import export_onnx
from penjing.export.static import Export
from penjing.runtimes import EXACT_INTEGERS

__all__ = ["EXACT_INTEGERS", "Export", "export", "export_executorch", "export_onnx"]
