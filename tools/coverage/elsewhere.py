"""What a saved network is where its library is not installed: python elsewhere.py FILE EXPECTED.

Prints one line of JSON: which checks hold, and the exceptions of those that could not be made.
"""

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

for library in ("torchvision", "timm", "transformers", "torch_pruning"):
    sys.modules[library] = None  # type: ignore[assignment]  # to import it is an ImportError now

import torch

import penjing as pj
from measure import LEAST_EFFECT, answer, digests, half, text_of
from networks import n_parameters
from penjing.graph import channel_groups, prove_removal, remove_channels


class Elsewhere:
    """The checks of one file."""

    def __init__(self, path: str, expected: str) -> None:
        self.path = path
        self.expected = torch.load(expected)
        self.inputs = self.expected["inputs"]

    def loads(self) -> bool:
        self.network = pj.load(self.path)
        return True

    def same_tensors(self) -> bool:
        return digests(self.network) == self.expected["digests"]

    def same_answer(self) -> bool:
        with torch.no_grad():
            answers = answer(self.network, self.inputs)
        return len(answers) == len(self.expected["answers"]) and all(
            map(torch.equal, answers, self.expected["answers"])
        )

    def cuts_again(self) -> bool:
        grouping = channel_groups(self.network)
        removal = grouping.removal(half(self.network, grouping))
        proof = prove_removal(self.network, removal)
        return proof.effect >= LEAST_EFFECT and n_parameters(remove_channels(self.network, removal)) < n_parameters(
            self.network
        )

    def trains(self) -> bool:
        network = self.network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        loss = next(a for a in answer(network, self.inputs) if a.is_floating_point()).square().mean()
        loss.backward()
        optimizer.step()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        return bool(gradients) and all(bool(g.isfinite().all()) for g in gradients) and bool(loss.isfinite())


def main() -> None:
    """Make the checks and print what they found."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = Elsewhere(*sys.argv[1:])
    found: dict[str, Any] = {"failures": {}}
    checks: tuple[Callable[[], bool], ...] = (
        case.loads,
        case.same_tensors,
        case.same_answer,
        case.cuts_again,
        case.trains,
    )
    for check in checks:
        try:
            found[check.__name__] = check()
        except Exception as error:
            found[check.__name__] = False
            found["failures"][check.__name__] = text_of(error)
            if check == case.loads:
                break
    print(json.dumps(found))


if __name__ == "__main__":
    main()
