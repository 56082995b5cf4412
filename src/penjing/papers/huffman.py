"""Shared values are used unevenly, so a Huffman code for them is shorter than fields of fixed width."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field
from torch import nn

from penjing.models.lenet import lenet5, lenet_300_100
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.clustered import accounts, coded, matrices
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import curves, side_by_side
from penjing.pruning import PruneWeights
from penjing.quantization import Cluster
from penjing.settings import Settings
from penjing.training import Schedule

MODELS: dict[str, Callable[[], nn.Module]] = {"LeNet-300-100": lenet_300_100, "LeNet-5": lenet5}
SPARSE = "pruned"
WAYS = {"fixed": ("fixed",), "Huffman": ("Huffman", "Huffman table"), "range": ("range", "range table")}


class Experiment(Settings):
    """Both networks, trained; every layer's weights share 2^bits values; and so with most weights removed."""

    label = "huffman experiment"
    epochs: dict[str, int] = Field(default={"LeNet-300-100": 6, "LeNet-5": 2})
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    sparsity: float = 0.92
    sparse_epochs: dict[str, int] = Field(default={"LeNet-300-100": 3, "LeNet-5": 1})


def arms(settings: Experiment) -> tuple[str, ...]:
    """The networks."""
    return tuple(settings.epochs)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Bits of all codes, summed over layers, for each number of values, whole and pruned; and each layer's code."""
    task = laboratory.task("mnist")
    network = laboratory.build(MODELS[arm], task)
    laboratory.train(network, task, Schedule(epochs=settings.epochs[arm], lr=2e-3, weight_decay=0.02))
    bench = laboratory.bench(network, task)
    found: Figures = {"accuracy": laboratory.percent_correct(network, task)}
    for bits in settings.bits:
        clustered = laboratory.bench(network, task)
        Cluster(bits=bits, epochs=0).apply(clustered)
        found[f"{bits} bits"] = {path: coded(matrix) for path, matrix in matrices(clustered.network).items()}
    pruning = PruneWeights(
        sparsity=settings.sparsity, sparsities={"out": 0.5}, pace="gradual", epochs=settings.sparse_epochs[arm], lr=2e-3
    )
    pruning.apply(bench)
    found[f"accuracy, {SPARSE}"] = laboratory.percent_correct(bench.network, task)
    for bits in settings.bits:
        clustered = laboratory.bench(bench.network, task)
        Cluster(bits=bits, epochs=0).apply(clustered)
        layers = matrices(clustered.network)
        found[f"{SPARSE}, {bits} bits"] = {
            path: coded(layer) | {"gaps": accounts(layer)} for path, layer in layers.items()
        }
    return found


def _layers(figures: Figures) -> list[Figures]:
    """Of every number of values, whole and pruned, each layer's figures."""
    return [layer for name, layers in figures.items() if name.endswith(" bits") for layer in layers.values()]


def _total(layers: Mapping[str, Figures], *what: str) -> float:
    return float(sum(layer[part] for layer in layers.values() for part in what))


