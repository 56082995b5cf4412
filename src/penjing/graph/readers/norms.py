"""Norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penjing.errors import TraceError
from penjing.graph.readers.reading import FxNode, Rule, arguments

if TYPE_CHECKING:
    from penjing.graph.reader import Reader


def _norm(op: str) -> Rule:
    def read(reader: Reader, node: FxNode, where: str) -> None:
        a = arguments(node)
        affine = [a[name] for name in ("weight", "bias") if a.get(name) is not None]
        settings: dict[str, Any] = {"eps": a["eps"]}
        if op == "group_norm":
            settings["groups"] = a["num_groups"]
        else:
            settings["shape"] = tuple(a["normalized_shape"])
        reader.emit(node, op, node.args[0], *affine, **settings)

    return read


def _batch_norm(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if a["running_mean"] is None:
        raise TraceError(
            f"trace: the batch norm in {where} takes its statistics from the batch, so samples depend on each other."
        )
    affine = [a[name] for name in ("weight", "bias") if a.get(name) is not None]
    reader.emit(node, "batch_norm", node.args[0], a["running_mean"], a["running_var"], *affine, eps=a["eps"])


def _instance_norm(reader: Reader, node: FxNode, where: str) -> None:
    a = arguments(node)
    if a["weight"] is not None or a["running_mean"] is not None:
        raise TraceError(f"trace: the instance norm in {where} is not held by a torch.nn layer; not supported.")
    reader.emit(node, "instance_norm", node.args[0], eps=a["eps"])


NORMS: dict[str, Rule] = {
    "layer_norm": _norm("layer_norm"),
    "rms_norm": _norm("rms_norm"),
    "group_norm": _norm("group_norm"),
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
}
