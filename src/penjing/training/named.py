"""What recipes name: functions of packages, models that they return, and weights for these."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from penjing.artifact import load
from penjing.errors import PenjingError, SettingError, nearest


def load_model(settings: Mapping[str, Any]) -> nn.Module:
    """The model of a recipe's `model`: package.module:function called with the settings, or an artifact.

    With `weights` the model gets those of a file of safetensors.
    Raises: SettingError: no such function, or it does not return a module, or the weights are not this model's.
        ArtifactError: no sound file.
    """
    rest = {key: value for key, value in settings.items() if key not in ("function", "weights")}
    name = str(settings.get("function", ""))
    if name.endswith(".pj"):
        others = [key for key in settings if key not in ("function", "sha256")]
        if others:
            raise SettingError(f"model: {name} is a file and has no settings but sha256, got {', '.join(others)}.")
        return load(name, for_training=True, sha256=settings.get("sha256"))
    found = called(import_function(name, "model"), rest, f"model: {name}")
    if not isinstance(found, nn.Module):
        raise SettingError(f"model: {name} must return a torch.nn.Module, got {type(found).__name__}.")
    if "weights" in settings:
        _load_weights(found, Path(settings["weights"]))
    return found


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SettingError(f"model: weights: {path} cannot be read as safetensors ({error}).") from None
    counters = {name for name, _ in model.named_buffers() if name.endswith("num_batches_tracked")}
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise SettingError(f"model: weights: {path} does not fit: {str(error).splitlines()[-1].strip()}") from None
    missing = [name for name in missing if name not in counters]
    if missing or unknown:
        raise SettingError(
            f"model: weights: {path} must have the tensors of the model. It lacks {', '.join(missing[:3]) or 'none'}, and "
            f"the model does not know {', '.join(unknown[:3]) or 'none'}."
        )


def import_function(name: str, where: str, known: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """The function at package.module:function; the working folder is searched too.

    Raises: SettingError: the name is not of this form, or there is nothing there.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        hint = f"; {nearest(name, known)}" if known else ""
        raise SettingError(f'{where}: must be package.module:function, got "{name}"{hint}.')
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SettingError(f'{where}: the module "{module_name}" cannot be imported ({error}).') from None
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SettingError(
            f'{where}: "{module_name}" has no function "{function_name}"; {nearest(function_name, functions)}.'
        )
    return function


def called(function: Callable[..., Any], settings: Mapping[str, Any], where: str) -> Any:
    """What a function returns for these settings.

    Raises: SettingError: a setting that it does not have, with the nearest, or that it does not take.
    """
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key in settings:
        if key not in parameters and not open_ended:
            raise SettingError(f'{where}: there is no setting "{key}"; {nearest(key, parameters)}.')
    try:
        return function(**settings)
    except PenjingError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingError(f"{where}: {error}.") from error
