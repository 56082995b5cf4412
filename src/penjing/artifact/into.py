"""From a file back into the class of the model that it came from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from penjing.artifact.opened import load
from penjing.graph import into_own_class, trace


def load_into(
    model: nn.Module,
    path: str | Path,
    inputs: Sequence[Tensor] | Mapping[str, Tensor],
    *,
    sha256: str | None = None,
) -> nn.Module:
    """A model of the user's class with what a file holds: its weights, and its widths where they are smaller.

    Args:
        model: the model before it was cut, with any weights, e.g. made from its configuration; not modified.
        path: a file of that model's network, cut or not, with the same steps.
        inputs: example inputs of its forward method, in order or by name.
        sha256: of the file, as in `open_artifact`.
    Raises: ArtifactError: not a sound file. TraceError: the model cannot be read.
        SurgeryError: the file is of another model, or the class cannot hold it; then use what `load` gives.
    """
    return into_own_class(model, trace(model, inputs), load(path, sha256=sha256), inputs)
