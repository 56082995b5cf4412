"""Exits as conditions of an ONNX graph: what follows an exit is in the else of an `If`, so it is not computed when all leave.

    ... ── logits of exit 0 ── sure? ──┬── answer of each sample: exit 0 where it is sure, else what comes from below
                                       └── If all are sure: exit 0, else: ... logits of exit 1 ── sure? ── If ...

A batch stops at the first exit behind which nobody goes on; each sample's answer is the one it would have got alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from penjing.graph.network import NEVER, Node


def with_conditions(model: Any, exits: Sequence[Node], name: str = "answer") -> Any:
    """An ONNX model whose outputs are all answers, first exit first, as one with a single output.

    Args:
        model: an `onnx.ModelProto`; it is not changed.
        exits: the exit nodes of the network, with thresholds and confidences; exits that nobody can reach are left out.
        name: of the output.
    Returns: another `onnx.ModelProto`.
    """
    import onnx  # noqa: PLC0415  optional dependency
    from onnx import helper  # noqa: PLC0415

    graph = model.graph
    answers = [output.name for output in graph.output]
    last = answers.pop()
    steps = [(answer, node) for answer, node in zip(answers, exits, strict=True) if node.settings["threshold"] < NEVER]
    made_by = {output: k for k, node in enumerate(graph.node) for output in node.output}
    placed: set[int] = set()

    def needed_for(answer: str) -> list[Any]:
        """The nodes that an answer needs and that are not placed yet, in order."""
        found: set[int] = set()
        stack = [answer]
        while stack:
            k = made_by.get(stack.pop())
            if k is None or k in found or k in placed:
                continue
            found.add(k)
            stack += graph.node[k].input
        placed.update(found)
        return [graph.node[k] for k in sorted(found)]

    constants: list[Any] = []

    def constant(value: Any, label: str) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(value), label))
        return label

    def from_here(k: int) -> tuple[list[Any], str]:
        """The nodes from exit k on and the name of what they answer."""
        if k == len(steps):
            return needed_for(last), last
        answer, node = steps[k]
        before = needed_for(answer)
        sure, mask = _sure(helper, answer, node, k, constant)
        rest, result = from_here(k + 1)
        joined = f"{name}_joined_{k}"
        rest.append(helper.make_node("Where", [mask, answer, result], [joined]))
        out = f"{name}_from_{k}"
        then = helper.make_graph(
            [helper.make_node("Identity", [answer], [f"{out}_all"])],
            f"all_leave_{k}",
            [],
            [_open(helper, f"{out}_all")],
        )
        otherwise = helper.make_graph(rest, f"some_go_on_{k}", [], [_open(helper, joined)])
        branch = helper.make_node("If", [f"all_sure_{k}"], [out], then_branch=then, else_branch=otherwise)
        return [*before, *sure, branch], out

    nodes, result = from_here(0)
    nodes.append(helper.make_node("Identity", [result], [name]))
    (output,) = [o for o in graph.output if o.name == last]
    out_info = onnx.ValueInfoProto()
    out_info.CopyFrom(output)
    out_info.name = name
    made = helper.make_graph(
        nodes, graph.name, list(graph.input), [out_info], [*graph.initializer, *constants], value_info=None
    )
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.CopyFrom(made)
    return changed


def _open(helper: Any, name: str) -> Any:
    """A float tensor of unknown shape."""
    return helper.make_tensor_value_info(name, 1, None)


def _sure(helper: Any, answer: str, node: Node, k: int, constant: Any) -> tuple[list[Any], str]:
    """The nodes that say which samples leave at an exit, (batch, 1), and `all_sure_k`, whether all do."""
    kind = node.settings.get("confidence", "largest")
    axis = constant(np.array([-1], np.int64), f"axis_{k}")
    nodes = []
    if kind == "entropy":
        nodes += [
            helper.make_node("LogSoftmax", [answer], [f"logs_{k}"], axis=-1),
            helper.make_node("Softmax", [answer], [f"p_{k}"], axis=-1),
            helper.make_node("Mul", [f"logs_{k}", f"p_{k}"], [f"terms_{k}"]),
            helper.make_node("ReduceSum", [f"terms_{k}", axis], [f"entropy_{k}"], keepdims=1),
            helper.make_node("Shape", [answer], [f"shape_{k}"]),
            helper.make_node("Gather", [f"shape_{k}", axis], [f"classes_{k}"]),
            helper.make_node("Cast", [f"classes_{k}"], [f"n_{k}"], to=1),
            helper.make_node("Log", [f"n_{k}"], [f"most_{k}"]),
            helper.make_node("Div", [f"entropy_{k}", f"most_{k}"], [f"share_{k}"]),
            helper.make_node("Add", [f"share_{k}", constant(np.float32(1), f"one_{k}")], [f"confidence_{k}"]),
        ]
    elif kind == "margin":
        first = constant(np.array([0], np.int64), f"first_{k}")
        second = constant(np.array([1], np.int64), f"second_{k}")
        two = constant(np.array([2], np.int64), f"two_{k}")
        nodes += [
            helper.make_node("Softmax", [answer], [f"p_{k}"], axis=-1),
            helper.make_node("TopK", [f"p_{k}", two], [f"top_{k}", f"where_{k}"], axis=-1),
            helper.make_node("Gather", [f"top_{k}", first], [f"largest_{k}"], axis=1),
            helper.make_node("Gather", [f"top_{k}", second], [f"next_{k}"], axis=1),
            helper.make_node("Sub", [f"largest_{k}", f"next_{k}"], [f"confidence_{k}"]),
        ]
    else:
        nodes += [
            helper.make_node("Softmax", [answer], [f"p_{k}"], axis=-1),
            helper.make_node(
                "TopK", [f"p_{k}", constant(np.array([1], np.int64), f"two_{k}")], [f"confidence_{k}", f"where_{k}"]
            ),
        ]
    threshold = constant(np.float32(node.settings["threshold"]), f"threshold_{k}")
    nodes += [
        helper.make_node("GreaterOrEqual", [f"confidence_{k}", threshold], [f"sure_{k}"]),
        helper.make_node("Cast", [f"sure_{k}"], [f"sure_{k}_number"], to=6),
        helper.make_node("ReduceMin", [f"sure_{k}_number"], [f"least_{k}"], keepdims=0),
        helper.make_node("Cast", [f"least_{k}"], [f"all_sure_{k}"], to=9),
    ]
    return nodes, f"sure_{k}"
