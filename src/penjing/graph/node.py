"""A node, one step of a network's computation, and what it refers to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from penjing.errors import TraceError

INPUT, MODULE, TENSOR, EXIT, OUTPUT = "input", "module", "tensor", "exit", "output"
NEVER, ALWAYS = 2.0, -1.0
"""Exit thresholds: one that no confidence reaches, so the exit is not even computed, and one that every confidence reaches."""


@dataclass(frozen=True)
class Node:
    """One step of the computation.

    Attributes:
        name: unique in the network; by it other nodes refer to this one's result.
        op: "input", "module", "tensor", "exit", "output", or the name of an operation in `graph.ops.OPERATIONS`.
        inputs: names of the nodes whose results it takes.
        path: dotted path of the module that it calls, or of the parameter or buffer that it reads.
        settings: constants of the operation. For an exit its `threshold`, `confidence` where that is not the largest
            probability, see `CONFIDENCES`, and `label` where it has a name, such as "width 0.5"; for an output its `form` where
            the answer is not one tensor; for an input that is not float32 its `dtype`, and for whole numbers `low` and `high`,
            between which random ones may be drawn.
        scope: where it was traced, the path of the user's layer whose forward method computes it.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    path: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    scope: str = field(default="", compare=False)


def _largest(logits: Tensor) -> Tensor:
    return logits.softmax(-1).amax(-1)


def _margin(logits: Tensor) -> Tensor:
    two = logits.softmax(-1).topk(min(2, logits.shape[-1]), -1).values
    return two[..., 0] - two[..., 1] if two.shape[-1] > 1 else two[..., 0]


def _entropy(logits: Tensor) -> Tensor:
    logs = logits.log_softmax(-1)
    most = torch.tensor(float(max(logits.shape[-1], 2))).log()
    return 1 + (logs.exp() * logs).sum(-1) / most.to(logits)


CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {"largest": _largest, "margin": _margin, "entropy": _entropy}
"""How sure an answer is, (batch,) from logits (batch, classes), from 0 to 1.

With p = softmax(logits) and C classes:  largest: max p.  margin: largest p less the second.  entropy: 1 + sum p log p / log C.
The order is the file format: only append.
Sources: Huang et al. 2018, arXiv:1703.09844, section 4 (largest); Teerapittayanon et al. 2016, arXiv:1709.01686 (entropy).
"""


def confidence(node: Node, logits: Tensor) -> Tensor:
    """How sure the answers at an exit are, (batch,)."""
    return CONFIDENCES[node.settings.get("confidence", "largest")](logits)


class Outputs(dict[str, Any]):
    """Answers by name, as attributes too; what a network returns whose model returns a dictionary or a dataclass."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the network's answers are {', '.join(self)}, not {name}") from None


pytree.register_pytree_node(
    Outputs,
    lambda outputs: (list(outputs.values()), list(outputs)),
    lambda values, names: Outputs(zip(names, values, strict=True)),
    serialized_type_name="penjing.Outputs",
)


class ExitOutputs(tuple[Tensor, ...]):
    """The answers of all exits, first exit first, final answer last; what a network with exits returns in training."""

    __slots__ = ()


def answer_of(node: Node, values: Sequence[Tensor]) -> Any:
    """What an output node answers, in its form."""
    form = node.settings.get("form")
    return values[0] if form is None else _formed(form, values)


def _formed(form: Any, values: Sequence[Tensor]) -> Any:
    """Put tensors into a structure: an index, None, or (kind, ...) with kind "tuple", "list", or "dict" and its names."""
    if form is None:
        return None
    if isinstance(form, int):
        return values[form]
    kind, *parts = form
    if kind == "dict":
        return Outputs({name: _formed(part, values) for name, part in zip(parts[::2], parts[1::2], strict=True)})
    items = [_formed(part, values) for part in parts]
    return tuple(items) if kind == "tuple" else items


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module at the dotted `path` below `root`. Raises: TraceError: there is none."""
    found: nn.Module | None = root
    for name in path.split(".") if path else ():
        found = found._modules.get(name) if found is not None else None
    if found is None:
        raise TraceError(f'network: there is no module "{path}".')
    return found


def tensor_at(root: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at the dotted `path` below `root`. Raises: TraceError: there is none."""
    owner_path, _, name = path.rpartition(".")
    owner = module_at(root, owner_path)
    found: Any = owner._parameters.get(name)
    found = owner._buffers.get(name) if found is None else found
    found = getattr(owner, name, None) if found is None else found  # under a parametrization
    if not isinstance(found, Tensor):
        raise TraceError(f'network: there is no parameter or buffer "{path}".')
    return found
