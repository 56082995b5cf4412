"""Stages that let each sample choose its way: blocks that it skips, channels that it does without."""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from penjing.dynamic.blocks import Block, gate_blocks, residual_blocks
from penjing.dynamic.channel_sets import split_blocks
from penjing.dynamic.choices import parts_of_gates
from penjing.dynamic.gates import GATES, feed_forward_gates, policy, recurrent_gates, settled_gates, with_gates
from penjing.dynamic.route_training import (
    DropByPolicy,
    GatesByGradient,
    GatesLearn,
    HybridReinforcement,
    ValueOfActions,
)
from penjing.errors import SettingError
from penjing.graph import fold_batch_norms
from penjing.measurement import answer, macs_by_node, macs_without_exits
from penjing.shapes import Json
from penjing.training import Part, Schedule, TrainedStage, Workbench

_ALWAYS_OPEN, _NEVER_OPEN = 0.995, 0.005
_MOST_OF_BACKBONE = 0.05
"""Gates that cost more than this share of the network's MACs are told."""


class Routed(TrainedStage):
    """Base of stages whose networks have gates."""

    needs: ClassVar[tuple[str, ...]] = ("classification", "labels", "residual blocks")
    gate_lr: float = Field(default=10.0, gt=0, description="how many times faster gates learn than the rest")

    def blocks(self, bench: Workbench) -> list[Block]:
        """The blocks of the network. Raises: SettingError: gates are there already, or the task is no classification."""
        if not bench.task.is_classification:
            raise SettingError(
                f"{self.label}: rewards need classification; this task's metric is {bench.task.metric.name}."
            )
        if bench.network.gates:
            raise SettingError(f"{self.label}: the network has gates already.")
        if bench.network.exits:
            raise SettingError(f"{self.label}: the network has several answers; choose ways before exits and widths.")
        return residual_blocks(bench.network)

    def train(self, bench: Workbench, schedule: Schedule, parts: list[Part], name: str = "") -> None:
        """Train; gates begin where they were made, wherever the network is put back to its beginning."""
        if 0 in bench.kept:
            for key, tensor in bench.network.state_dict().items():
                bench.kept[0].setdefault(key, tensor.detach().cpu().clone())
        for part in parts:
            if isinstance(part, GatesLearn):
                part.gate_lr = self.gate_lr
        bench.train(schedule, parts, name)

    def settle(self, bench: Workbench, blocks: list[Block]) -> None:
        """Write down what gates that have learned do on the validation set and cost; warn where they are all alike."""
        bench.network, _ = fold_batch_norms(settled_gates(bench.network), within=GATES)
        if 0 in bench.kept:
            for key, tensor in bench.network.state_dict().items():
                if key.startswith(f"{GATES}."):  # norms at their beginning fold into biases of 0
                    bench.kept[0].setdefault(key, torch.zeros_like(tensor, device="cpu"))

        def look() -> Json:
            network = bench.network.to(bench.accelerator.device)
            opened = answer(network, bench.task, bench.task.valid).opened
            together = torch.stack([opened[node.name] for node in network.gates], 1)
            return {
                "open": [float(share) for share in together.double().mean(0)],
                "ways": len(torch.unique(together, dim=0)),
            }

        found = bench.decide("gates", look)
        by_node = macs_by_node(bench.network)
        cost = sum(by_node[name] for name in parts_of_gates(bench.network)) / macs_without_exits(bench.network)
        per_block = len(found["open"]) // len(blocks)
        for k, block in enumerate(blocks):
            shares = [f"{share:.1%}" for share in found["open"][k * per_block : (k + 1) * per_block]]
            bench.facts[f"open on validation, {block.name}"] = ", ".join(shares)
        bench.facts["different ways on validation"] = found["ways"]
        bench.facts["MACs of gates"] = f"{cost:.2%} of the network's"
        if cost > _MOST_OF_BACKBONE:
            bench.warn(f"The gates cost {cost:.1%} of the network's multiply-accumulates; that is much for deciding.")
        self.warn_of_collapse(bench, found["open"], found["ways"])

    def warn_of_collapse(self, bench: Workbench, shares: list[float], ways: int) -> None:
        """Tell where no sample is treated otherwise than the next."""
        if min(shares) > _ALWAYS_OPEN:
            bench.warn(
                "The policy has collapsed: every block is computed for every sample, so nothing is saved. "
                "Make skipping worth more."
            )
        elif max(shares) < _NEVER_OPEN:
            bench.warn("The policy has collapsed: no block is computed for any sample. Make skipping worth less.")
        elif ways == 1:
            bench.warn("All samples go the same way: blocks that are never computed could as well be removed.")


