"""State on disk: nested dicts of tensors and numbers in one safetensors file, replaced whole or not at all."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from penjing.errors import RunError
from penjing.files import write_atomically


def save_state(path: Path, state: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings and None, atomically."""
    tensors: dict[str, Tensor] = {}
    skeleton = _take_apart(state, tensors)
    write_atomically(path, save(tensors, {"skeleton": json.dumps(skeleton)}))


def load_state(path: Path) -> Any:
    """The inverse of `save_state`, bit for bit; tensors on the CPU.

    Raises: RunError: the file is not one of ours, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            skeleton = json.loads((file.metadata() or {})["skeleton"])
        return _put_together(skeleton, tensors)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(f"{path}: this checkpoint is damaged ({error}). Delete it and go on with --resume.") from error


def _take_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _take_apart(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_take_apart(item, tensors) for item in value]}
    return {"value": value}


def _put_together(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_together(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_put_together(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    return content
