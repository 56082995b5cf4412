"""Is skipped work really skipped? Dynamic networks against the times of the parts that they execute, and of their full selves.

    python bench/dynamic.py                  early exit, SkipNet (recurrent and feed-forward gates), BlockDrop,
                                             channel sets on ResNet-20; widths
    python bench/dynamic.py trained.pj --samples RUN/latency-samples.safetensors
                                             wall-clock of trained networks under their own thresholds and gates, against their
                                             full selves, on the samples that a run keeps for timing

For each technique and batch size: the time of one call (dynamic), the sum of the times of the parts that it executed, each
measured by itself with as many samples as went there (parts), and the time of what decides (gates: gates, exits' heads).
Required: dynamic <= 1.10 parts + gates; a gate <= 10 % of a block's time; a width <= 1.15 x the plain network of that
width. One thread; everything takes turns, medians over rounds. glibc is told to keep the memory that it has
(docs/inference.md): in batches of 32 fetching it at every call would be a third of the time, and of noise.
"""

import argparse
import copy
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from penjing.artifact import load
from penjing.dynamic import attach_exits, make_slimmable, places_for_exits
from penjing.dynamic.blocks import Block, gate_blocks, residual_blocks
from penjing.dynamic.channel_sets import split_blocks
from penjing.dynamic.choices import parts_of_gates
from penjing.dynamic.gates import GATES, feed_forward_gates, policy, recurrent_gates, settled_gates, with_gates
from penjing.graph import Network, Node, cut_out, fold_batch_norms, trace
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT, TENSOR, tensor_at
from penjing.graph.program import needed
from penjing.measurement import macs_of_samples, macs_without_exits
from penjing.models import resnet_cifar

Call = Callable[[], object]


def keep_memory() -> None:
    """Tell glibc, where that is the C library, not to give freed memory back to the system."""
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(trim_threshold, 1_000_000_000)
        set_option(mmap_threshold, 33_554_432)


def part(network: Network, wanted: list[str], inputs: dict[str, Tensor]) -> tuple[Network, list[Tensor]]:
    """The nodes that lead from `inputs` to `wanted` as a network of its own, which shares the layers."""
    nodes = {node.name: node for node in network.nodes}
    found: set[str] = set()
    stack = list(wanted)
    while stack:
        name = stack.pop()
        if name not in inputs and name not in found:
            found.add(name)
            stack += nodes[name].inputs
    inner = [node for node in network.nodes if node.name in found]
    form = None if len(wanted) == 1 else ("tuple", *range(len(wanted)))
    end = Node("part_output", OUTPUT, tuple(wanted), settings={} if form is None else {"form": form})
    modules = {node.path: network.get_submodule(node.path) for node in inner if node.op == MODULE}
    tensors = {node.path: tensor_at(network, node.path) for node in inner if node.op == TENSOR}
    held = {path: t for path, t in tensors.items() if path.rpartition(".")[0] not in modules}
    shapes = [tuple(x.shape[1:]) for x in inputs.values()]
    made = Network([*(Node(name, INPUT) for name in inputs), *inner, end], modules, shapes, tensors=held)
    return made.eval(), list(inputs.values())


def medians(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Milliseconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for call in calls.values():
            for _ in range(3):
                call()
        for _ in range(rounds):
            for name, call in calls.items():
                begun = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in times.items()}


def features(network: Network, x: Tensor) -> dict[str, Tensor]:
    """What every node gives when all is computed for everybody."""
    with torch.no_grad():
        found = {n.name: v for n, v in network.steps(*network.bind((x,), {})) if isinstance(v, Tensor)}
    return {network.nodes[0].name: x, **found}


