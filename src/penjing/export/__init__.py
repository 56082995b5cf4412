"""Other people's formats."""

from penjing.export.executorch import export_executorch
from penjing.export.onnx import export_onnx
from penjing.export.static import Export

__all__ = ["Export", "export_executorch", "export_onnx"]
