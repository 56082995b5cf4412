"""Sentences: what is read, what the targets are, and an encoder that is traced, coded and saved."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from penjing.artifact import decode, encode
from penjing.errors import DataError, SettingError
from penjing.graph import trace
from penjing.models import sentence_encoder
from penjing.models.sentence_encoder import model_folder
from penjing.quantization import CalibratedCoding
from penjing.tasks import COSINE, sentences
from penjing.tasks.sentences import cosine_loss, sentence_pairs
from penjing.training import (
    LearnFromLabels,
    LearnFromLayers,
    LearnFromTeacher,
    Part,
    Schedule,
    Teacher,
    Workbench,
    fit_,
    layer_pairs,
)

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *[
        "a",
        "man",
        "is",
        "playing",
        "flute",
        "dog",
        "runs",
        "fast",
        "over",
        "the",
        "hill",
        "with",
        "two",
        "red",
        "balls",
    ],
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two narrow layers with random weights, and its tokenizer, as files."""
    hidden = "torchvision" not in sys.modules  # beside a CPU build of torch it may be there and fail
    if hidden:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import BertConfig, BertModel
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"transformers cannot be used: {str(error).splitlines()[0]}")
    finally:
        if hidden:
            del sys.modules["torchvision"]
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config: Any = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)

    def rows(n: int) -> str:
        drawn = [[WORDS[4 + int(i)] for i in torch.randint(14, (5,), generator=generator)] for _ in range(2 * n)]
        pairs = [(" ".join(one[:3]), " ".join(other)) for one, other in zip(drawn[:n], drawn[n:], strict=True)]
        return "".join(f"{one},{other},{k}.5\n" for k, (one, other) in enumerate(pairs))

    (folder / "train.csv").write_text(rows(60) + "the dog runs,the dog runs,3.0\n")
    (folder / "dev.csv").write_text(rows(10) + "the dog runs,a man runs,1\n")
    return folder


def test_sentences_are_read_once_and_those_of_the_test_file_are_not_trained_on(tiny: Path, data: Path) -> None:
    task = sentences(data, model=str(tiny), n_valid=20, batch_size=8)
    assert task.metric is COSINE and not task.is_classification
    assert task.test is not None
    sets = {
        name: {tuple(row[mask.bool()].tolist()) for batch in part for row, mask in zip(*batch.args, strict=True)}
        for name, part in (("train", task.train), ("valid", task.valid), ("test", task.test))
    }
    assert not sets["train"] & sets["test"] and not sets["valid"] & sets["test"] and not sets["train"] & sets["valid"]
    runs = (2, WORDS.index("the"), WORDS.index("dog"), WORDS.index("runs"), 3)
    assert runs in sets["test"] and len(sets["valid"]) == 20


def test_targets_are_the_models_own_vectors_of_length_1_whatever_the_padding(tiny: Path, data: Path) -> None:
    task = sentences(data, model=str(tiny), n_valid=20, batch_size=8)
    model = sentence_encoder(str(tiny))
    batch = next(task.batches(task.valid))
    answers = model(*batch.args).detach()
    torch.testing.assert_close(answers, batch.labels)
    torch.testing.assert_close(answers.norm(dim=-1), torch.ones(len(answers)))
    assert float(task.metric.score(answers, batch.labels).mean()) == pytest.approx(1)
    assert float(cosine_loss(answers, -batch.labels)) == pytest.approx(2)
    row, mask = batch.args[0][:1], batch.args[1][:1]
    wide = (
        torch.cat([row, torch.zeros(1, 7, dtype=torch.long)], 1),
        torch.cat([mask, torch.zeros(1, 7, dtype=torch.long)], 1),
    )
    torch.testing.assert_close(model(*wide), model(row, mask))


def test_an_encoder_is_coded_and_loads_without_its_library(tiny: Path, data: Path) -> None:
    task = sentences(data, model=str(tiny), n_valid=20, batch_size=8)
    network = trace(sentence_encoder(str(tiny)), task.example().args).eval()
    bench = Workbench(network, task)
    CalibratedCoding(samples=32, gradients=16, noise=0.01).apply(bench)
    again = decode(encode(bench.network)).eval()
    batch = next(task.batches(task.valid))
    assert float(task.metric.score(again(*batch.args).detach(), batch.labels).mean()) > 0.9


def test_what_is_not_there_is_said(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"neither a folder with config\.json nor an installed package"):
        model_folder("no_such_model")
    with pytest.raises(DataError, match=r"train\.csv is not there|dev\.csv is not there"):
        sentences(tmp_path, model=str(tiny))
    (tmp_path / "train.csv").write_text("1.0,2\n")
    (tmp_path / "dev.csv").write_text("a dog,a man,2\n")
    with pytest.raises(DataError, match=r"train\.csv holds none"):
        sentences(tmp_path, model=str(tiny))


def test_some_layers_learn_from_all_of_them(tiny: Path, data: Path) -> None:
    """A student of one of two layers: begun from the teacher's, it learns answers, similarities and, by pattern, the layers."""
    assert sentence_pairs(data / "dev.csv")[-1] == ("the dog runs", "a man runs")
    task = sentences(data, model=str(tiny), n_valid=20, batch_size=8)
    example = task.example().args
    whole, part = (trace(sentence_encoder(str(tiny), layers=k), example) for k in (None, [1]))
    names = set(part.state_dict())
    assert any("encoder.layer.0." in name for name in names) and not any("encoder.layer.1." in name for name in names)
    torch.testing.assert_close(
        part.state_dict()["transformer.encoder.layer.0.output.dense.weight"],
        whole.state_dict()["transformer.encoder.layer.1.output.dense.weight"],
    )
    pattern = "transformer.encoder.layer.*"
    assert layer_pairs(part, whole, {pattern: "skip"}) == [
        ("transformer.encoder.layer.0", "transformer.encoder.layer.1")
    ]
    teacher = Teacher(whole)
    parts: list[Part] = [
        LearnFromLabels(),
        LearnFromTeacher(teacher, match="similarities"),
        LearnFromLayers(teacher, {pattern: "last"}, "patient", token="first"),
    ]
    history = fit_(part, task, Schedule(epochs=4, lr=3e-3), parts)
    assert history.losses[-1] < 0.7 * history.losses[0]
    with pytest.raises(SettingError, match=r"layers must be some of 0 to 1, got \[2\]"):
        sentence_encoder(str(tiny), layers=[2])


def test_dropout_can_be_chosen(tiny: Path) -> None:
    """Without dropout a network answers in training as it does else; with the model's own it does not."""
    tokens = torch.tensor([[2, 5, 6, 3]]), torch.ones(1, 4, dtype=torch.long)
    own, without = (sentence_encoder(str(tiny), dropout=p) for p in (None, 0.0))
    answer = own(*tokens)
    torch.testing.assert_close(without.train()(*tokens), answer)
    assert not torch.allclose(own.train()(*tokens), answer, atol=1e-3)
    assert not torch.allclose(
        trace(sentence_encoder(str(tiny), dropout=0.5), tokens).train()(*tokens), answer, atol=1e-3
    )
    with pytest.raises(SettingError, match="dropout must be at least 0 and less than 1, got 1"):
        sentence_encoder(str(tiny), dropout=1.0)