def parts_of(network: Network, x: Tensor) -> tuple[dict[str, Call], list[str], list[str]]:
    """Calls of the parts that a batch executes; which of them are work, and which decide."""
    values = features(network, x)
    with torch.no_grad():
        way = network.route(x)
    theirs = parts_of_gates(network)
    calls: dict[str, Call] = {}
    work, deciding = [], []

    def add(name: str, made: tuple[Network, list[Tensor]], to: list[str]) -> None:
        calls[name] = lambda: made[0](*made[1])
        to.append(name)

    if network.gates:
        borders = {name: values[name] for name in _borders(network, theirs)}
        logits = list(dict.fromkeys(node.inputs[0] for node in network.gates))
        add("gates", part(network, logits, borders), deciding)
    takes = [node for node in network.nodes if node.op == "take"]
    puts = {node.inputs[-1]: node for node in network.nodes if node.op == "put"}
    for take in takes:
        who = way.opened[take.inputs[1]]
        if bool(who.any()):
            body = part(network, [puts[take.inputs[1]].inputs[0]], {take.name: values[take.name][who]})
            add(f"block {take.name}", body, work)
    if takes:
        straight = replace_puts(network)
        add("trunk", part(straight, [straight.nodes[-1].inputs[0]], {straight.nodes[0].name: x}), work)
        return calls, work, deciding
    previous, inside = network.nodes[0].name, torch.arange(len(x))
    for k, node in enumerate(n for n in network.nodes if n.op in (EXIT, OUTPUT)):
        here = inside[way.left_at[inside] >= k]
        if not len(here):
            break
        tip = _last_shared(network, node)
        add(f"segment {k}", part(network, [tip], {previous: values[previous][here]}), work)
        if tip != node.inputs[0]:
            add(f"head {k}", part(network, [node.inputs[0]], {tip: values[tip][here]}), deciding)
        previous = tip
    return calls, work, deciding


def _borders(network: Network, theirs: set[str]) -> list[str]:
    return list(
        dict.fromkeys(name for n in network.nodes if n.name in theirs for name in n.inputs if name not in theirs)
    )


def replace_puts(network: Network) -> Network:
    """The network in which nobody takes the gated blocks."""
    instead: dict[str, str] = {}
    nodes = []
    for node in network.nodes:
        inputs = tuple(instead.get(name, name) for name in node.inputs)
        if node.op == "put":
            instead[node.name] = inputs[1]
        else:
            nodes.append(replace(node, inputs=inputs))
    modules = network.layers()
    tensors = {n.path: tensor_at(network, n.path) for n in nodes if n.op == TENSOR}
    held = {path: t for path, t in tensors.items() if path.rpartition(".")[0] not in modules}
    return Network(nodes, modules, network.input_shapes, tensors=held).eval()


def _last_shared(network: Network, answer: Node) -> str:
    """Where the head of an exit begins: the last of its results that the final answer needs too."""
    nodes = {node.name: node for node in network.nodes}
    shared: set[str] = set()
    stack = list(network.nodes[-1].inputs)
    while stack:
        name = stack.pop()
        shared.add(name)
        stack += (source for source in nodes[name].inputs if source not in shared)
    name = answer.inputs[0]
    while name not in shared:
        name = nodes[name].inputs[0]
    return name


def _resnet() -> Network:
    torch.manual_seed(0)
    return trace(resnet_cifar(20), (torch.randn(2, 3, 32, 32),)).eval()


