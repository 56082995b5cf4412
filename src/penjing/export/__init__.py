"""Other people's formats."""

from penjing.export.ending import export
from penjing.export.executorch import export_executorch
from penjing.export.onnx import EXACT_INTEGERS, export_onnx
from penjing.export.static import Export

__all__ = ["EXACT_INTEGERS", "Export", "export", "export_executorch", "export_onnx"]
