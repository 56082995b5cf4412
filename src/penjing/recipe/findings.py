"""What a reader of the report asks beyond the records: where samples left, which classes suffered, how weights lie."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from penjing.graph import Network
from penjing.measurement import Answers, block_shares
from penjing.representation import Codebook, named_weights, representations
from penjing.training import Task

_MOST_PAIRS, _BINS = 20, 60


def per_class(task: Task, baseline: Answers, final: Answers) -> list[dict[str, Any]] | None:
    """Recall of each class before and after; None without labels or classes."""
    if not task.is_classification or not isinstance(final.labels, Tensor):
        return None
    before, after = baseline.logits.argmax(-1), final.logits.argmax(-1)
    rows = []
    for label in range(final.logits.shape[-1]):
        of_class = final.labels == label
        n = int(of_class.sum())
        if n:
            right = [float((answers[of_class] == label).double().mean()) for answers in (before, after)]
            rows.append({"class": _name(task, label), "n": n, "baseline_recall": right[0], "final_recall": right[1]})
    return rows


def changed(task: Task, baseline: Answers, final: Answers) -> dict[str, Any] | None:
    """Whose predictions changed, and the most frequent changes; None without labels."""
    if not task.is_classification or not isinstance(final.labels, Tensor):
        return None
    labels, before, after = final.labels, baseline.logits.argmax(-1), final.logits.argmax(-1)
    was, stays = before == labels, after == labels
    differs = before != after
    counts: dict[tuple[int, int, int], int] = {}
    for triple in torch.stack([labels, before, after], 1)[differs].tolist():
        counts[tuple(triple)] = counts.get(tuple(triple), 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_PAIRS]
    return {
        "n": len(labels),
        "both_right": int((was & stays).sum()),
        "both_wrong_same": int((~was & ~stays & ~differs).sum()),
        "both_wrong_other": int((~was & ~stays & differs).sum()),
        "only_baseline_right": int((was & ~stays).sum()),
        "only_final_right": int((~was & stays).sum()),
        "pairs": [
            {"label": _name(task, a), "baseline": _name(task, b), "final": _name(task, c), "count": n}
            for (a, b, c), n in most
        ],
    }


def exits(task: Task, final: Answers) -> dict[str, Any] | None:
    """Where samples left, how right those were who left there, and by class; None for networks without exits."""
    if final.left_at is None or final.at_exits is None:
        return None
    n_ways = len(final.at_exits)
    names = list(final.names) or [*(f"exit {k}" for k in range(n_ways - 1)), "final"]
    left = [final.left_at == k for k in range(n_ways)]
    share = [float(at.double().mean()) for at in left]
    if not isinstance(final.labels, Tensor):
        return {"names": names, "share": share, "accuracy_of_leavers": [None] * n_ways, "by_class": []}
    right = final.logits.argmax(-1) == final.labels
    rows = []
    for label in range(final.logits.shape[-1]):
        of_class = final.labels == label
        if bool(of_class.any()):
            shares = [float(at[of_class].double().mean()) for at in left]
            rows.append({"class": _name(task, label), "shares": shares})
    return {
        "names": names,
        "share": share,
        "accuracy_of_leavers": [float(right[at].double().mean()) if bool(at.any()) else None for at in left],
        "by_class": rows,
    }


def blocks(task: Task, network: Network, final: Answers) -> dict[str, Any] | None:
    """What was computed of each block with a gate, for all and by class; None for networks without gates."""
    if not network.gates:
        return None
    used = block_shares(network, final.opened)
    rows = []
    if task.is_classification and isinstance(final.labels, Tensor):
        for label in range(final.logits.shape[-1]):
            of_class = final.labels == label
            if bool(of_class.any()):
                shares = [float(own[of_class].mean()) for own in used.values()]
                rows.append({"class": _name(task, label), "shares": shares})
    return {"names": list(used), "share": [float(own.mean()) for own in used.values()], "by_class": rows}


def weights(network: Network) -> dict[str, Any]:
    """A histogram of every matrix's and filter's values, and its centroids."""
    found: dict[str, Any] = {}
    for full_name, owner, name in named_weights(network):
        value = getattr(owner, name).detach().cpu().float()
        if value.dim() < 2 or not value.numel():
            continue
        stack = representations(owner, name)
        centroids = None
        if stack and isinstance(stack[-1], Codebook):
            centroids = sorted(set(stack[-1].table().detach().cpu().tolist()))
        counts, edges = np.histogram(value.numpy().ravel(), bins=_BINS)
        found[full_name] = {"edges": edges.tolist(), "counts": counts.tolist(), "centroids": centroids}
    return found


def _name(task: Task, label: int) -> str:
    return task.classes[label] if label < len(task.classes) else str(label)
