"""The networks of the coverage table: names, and how each is built with random weights and example inputs."""

import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
LIBRARIES = ("torchvision", "timm", "transformers")
MAX_PARAMETERS = 100_000_000

TIMM = (
    "resnet50d",
    "resnext50_32x4d",
    "seresnet50",
    "res2net50_26w_4s",
    "densenet121",
    "vgg16_bn",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "mnasnet_100",
    "ghostnet_100",
    "regnety_008",
    "convnext_tiny",
    "dla34",
    "hrnet_w18",
    "xception41",
    "vit_small_patch16_224",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "levit_128",
    "coat_tiny",
    "edgenext_small",
    "fastvit_t8",
)

_TEXT = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
_LLAMA = {**_TEXT, "num_key_value_heads": 2, "max_position_embeddings": 128}
_SPEECH = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "conv_dim": (64, 64, 64),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "BERT": ("BertForSequenceClassification", "BertConfig", _TEXT, "text"),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 1000, "dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 256},
        "text",
    ),
    "ViT": (
        "ViTForImageClassification",
        "ViTConfig",
        {**{k: v for k, v in _TEXT.items() if k != "vocab_size"}, "image_size": 64, "patch_size": 8},
        "image",
    ),
    "GPT-2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 1000, "n_embd": 128, "n_layer": 2, "n_head": 4},
        "causal",
    ),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA, "causal"),
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 1000, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4},
        "seq2seq",
    ),
    "Whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": 1000,
            "d_model": 128,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 256,
            "decoder_ffn_dim": 256,
            "num_mel_bins": 40,
            "max_source_positions": 50,
            "max_target_positions": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "speech2seq",
    ),
    "RoBERTa": ("RobertaForSequenceClassification", "RobertaConfig", {**_TEXT, "max_position_embeddings": 130}, "text"),
    "ALBERT": ("AlbertForSequenceClassification", "AlbertConfig", {**_TEXT, "embedding_size": 64}, "text"),
    "Mistral": ("MistralForCausalLM", "MistralConfig", {**_LLAMA, "sliding_window": 16}, "causal"),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _LLAMA, "causal"),
    "CLIP": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        {
            **{k: v for k, v in _TEXT.items() if k != "vocab_size"},
            "image_size": 64,
            "patch_size": 8,
            "projection_dim": 64,
        },
        "image",
    ),
    "Wav2Vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", _SPEECH, "wave"),
}


@dataclass(frozen=True)
class Entry:
    """One network of the table: its library, family and name, and how to make it with example inputs."""

    library: str
    family: str
    name: str
    make: Callable[[], tuple[nn.Module, Inputs]]


def shim() -> None:
    """Import the module that PENJING_TORCHVISION_SHIM names by its path; torchvision's compiled operations may need one."""
    path = os.environ.get("PENJING_TORCHVISION_SHIM")
    if path:
        spec = importlib.util.spec_from_file_location("torchvision_shim", path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"PENJING_TORCHVISION_SHIM: there is no Python file {path}.")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def entries(libraries: Collection[str] = LIBRARIES) -> Iterator[Entry]:
    """All networks of the table, in order."""
    if "torchvision" in libraries:
        models = importlib.import_module("torchvision.models")
        for name in models.list_models(module=models):
            if _torchvision_parameters(name) <= MAX_PARAMETERS:
                builder = models.get_model_builder(name)
                yield Entry("torchvision", builder.__module__.rsplit(".", 1)[-1], name, partial(_torchvision, name))
    if "timm" in libraries:
        for name in TIMM:
            yield Entry("timm", name, name, partial(_timm, name))
    if "transformers" in libraries:
        for name in TRANSFORMERS:
            yield Entry("transformers", name, name, partial(_transformers, name))


def find(library: str, name: str) -> Entry:
    """The network of that library and name. Raises: SystemExit: the table has none."""
    found = next((entry for entry in entries((library,)) if entry.name == name), None)
    if found is None:
        raise SystemExit(f"coverage: {library} has no network {name} in networks.py.")
    return found


def _torchvision_parameters(name: str) -> int:
    weights = importlib.import_module("torchvision.models").get_model_weights(name)
    return next(int(w.meta["num_params"]) for w in weights)


def _torchvision(name: str) -> tuple[nn.Module, Inputs]:
    models = importlib.import_module("torchvision.models")
    extra = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    side = 299 if name == "inception_v3" else 224
    return models.get_model(name, weights=None, **extra).eval(), (torch.randn(2, 3, side, side),)


def _timm(name: str) -> tuple[nn.Module, Inputs]:
    model = importlib.import_module("timm").create_model(name, pretrained=False).eval()
    side = model.default_cfg["input_size"]
    return model, (torch.randn(2, *side),)


def _transformers(name: str) -> tuple[nn.Module, Inputs]:
    library = importlib.import_module("transformers")
    model_class, config_class, settings, kind = TRANSFORMERS[name]
    config = getattr(library, config_class)(**settings)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    model = getattr(library, model_class)(config).eval()
    ids = torch.randint(3, 1000, (2, 16))
    inputs: dict[str, Tensor]
    if kind == "text":
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    elif kind == "causal":
        inputs = {"input_ids": ids}
    elif kind == "seq2seq":
        inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :9].contiguous()}
    elif kind == "speech2seq":
        inputs = {"input_features": torch.randn(2, 40, 100), "decoder_input_ids": ids[:, :9].contiguous()}
    elif kind == "wave":
        inputs = {"input_values": torch.randn(2, 3200)}
    else:
        inputs = {"pixel_values": torch.randn(2, 3, 64, 64)}
    return model, inputs


def n_parameters(model: nn.Module) -> int:
    """Numbers in all parameters; a shared one counts once."""
    return sum(math.prod(p.shape) for p in model.parameters())