class SkipBlocks(Routed):
    """Gates in front of residual blocks, learned first by gradients through their hard choices, then by reward for skipping."""

    label: ClassVar[str] = "skip-blocks"
    gates: Literal["recurrent", "feed-forward"] = Field(
        default="recurrent", description="one small recurrent network for all blocks, or a gate of its own for each"
    )
    warm: int = Field(default=4, ge=0, description="passes in which gates learn by gradients (straight through)")
    alpha: float = Field(
        default=1.0, ge=0, description="what skipping is worth: all blocks as much as alpha of the loss"
    )
    reward_weight: float = Field(default=0.3, gt=0, description="of the gates' term beside the loss")
    open: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="instead of a reward: the share of blocks to compute, learned by Gumbel gates in all epochs",
    )

    def planned_epochs(self) -> int:
        return self.epochs + self.warm

    def apply(self, bench: Workbench) -> None:
        blocks = self.blocks(bench)
        make = recurrent_gates if self.gates == "recurrent" else feed_forward_gates
        network, logits = make(bench.network, blocks)
        network, gates = with_gates(network, [(name, 0) for name in logits])
        bench.network = gate_blocks(network, blocks, gates)
        parts = self.parts(bench)
        if self.open is not None:
            self.train(bench, self.schedule(self.planned_epochs()), [*parts, GatesByGradient(self.open, noise=True)])
        else:
            if self.warm:
                self.train(bench, self.schedule(self.warm), [*parts, GatesByGradient()], "warm")
            self.train(bench, self.schedule(), [*parts, HybridReinforcement(self.alpha, self.reward_weight)])
        self.settle(bench, blocks)


class DropBlocks(Routed):
    """A small policy network sees the image and says at once which residual blocks to compute: reward, curriculum, joint."""

    label: ClassVar[str] = "drop-blocks"
    curriculum: int = Field(
        default=5, ge=0, description="passes in which the policy alone learns, the last blocks first"
    )
    penalty: float = Field(
        default=2.0, gt=0, description="for a wrong answer; the larger, the more blocks are computed"
    )
    bound: float = Field(default=0.8, gt=0.5, le=1, description="how certain a choice may be while it is explored")
    entropy: float = Field(default=0.1, ge=0, description="what undecided choices are worth")
    policy_lr: float = Field(default=1e-3, gt=0, description="largest learning rate of the curriculum, by AdamW")
    width: int = Field(default=8, ge=1, description="channels of the policy's first convolution")

    def planned_epochs(self) -> int:
        return self.epochs + self.curriculum

    def apply(self, bench: Workbench) -> None:
        blocks = self.blocks(bench)
        network, logits = policy(bench.network, len(blocks), width=self.width)
        network, gates = with_gates(network, [(logits, k) for k in range(len(blocks))])
        bench.network = gate_blocks(network, blocks, gates)
        parts: list[Part] = self.parts(bench)
        if self.curriculum:
            alone = DropByPolicy(self.penalty, joint=False, bound=self.bound, entropy_weight=self.entropy)
            lr = self.policy_lr / self.gate_lr
            schedule = self.schedule(self.curriculum).model_copy(update={"lr": lr, "optimizer": "adamw"})
            self.train(bench, schedule, [alone], "curriculum")
        together = DropByPolicy(self.penalty, joint=True, bound=self.bound, entropy_weight=self.entropy)
        self.train(bench, self.schedule(), [*parts, together])
        self.settle(bench, blocks)


class RouteChannels(Routed):
    """A recurrent agent says for each residual block how many of its channel sets to compute for a sample; Q-learning."""

    label: ClassVar[str] = "route-channels"
    sets: int = Field(default=4, ge=2, description="into how many sets the hidden channels of a block are split")
    penalty: float = Field(default=0.05, gt=0, description="for computing all sets of a block; a loss of 1 is worth 1")
    discount: float = Field(default=1.0, gt=0, le=1, description="what later blocks count")
    warm: int = Field(default=2, ge=0, description="passes in which the network learns to work with any number of sets")

    def planned_epochs(self) -> int:
        return self.epochs + self.warm

    def apply(self, bench: Workbench) -> None:
        blocks = self.blocks(bench)
        network, logits = recurrent_gates(bench.network, blocks, self.sets, lean=0.0)
        bench.network = split_blocks(network, blocks, logits, self.sets)
        parts = self.parts(bench)
        if self.warm:
            anyhow = ValueOfActions(-self.penalty, explore=(1.0, 1.0), agent=False)
            self.train(bench, self.schedule(self.warm), [*parts, anyhow], "warm")
        self.train(bench, self.schedule(), [*parts, ValueOfActions(-self.penalty, discount=self.discount)])
        self.settle(bench, blocks)

    def warn_of_collapse(self, bench: Workbench, shares: list[float], ways: int) -> None:
        if ways == 1:
            bench.warn(
                "The policy has collapsed: all samples use the same channels. Change the penalty, or train longer."
            )
