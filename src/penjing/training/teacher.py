"""Teachers: trained networks whose answers and features others learn from, computed once a batch, whoever asks."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from penjing.data.versions import HasVersions
from penjing.errors import DataError, SettingError
from penjing.graph import ExitOutputs, Network
from penjing.graph.features import features
from penjing.training.answers import KeptAnswers, rounded
from penjing.training.task import Batch
from penjing.units import show_bytes

if TYPE_CHECKING:
    from penjing.training.fit import Fit

Agree = Literal["probabilities", "logits", "votes"]
"""How several teachers become one: the mean of their probabilities, of their logits, or each has a vote."""
_NO_VOTE = 1e-4
LIMIT_BYTES = 2_000_000_000


def agreed(answers: Tensor, agree: Agree = "probabilities", temperature: float = 1.0) -> Tensor:
    """Logits of the ensemble, (batch, classes), from its members' (members, batch, classes).

    probabilities   T log mean_k softmax(z_k / T): softened by T they are the mean of what the members' are
    logits          mean_k z_k, the geometric mean of their probabilities
    votes           T log of the share of members whose largest logit is this class's, at least 1e-4; ties count for the first

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 1, "an arithmetic or geometric mean".
    """
    match agree:
        case "probabilities":
            members = torch.log_softmax(answers / temperature, -1)
            return temperature * (torch.logsumexp(members, 0) - torch.log(torch.tensor(float(len(answers)))))
        case "logits":
            return answers.mean(0)
        case "votes":
            votes = nn.functional.one_hot(answers.argmax(-1), answers.shape[-1]).float().mean(0)
            return temperature * votes.clamp_min(_NO_VOTE).log()


class Teacher:
    """One teacher or an ensemble.

    Answers are rounded to float16. Where the training set tells which sample is which (`data.Versions`), each is computed once
    and kept; else they are computed at every step, which is said.

    Args:
        networks: put into evaluation; they get no gradients.
        agree, temperature: see `agreed`.
        folder: where answers are kept from one run to the next; None keeps them in memory as long as the training.
        limit_bytes: answers that take more are not kept, which is said.
    Raises: SettingError: no network.
    """

    def __init__(
        self,
        *networks: nn.Module,
        agree: Agree = "probabilities",
        temperature: float = 1.0,
        folder: Path | None = None,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        if not networks:
            raise SettingError("teacher: there must be at least one network.")
        self.networks, self.agree, self.temperature = list(networks), agree, temperature
        self.folder, self.limit_bytes = folder, limit_bytes
        self.names: list[str] = []
        self._kept: KeptAnswers | None = None
        self._last: tuple[Batch, Tensor, dict[str, Tensor]] | None = None
        self._started: object = None

    def look_at(self, names: Iterable[str]) -> None:
        """Ask for features: from now on the first network's are there for every batch."""
        self.names = list(dict.fromkeys([*self.names, *names]))

    def start(self, fit: Fit) -> None:
        """Once for a training, whoever calls it."""
        if self._started is fit:
            return
        self._started, self._last, self._kept = fit, None, None
        self.to(fit.device)

    def to(self, device: torch.device) -> Teacher:
        """Itself, with its networks on a device and in evaluation."""
        for position, network in enumerate(self.networks):
            self.networks[position] = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        return self

    def answers(self, fit: Fit, batch: Batch) -> Tensor:
        """(batch, ...), float32, as float16 holds them."""
        return self._both(fit, batch)[0]

    def features(self, fit: Fit, batch: Batch) -> dict[str, Tensor]:
        """What the layers that were asked for give, by name."""
        return self._both(fit, batch)[1]

    def compute(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Answers, not rounded, and features."""
        with torch.no_grad(), contextlib.ExitStack() as stack:
            seen = stack.enter_context(features(self.networks[0], self.names, "hints: teacher")) if self.names else {}
            answers = [_answer(network, batch) for network in self.networks]
        return answers[0] if len(answers) == 1 else self._agreed(answers), seen

    def _agreed(self, answers: list[Tensor]) -> Tensor:
        if len({a.shape for a in answers}) > 1:
            shapes = ", ".join(str(tuple(a.shape)) for a in answers)
            raise DataError(f"distill: all teachers must answer with the same shape, they give {shapes}.")
        return agreed(torch.stack(answers), self.agree, self.temperature)

    def _both(self, fit: Fit, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self._last is None or self._last[0] is not batch:
            self._last = (batch, *self._fresh(fit, batch))
        return self._last[1], self._last[2]

    def _fresh(self, fit: Fit, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self._last is None:  # the first batch of this training
            self._kept = self._opened(fit, batch)
        kept, keys = self._kept, batch.keys
        if kept is None or keys is None:
            answers, seen = self.compute(fit.laid_out(batch))
            return rounded(answers), seen
        known = kept.has(keys)
        if not bool(known.all()):
            missing = ~known
            answers, _ = self.compute(fit.laid_out(batch.chosen(missing.to(fit.device))))
            kept.write(keys[missing], answers)
        return kept.read(keys).to(fit.device), {}

    def _opened(self, fit: Fit, batch: Batch) -> KeptAnswers | None:
        data = getattr(fit.task.train, "dataset", None)
        if self.names:
            fit.say("the teacher's layers are looked at, so it computes at every step")
            return None
        if batch.keys is None or not isinstance(data, HasVersions):
            fit.say(
                "the teacher computes at every step: the training set does not tell which sample is which (data: versions, "
                "or penjing.Versions)"
            )
            return None
        answer, _ = self.compute(fit.laid_out(batch.chosen(torch.arange(1, device=fit.device))))
        shape = (data.n_versions, len(data), *answer.shape[1:])
        size = KeptAnswers.size_bytes(shape)
        if size > self.limit_bytes:
            fit.say(
                f"the teacher computes at every step: its answers would take {show_bytes(size)}, more than "
                f"{show_bytes(self.limit_bytes)}. Fewer versions take less"
            )
            return None
        try:
            return KeptAnswers(shape, self._key(data), self.folder)
        except OSError as error:
            fit.say(f"the teacher computes at every step: there is no room for its answers ({error.strerror})")
            return None

    def _key(self, data: HasVersions) -> str:
        found = hashlib.sha256(data.fingerprint().encode())
        if len(self.networks) > 1:
            found.update(f"{self.agree} {self.temperature}".encode())
        for network in self.networks:
            nodes = getattr(network, "nodes", None)
            found.update(repr(nodes if nodes is not None else network).encode())
            for name, tensor in network.state_dict().items():
                found.update(name.encode())
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()


def _answer(network: nn.Module, batch: Batch) -> Tensor:
    """The answer of the last exit: a teacher gives its best."""
    if isinstance(network, Network) and network.exits:
        return network.all_answers(*batch.args, **batch.kwargs)[-1]
    answer = network(*batch.args, **batch.kwargs)
    answer = answer[-1] if isinstance(answer, ExitOutputs) else answer
    if not isinstance(answer, Tensor):
        raise DataError(f"distill: a teacher must answer with a tensor, it gives a {type(answer).__name__}.")
    return answer
