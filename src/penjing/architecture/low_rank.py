"""Low-rank factorisation: a layer becomes several that compute nearly the same with fewer weights and less work.

    layers ── ranks: by energy, evidence, a limit, measured time ── factors, weighted by activations ── layers in a chain

The methods are those of `schemes`, the rules for ranks those of `rank_choice`. Nothing is trained; a later stage does that.
Source: Denton et al. 2014, arXiv:1404.0736; Jaderberg et al. 2014, arXiv:1405.3866; Lebedev et al. 2015, arXiv:1412.6553;
Kim et al. 2016, arXiv:1511.06530.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from penjing.architecture.factors import relative_error
from penjing.architecture.rank_choice import Candidate, by_energy, by_limit, by_time
from penjing.architecture.schemes import SCHEMES, LayerShape, Ranks, is_factorable, scheme_name
from penjing.errors import DataError, SettingError
from penjing.graph import Network, replace_node, select
from penjing.graph.modules import kind_of
from penjing.graph.network import MODULE, TENSOR, node_shapes
from penjing.measurement import count_parameters, macs_by_node
from penjing.sensitivity import input_covariances
from penjing.shapes import Json
from penjing.training import Batch, Stage, Workbench
from penjing.training.seeding import derive_seed
from penjing.units import parse_count

Method = Literal["auto", "svd", "channel", "tucker", "cp", "spatial"]
_RULES = ("energy", "rank", "max_parameters", "max_macs", "latency", "ranks")
_ENERGY = 0.9


@dataclass(frozen=True)
class Factorisation:
    """How a layer is written as several.

    Attributes:
        method: see `schemes`; "auto" is svd for linear layers and 1 x 1 convolutions, tucker for others.
        ranks: one number, or for tucker (of the outputs, of the inputs); one number stands for both.
    """

    method: Method
    ranks: int | Sequence[int]


def factorise(
    network: Network,
    layers: Mapping[str, Factorisation],
    *,
    moments: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Network:
    """Replace layers by their factors.

    Args:
        layers: by path.
        moments: by path, the second moments of what an output is computed from, (n, n); the factors then change the layer's
            answers least, otherwise its weight.
        seed: of what starts at random (cp).
    Returns: the new network, in which a factorised layer is a container of its factors; the old one is untouched.
    Raises: SettingError: a layer that cannot be factorised so, ranks out of range, ranks that save nothing.
    """
    shapes = layer_shapes(network, layers)
    for path, wanted in layers.items():
        reason = reason_to_stay(network, path, wanted.method)
        if reason is not None:
            raise SettingError(f"low-rank: {path} cannot be factorised: {reason}.")
        layer: Any = network.get_submodule(path)
        method = scheme_name(wanted.method, layer)
        scheme = SCHEMES[method]
        try:
            ranks = scheme.checked(shapes[path], wanted.ranks)
        except SettingError as error:
            raise SettingError(f"low-rank: {path}: {str(error).removeprefix('low-rank: ')}") from None
        reason = _no_gain(method, shapes[path], ranks)
        if reason is not None:
            raise SettingError(f"low-rank: {path}: {reason}. Ask for smaller ranks.")
        generator = torch.Generator().manual_seed(derive_seed(seed, path))
        factors = scheme.factors(layer.weight.detach(), ranks, (moments or {}).get(path), generator)
        network = replace_node(network, path, scheme.layers(layer, factors))
    return network


def reason_to_stay(network: Network, path: str, method: Method) -> str | None:
    """Why a layer cannot be factorised by this method; None where it can."""
    layer: Any = network.get_submodule(path)
    if not is_factorable(layer):
        return f"a {kind_of(layer) or type(layer).__name__}: only linear layers and convolutions have factors"
    if hasattr(layer, "parametrizations"):
        return "its weight has a representation; factorise before that"
    if getattr(layer, "groups", 1) > 1:
        return "grouped or depthwise already"
    calls = sum(node.op == MODULE and node.path == path for node in network.nodes)
    if calls != 1:
        return f"it is called {calls} times"
    mine = {id(tensor) for tensor in layer.parameters()}
    held = sum(id(t) in mine for m in network.modules() for t in m._parameters.values() if t is not None)
    if held > len(mine) or any(n.op == TENSOR and n.path.rpartition(".")[0] == path for n in network.nodes):
        return "its weight is used in other places too"
    return SCHEMES[scheme_name(method, layer)].against(layer)


def layer_shapes(network: Network, paths: Iterable[str]) -> dict[str, LayerShape]:
    """Of those layers that are linear layers or convolutions and called once."""
    found = {}
    shapes = node_shapes(network)
    calls = [node for node in network.nodes if node.op == MODULE]
    for path in paths:
        layer: Any = network.get_submodule(path)
        nodes = [node for node in calls if node.path == path]
        if is_factorable(layer) and len(nodes) == 1:
            found[path] = LayerShape.of(layer, shapes[nodes[0].inputs[0]], shapes[nodes[0].name])
    return found


def factorised_weight(network: Network, path: str, method: str) -> Tensor:
    """The weight that the factors at `path` stand for, float64."""
    factors: list[Any] = list(network.get_submodule(path).children())
    return SCHEMES[method].product([layer.weight for layer in factors])


def _no_gain(method: str, shape: LayerShape, ranks: Ranks) -> str | None:
    """Why ranks are not worth it, with figures; None where they are."""
    parameters, macs = SCHEMES[method].costs(shape, ranks)
    if parameters < shape.n_parameters or macs < shape.n_macs:
        return None
    return (
        f"{method} at {_spoken(ranks)} would have {parameters:,} parameters instead of {shape.n_parameters:,}, "
        f"and {macs:,} instead of {shape.n_macs:,} MACs"
    )


def _spoken(ranks: Ranks) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


class LowRank(Stage):
    """Write linear layers and convolutions as several of low rank. Nothing is trained; train or distill afterwards."""

    label: ClassVar[str] = "low-rank"
    needs: ClassVar[tuple[str, ...]] = ("linear layers or convolutions",)
    layers: tuple[str, ...] = Field(
        default=(),
        description="which: names, globs, type:Class, !not-this; all linear layers and convolutions unless told",
    )
    method: Method = Field(
        default="auto",
        description="auto: svd for linear layers and 1 x 1 convolutions, tucker for larger ones; or channel, spatial, cp",
    )
    energy: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the squared norm of each layer that is kept; if nothing is said, 0.9",
    )
    rank: Literal["evidence"] | None = Field(
        default=None, description="the rank that variational Bayes finds in each weight, instead"
    )
    max_parameters: int | None = Field(
        default=None, gt=0, description="of the whole network, instead; ranks are chosen over all layers together"
    )
    max_macs: int | None = Field(
        default=None, gt=0, description="multiply-accumulates of the whole network, instead; over all layers together"
    )
    latency: float | None = Field(
        default=None, gt=0, le=1, description="share of each layer's measured time, one thread, instead"
    )
    ranks: dict[str, int | tuple[int, ...]] = Field(
        default={}, description="ranks of layers by pattern, the last counts, instead; tucker: of outputs and of inputs"
    )
    samples: int = Field(
        default=0,
        ge=0,
        description="training samples whose activations weigh the errors, as many others check them; 0: weights alone count",
    )

    @field_validator("max_parameters", "max_macs", mode="before")
    @classmethod
    def _count(cls, value: Any, info: ValidationInfo) -> Any:
        return None if value is None else parse_count(value, f"{cls.label}: {info.field_name}")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in _RULES if getattr(self, name)]
        if len(given) > 1:
            raise SettingError(f"low-rank: {' and '.join(given)} are given; only one can decide.")
        if self.ranks and self.layers:
            raise SettingError("low-rank: layers and ranks are given; ranks say which layers too.")
        for pattern, ranks in self.ranks.items():
            numbers = (ranks,) if isinstance(ranks, int) else ranks
            if not 1 <= len(numbers) <= 2 or min(numbers) < 1:
                raise SettingError(
                    f'low-rank: ranks: "{pattern}" must have a rank of at least 1, or two of them, got {ranks!r}.'
                )
        return self

    def apply(self, bench: Workbench) -> None:
        network = bench.network
        wanted = self._wanted(network)
        stayed = {path: reason for path in wanted if (reason := reason_to_stay(network, path, self.method))}
        paths = [path for path in wanted if path not in stayed]
        moments, held_out = self._moments(bench) if self.samples and paths else ({}, {})
        shapes = layer_shapes(network, paths)
        if self.ranks:
            chosen = {path: wanted[path] for path in paths}
        else:
            decided: Json = bench.decide("ranks", lambda: self._decide(bench, shapes, moments))
            chosen = decided["ranks"]
            stayed |= decided["stayed"]
        if not chosen:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in stayed.items())
            raise SettingError(f"{self.label}: none of the chosen layers can be factorised ({reasons}).")
        for path in [path for path in chosen if self.samples and path not in moments]:
            bench.warn(
                f"{path}: nothing is known of the inputs of a {kind_of(network.get_submodule(path))}; its weight counts"
            )
        layers = {path: Factorisation(self.method, ranks) for path, ranks in chosen.items()}
        bench.network = factorise(network, layers, moments=moments, seed=derive_seed(bench.seed, bench.key))
        bench.facts |= {"factorised": self._facts(network, bench.network, layers, shapes, held_out), "stayed": stayed}
        if self.latency is not None:
            bench.facts["share of the time"] = decided["times"]

    def _wanted(self, network: Network) -> dict[str, Any]:
        """The chosen layers in order, with the ranks asked for, where such were."""
        layers = network.layers()
        if self.ranks:
            asked: dict[str, Any] = {}
            for pattern, ranks in self.ranks.items():
                asked |= dict.fromkeys(select(layers.items(), (pattern,), f"{self.label}: ranks"), ranks)
            return {path: asked[path] for path in layers if path in asked}
        if self.layers:
            return dict.fromkeys(select(layers.items(), self.layers, f"{self.label}: layers"))
        return {path: None for path, layer in layers.items() if is_factorable(layer)}

    def _moments(self, bench: Workbench) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Second moments of inputs by path, on the samples to choose by and on others."""
        batches = bench.samples("activations", 2 * self.samples)
        total = sum(batch.size for batch in batches)
        if total < 2:
            raise DataError(f"{self.label}: there must be at least 2 training samples, got {total}.")
        parts = _cut(batches, min(self.samples, total // 2))
        of_parts = [
            {name.rpartition(".")[0]: c[0] for name, c in input_covariances(bench.network, part).items()}
            for part in parts
        ]
        return of_parts[0], of_parts[1]

    def _decide(self, bench: Workbench, shapes: Mapping[str, LayerShape], moments: Mapping[str, Tensor]) -> Json:
        """Ranks by path, why others stay, and measured shares of the time."""
        network = bench.network
        found: dict[str, Ranks | None] = {}
        stayed: dict[str, str] = {}
        times: dict[str, float] = {}
        methods = {path: scheme_name(self.method, network.get_submodule(path)) for path in shapes}
        candidates: dict[str, Candidate] = {}
        with bench.reporter.bar(f"{self.label}: ranks", len(shapes)) as bar:
            for path, shape in shapes.items():
                layer: Any = network.get_submodule(path)
                scheme = SCHEMES[methods[path]]
                if self.rank is not None:
                    found[path] = scheme.evidence(layer.weight.detach())
                else:
                    generator = torch.Generator().manual_seed(derive_seed(bench.seed, bench.key, path, "options"))
                    options = scheme.options(layer.weight.detach(), shape, moments.get(path), generator)
                    candidates[path] = candidate = Candidate.of(scheme, shape, options)
                    if self.latency is not None:
                        found[path], times[path] = by_time(
                            candidate, copy.deepcopy(layer).cpu().float(), _example(network, path), self.latency
                        )
                        if found[path] is None:
                            stayed[path] = _too_slow(times[path], self.latency)
                    elif self.max_parameters is None and self.max_macs is None:
                        found[path] = by_energy(candidate, self.energy or _ENERGY)
                bar.advance(1, path)
        if candidates and self.max_parameters is not None:
            found |= by_limit(candidates, count_parameters(network)[0], self.max_parameters, "parameters")
        if candidates and self.max_macs is not None:
            found |= by_limit(candidates, sum(macs_by_node(network).values()), self.max_macs, "macs")
        ranks = {}
        for path, shape in shapes.items():
            chosen = found.get(path)
            reason = None if chosen is None else _no_gain(methods[path], shape, chosen)
            if chosen is None:
                stayed.setdefault(path, "the limit is kept without it")
            elif reason is not None:
                stayed[path] = reason
            else:
                ranks[path] = list(chosen)
        return {"ranks": ranks, "stayed": stayed, "times": times}

    def _facts(
        self,
        before: Network,
        after: Network,
        layers: Mapping[str, Factorisation],
        shapes: Mapping[str, LayerShape],
        held_out: Mapping[str, Tensor],
    ) -> Json:
        facts: dict[str, Json] = {}
        for path, made in layers.items():
            layer: Any = before.get_submodule(path)
            method = scheme_name(made.method, layer)
            ranks = SCHEMES[method].checked(shapes[path], made.ranks)
            parameters, macs = SCHEMES[method].costs(shapes[path], ranks)
            product = factorised_weight(after, path, method)
            facts[path] = {
                "method": method,
                "ranks": list(ranks),
                "parameters": [shapes[path].n_parameters, parameters],
                "MACs": [shapes[path].n_macs, macs],
                "relative error of the weight": relative_error(layer.weight, product),
            }
            if path in held_out:
                facts[path]["relative error on other samples"] = relative_error(layer.weight, product, held_out[path])
        return facts


def _too_slow(share: float, limit: float) -> str:
    if math.isinf(share):
        return "no ranks need fewer parameters or MACs than it has"
    return f"its fastest factors take {share:.2f} of its time, more than {limit:g}"


def _example(network: Network, path: str) -> Tensor:
    """What a layer takes for one sample, on the CPU: any numbers."""
    shape = node_shapes(network)[network.node_of(path).inputs[0]]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _cut(batches: Sequence[Batch], n: int) -> tuple[list[Batch], list[Batch]]:
    """The first n samples, and all others."""
    first: list[Batch] = []
    rest: list[Batch] = []
    for batch in batches:
        middle = min(max(n, 0), batch.size)
        for part, keep in ((slice(0, middle), first), (slice(middle, None), rest)):
            if len(range(batch.size)[part]):
                args = tuple(x[part] for x in batch.args)
                keep.append(Batch(args, {name: x[part] for name, x in batch.kwargs.items()}, None))
        n -= middle
    return first, rest
