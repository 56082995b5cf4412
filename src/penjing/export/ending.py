"""The format that a file's name asks for."""

from pathlib import Path

from penjing.errors import SettingError
from penjing.export.executorch import export_executorch
from penjing.export.onnx import export_onnx
from penjing.export.static import Export
from penjing.graph import Network


def export(
    network: Network,
    path: str | Path,
    *,
    exit_at: int | None = None,
    conditions: bool = False,
    batch: int | None = None,
    length: int | None = None,
) -> Export:
    """Write small.onnx (`export_onnx`) or small.pte (`export_executorch`), and compare.

    Args:
        conditions: ONNX only: exits as conditions, so that samples leave early there too.
        batch, length: of a .pte file, whose sizes are fixed: 1, and as traced, unless told.
    Raises: SettingError: another ending, or sizes for ONNX, which takes any; and as those two raise.
    """
    ending = Path(path).suffix
    if ending not in (".onnx", ".pte"):
        raise SettingError(f"export: {path} must end in .onnx (ONNX) or .pte (ExecuTorch).")
    if ending == ".pte":
        if conditions:
            raise SettingError("export: --leave-early is for ONNX files; ExecuTorch programs have no conditions.")
        return export_executorch(network, path, exit_at=exit_at, batch=1 if batch is None else batch, length=length)
    if batch is not None or length is not None:
        raise SettingError("export: --batch and --length are for .pte files; an ONNX file takes any.")
    return export_onnx(network, path, exit_at=exit_at, conditions=conditions)