def _gain(figures: Figures, bits: int) -> float:
    """Fields of fixed width over Huffman codes, of values and gaps of the pruned network."""
    gaps = {path: layer["gaps"] for path, layer in figures[f"{SPARSE}, {bits} bits"].items()}
    return _total(gaps, "P+Q") / _total(gaps, "P+Q+H", "Huffman tables")


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The bound, the gain, and the other coders."""
    found = [
        Check(
            "no layer's codes take fewer bits a code than their entropy",
            "Shannon 1948",
            lambda arms: min(
                (layer["Huffman"] - layer["entropy"]) / layer["codes"]
                for own in arms.values()
                for layer in _layers(own)
            ),
            -1e-9,
            "bits",
        ),
        Check(
            "and none as much as a bit more",
            "Huffman 1952",
            lambda arms: (
                1
                - max(
                    (layer["Huffman"] - layer["entropy"]) / layer["codes"]
                    for own in arms.values()
                    for layer in _layers(own)
                )
            ),
            1e-9,
            "bits",
        ),
    ]
    for arm in settings.epochs:
        found += [
            Check(
                f"{arm}, pruned, 5 bits: Huffman codes for values and gaps, tables counted, save at least a tenth",
                "20 to 30 % of the storage",
                lambda arms, arm=arm: 100 - 100 / _gain(arms[arm], 5),  # type: ignore[misc]
                10.0,
                "%",
            ),
            Check(
                f"{arm}, whole, 5 bits: Huffman codes, tables counted, are shorter than fields of fixed width",
                "",
                lambda arms, arm=arm: (  # type: ignore[misc]
                    100
                    - 100
                    * _total(arms[arm]["5 bits"], "Huffman", "Huffman table")
                    / _total(arms[arm]["5 bits"], "fixed")
                ),
                unit="%",
            ),
            Check(
                f"{arm}: range coding, tables counted, is at most as long as Huffman coding for every number of values",
                "",
                lambda arms, arm=arm: min(  # type: ignore[misc]
                    _total(layers, "Huffman", "Huffman table") - _total(layers, "range", "range table")
                    for name, layers in arms[arm].items()
                    if name.endswith(" bits")
                ),
                unit="bits",
            ),
            Check(
                f"{arm}, pruned: contexts take fewer bits than Huffman codes of values and gaps for every number of values",
                "",
                lambda arms, arm=arm: min(  # type: ignore[misc]
                    _total({path: layer["gaps"] for path, layer in layers.items()}, "P+Q+H", "Huffman tables")
                    - _total(layers, "contexts")
                    for name, layers in arms[arm].items()
                    if name.startswith(SPARSE)
                ),
                unit="bits",
            ),
        ]
    return tuple(found)


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Bits a weight against the number of values, for each coder, whole and pruned."""
    x, y = "bits that values are numbered with", "bits a weight"
    whole: list[dict[str, Any]] = []
    pruned: list[dict[str, Any]] = []
    for of_seed in found.values():
        figures = of_seed["LeNet-300-100"]
        for bits in settings.bits:
            layers = figures[f"{bits} bits"]
            n = _total(layers, "codes")
            sums = {way: _total(layers, *parts) for way, parts in WAYS.items()} | {
                "contexts": _total(layers, "contexts")
            }
            whole += [{"arm": way, x: bits, y: total / n} for way, total in sums.items()]
            layers = figures[f"{SPARSE}, {bits} bits"]
            gaps = {path: layer["gaps"] for path, layer in layers.items()}
            sums = {
                "fixed": _total(gaps, "P+Q"),
                "Huffman": _total(gaps, "P+Q+H", "Huffman tables"),
                "range": _total(layers, "range", "range table"),
                "contexts": _total(layers, "contexts"),
            }
            pruned += [{"arm": way, x: bits, y: total / n} for way, total in sums.items()]
    order = ["fixed", "Huffman", "range", "contexts"]
    return side_by_side(
        curves(whole, x, y, title="LeNet-300-100", order=order),
        curves(pruned, x, y, title="pruned: values and gaps, or all codes", order=order),
    )


CLAIM = Claim(
    name="huffman",
    paper="Han, Mao and Dally 2016, Deep Compression, arXiv:1510.00149, section 4; Huffman 1952",
    says="The values that weights share are used unevenly, and so are the gaps between kept weights: Huffman codes "
    "save 20 to 30 %.",
    scaled="Codes of the exact clusters of trained LeNets, whole and with 92 % removed, not tuned afterwards; tables are "
    "counted. Range coding with a stored model and the adaptive context coder beside them.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(epochs=dict.fromkeys(MODELS, 1), bits=(3, 5, 8), sparse_epochs=dict.fromkeys(MODELS, 1)),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.entropy.context_coder",
        "penjing.entropy.counts",
        "penjing.entropy.huffman",
        "penjing.entropy.relative_index",
        "penjing.papers.clustered",
        "penjing.quantization.cluster",
        "penjing.quantization.kmeans",
        "penjing.quantization.search",
    ),
)
