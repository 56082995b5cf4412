"""Other people's formats."""

from penjing.export.onnx import Export, export_onnx

__all__ = ["Export", "export_onnx"]