def early_exit(x: Tensor) -> Network:
    """Two exits at which half of the samples leave in all."""
    network = _resnet()
    network = attach_exits(network, places_for_exits(network, 2)).eval()
    with torch.no_grad():
        answers = network.all_answers(x)
    sure = [a.softmax(-1).amax(-1).sort(descending=True).values for a in answers[:-1]]
    network.set_thresholds([float(s[max(len(x) // 3 - 1, 0)]) for s in sure])
    return network


def skipnet(x: Tensor, make: Callable[..., tuple[Network, list[str]]] = recurrent_gates) -> Network:
    """Gates in front of blocks, half of them open."""
    network = _resnet()
    blocks = residual_blocks(network)
    network, logits = make(network, blocks, lean=0.0)
    network, gates = with_gates(network, [(name, 0) for name in logits])
    return half_open(gate_blocks(network, blocks, gates).eval(), x, blocks)


def blockdrop(x: Tensor) -> Network:
    """A policy, half of the blocks computed."""
    network = _resnet()
    blocks = residual_blocks(network)
    network, logits = policy(network, len(blocks), lean=0.0)
    network, gates = with_gates(network, [(logits, k) for k in range(len(blocks))])
    return half_open(gate_blocks(network, blocks, gates).eval(), x, blocks)


def channel_sets(x: Tensor) -> Network:
    """One to four of four channel sets."""
    network = _resnet()
    blocks = residual_blocks(network)
    network, logits = recurrent_gates(network, blocks, 4, lean=0.0)
    return half_open(split_blocks(network, blocks, logits, 4).eval(), x, blocks)


def half_open(network: Network, x: Tensor, blocks: list[Block]) -> Network:
    """As after learning, the gates' last biases shifted so that about half of the samples find each gate open."""
    network, _ = fold_batch_norms(settled_gates(network), within=GATES)
    many = torch.cat([x, torch.randn(64, *x.shape[1:])])
    for node in network.gates if len(network.gates) == len(blocks) else ():  # what the next ones see depends on it
        layer = network.get_submodule(next(n.path for n in network.nodes if n.name == node.inputs[0]))
        assert isinstance(layer, nn.Linear)
        column = node.settings["column"]
        with torch.no_grad():
            layer.weight[column].mul_(9.0)
            layer.bias[column] -= features(network, many)[node.inputs[0]][:, column].median()
    return network


@torch.no_grad()
def all_open(network: Network) -> Network:
    """The network with gates that compute what they always do, and let everybody into the whole of every block."""
    made = copy.deepcopy(network)
    nodes = {node.name: node for node in made.nodes}
    sets = sum(node.settings["rule"] == "largest" and node.inputs == made.gates[-1].inputs for node in made.gates)
    for gate in made.gates:
        source = nodes[gate.inputs[0]]
        layer = made.get_submodule(source.path or nodes[source.inputs[0]].path)
        assert isinstance(layer, nn.Linear)
        column = gate.settings["column"]
        layer.weight[column] = 0.0
        layer.bias[column] = 0.0 if sets and column < sets - 1 else 1.0
    return made


_MOST_OF_A_BLOCK = 0.10

TECHNIQUES = {
    "early exit": early_exit,
    "SkipNet": skipnet,
    "feed-forward": partial(skipnet, make=feed_forward_gates),
    "BlockDrop": blockdrop,
    "channel sets": channel_sets,
}


def parts_rows(rounds: int) -> list[dict[str, float | str | bool]]:
    """Each technique at batch 1 and 32 against the sum of its parts."""
    rows = []
    for name, make in TECHNIQUES.items():
        for batch in (1, 32):
            torch.manual_seed(1)
            x = torch.randn(batch, 3, 32, 32)
            network = make(x)
            calls, work, deciding = parts_of(network, x)
            calls |= {"dynamic": partial(network, x), "full": partial(replace_gates(network), x)}
            if network.gates:
                calls["all open"] = partial(all_open(network), x)
            found = medians(calls, rounds if batch == 1 else max(rounds // 8, 5))
            way = network.route(x)
            done = sum(found[n] for n in work)
            gates = sum(found[n] for n in deciding)
            macs = macs_of_samples(network, way.left_at, way.opened).double().mean() / macs_without_exits(network)
            # a gate as a share of a block's time, both for all samples: gates / (full - trunk), as there is one for each block
            of_block = gates / (found["full"] - found["trunk"]) if network.gates else 0.0
            rows.append(
                {
                    "technique": name,
                    "batch": batch,
                    "dynamic_ms": round(found["dynamic"], 3),
                    "parts_ms": round(done, 3),
                    "gates_ms": round(gates, 3),
                    "of_allowed": round(found["dynamic"] / (1.10 * done + gates), 3),
                    "macs": round(float(macs), 3),
                    "gate_of_block": round(of_block, 3),
                    "all_open_of_full": round(found.get("all open", found["full"]) / found["full"], 3),
                    "met": found["dynamic"] <= 1.10 * done + gates and of_block <= _MOST_OF_A_BLOCK,
                }
            )
            print(row_text(rows[-1]), flush=True)
    return rows


def width_rows(rounds: int) -> list[dict[str, float | str | bool]]:
    """Each width of a slimmable ResNet-20 against the plain network of that width."""
    network = make_slimmable(_resnet(), (0.25, 0.5, 0.75)).eval()
    rows = []
    for batch in (1, 32):
        x = torch.randn(batch, 3, 32, 32)
        for k, name in enumerate(network.answer_names):
            plain = cut_out(network, k)
            network.leave_at(k)
            found = medians(
                {"in it": partial(network, x), "plain": partial(plain, x)},
                rounds if batch == 1 else max(rounds // 8, 5),
            )
            ratio = found["in it"] / found["plain"]
            rows.append(
                {
                    "technique": name,
                    "batch": batch,
                    "dynamic_ms": round(found["in it"], 3),
                    "parts_ms": round(found["plain"], 3),
                    "gates_ms": 0.0,
                    "of_allowed": round(ratio / 1.15, 3),
                    "macs": 0.0,
                    "gate_of_block": 0.0,
                    "all_open_of_full": 1.0,
                    "met": ratio <= 1.15,
                }
            )
            print(row_text(rows[-1]), flush=True)
    return rows


def row_text(row: dict[str, float | str | bool]) -> str:
    """A line of the table."""
    return (
        f"{row['technique']!s:14} batch {row['batch']:>2}  dynamic {row['dynamic_ms']:8.3f} ms  parts {row['parts_ms']:8.3f}  "
        f"gates {row['gates_ms']:6.3f}  {row['of_allowed']:.2f} of what is allowed, "
        f"a gate {row['gate_of_block']:5.1%} of a block, all open {row['all_open_of_full']:.2f} of the full network  "
        f"{'met' if row['met'] else 'MISSED'}"
    )


def trained_rows(paths: list[Path], samples: Path, rounds: int) -> list[dict[str, float | str | bool]]:
    """Wall-clock of files with exits or gates against their full selves, all samples in batches of 1 and 32."""
    images = load_file(samples)["0"]
    rows = []
    for path in paths:
        network = load(path)
        full = replace_gates(network)
        for batch in (1, 32):
            x = list(images.split(batch))
            calls: dict[str, Call] = {
                "dynamic": partial(one_by_one, network, x),
                "full": partial(one_by_one, full, x),
            }
            found = medians(calls, max(rounds // 8, 5))
            ratio = found["dynamic"] / found["full"]
            rows.append({"technique": path.name, "batch": batch, "ratio": round(ratio, 3)})
            each = {name: ms / len(images) for name, ms in found.items()}
            print(
                f"{path.name}, batches of {batch}: {each['dynamic']:.3f} ms of {each['full']:.3f} a sample, {ratio:.2f} of it",
                flush=True,
            )
    return rows


def one_by_one(network: Network, samples: list[Tensor]) -> list[Tensor]:
    """Each batch by itself."""
    return [network(sample) for sample in samples]


def replace_gates(network: Network) -> Network:
    """The network with every block computed for everybody, without gates and exits."""
    plain = cut_out(network, len(network.exits)) if network.exits else network
    instead: dict[str, str] = {}
    nodes = []
    for node in plain.nodes:
        inputs = tuple(instead.get(name, name) for name in node.inputs)
        if node.op in ("take", "put"):
            instead[node.name] = inputs[0]
        elif node.op != "gate":
            nodes.append(replace(node, inputs=inputs))
    nodes = needed(nodes)  # of channel sets, the whole block alone
    paths = {node.path for node in nodes if node.op == MODULE}
    modules = {path: layer for path, layer in plain.layers().items() if path in paths}
    return Network(nodes, modules, plain.input_shapes).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="trained artifacts to time against their full selves")
    parser.add_argument("--samples", type=Path, help="safetensors with the samples, (n, ...), under 0")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the rows there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    if arguments.files and arguments.samples is None:
        parser.error("files need --samples: on random numbers a trained network goes other ways than on data")
    rows = trained_rows(arguments.files, arguments.samples, arguments.rounds) if arguments.files else []
    if not arguments.files:
        rows = [*parts_rows(arguments.rounds), *width_rows(arguments.rounds)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(0 if all(row.get("met", True) for row in rows) else 1)


if __name__ == "__main__":
    main()
