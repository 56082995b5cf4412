"""Other people's formats."""

from penjing.export.ending import export
from penjing.export.executorch import export_executorch
from penjing.export.onnx import export_onnx
from penjing.export.static import Export

__all__ = ["Export", "export", "export_executorch", "export_onnx"]
