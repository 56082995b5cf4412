"""How gates learn to open: by gradients through hard choices, by reinforcement, by a curriculum, by the value of actions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.dynamic.choices import Chooser, choosing, drawn, likeliest
from penjing.dynamic.gates import GATES, NORMS
from penjing.errors import SettingError
from penjing.graph import ExitOutputs
from penjing.training import Batch, Part
from penjing.training.part import only_learn_, rest_in_evaluation_

if TYPE_CHECKING:
    from penjing.training.fit import Fit

_GATES = (f"{GATES}.",)


def _is_gate(name: str) -> bool:
    return name.startswith(_GATES)


def reward(right: Tensor, used: Tensor, penalty: float) -> Tensor:
    """1 - used^2 where the answer is right, -penalty where it is wrong; (batch,).

    Args:
        right: bool. used: the share of the blocks that were computed, 0 to 1.
    Source: Wu et al. 2018 (BlockDrop), arXiv:1711.08393, equation 3.
    """
    return torch.where(right, 1 - used.square(), torch.full_like(used, -penalty))


class GatesLearn(Part, ABC):
    """Base of parts in which gates learn at a rate of their own.

    Attributes:
        gate_lr: how many times the learning rate of the rest; 1 unless set.
    """

    gate_lr: float = 1.0

    @abstractmethod
    def learn(self, fit: Fit, batch: Batch) -> float:
        """One step with a batch; the loss."""

    def step(self, fit: Fit, batch: Batch) -> float | None:
        named = fit.network.named_modules() if batch.size == 1 else ()  # one sample has no variance
        norms = [module for name, module in named if name.startswith(f"{NORMS}.") and module.training]
        for norm in norms:
            norm.eval()
        loss = self.learn(fit, batch)
        for norm in norms:
            norm.train()
        return loss

    def learners(self, fit: Fit) -> nn.Module | None:
        theirs = {id(p): p for name, p in fit.network.named_parameters() if _is_gate(name)}
        for group in fit.groups:
            group["params"] = [p for p in group["params"] if id(p) not in theirs]
        fit.groups[:] = [group for group in fit.groups if group["params"]]
        fit.groups.append({"params": list(theirs.values()), "weight_decay": 0.0, "scale": self.gate_lr})
        return None


def straight_through(logits: Tensor, tau: float = 1.0) -> Tensor:
    """1 where a logit is above 0, else 0, with the gradient of sigmoid(logit / tau)."""
    soft = torch.sigmoid(logits / tau)
    return (logits > 0).to(logits.dtype) + soft - soft.detach()


class GatesByGradient(GatesLearn):
    """Gates learn with everything else, straight through their hard choices; a term pulls their mean towards a target.

    loss + weight * (mean over samples and gates of open - target)^2; with noise, a gate is open where logit + L > 0, L
    logistic, and its gradient is that of sigmoid((logit + L) / tau). The target is for gates without noise, as in use: with
    noise, gates that are open three times out of four have a share of 0.75, and in use they are always open.

    Args:
        target: share of the gates to be open, 0 to 1; None: no such term, as in SkipNet's supervised first phase.
        noise: Gumbel noise; without it the plain straight-through estimator. tau: its temperature.
    Sources: Wang et al. 2018 (SkipNet), arXiv:1711.09485, section 3.3 (supervised pre-training); Jang et al. 2017,
    arXiv:1611.01144; Veit and Belongie 2018, arXiv:1711.11503, section 3.3 (a target rate).
    """

    def __init__(
        self, target: float | None = None, weight: float = 10.0, *, noise: bool = False, tau: float = 1.0
    ) -> None:
        self.target, self.weight, self.noise, self.tau = target, weight, noise, tau

    def learn(self, fit: Fit, batch: Batch) -> float:
        opened: list[Tensor] = []

        def act(logits: Tensor, column: int) -> Tensor:
            z = logits[:, column]
            opened.append(straight_through(z, self.tau))
            if not self.noise:
                return opened[-1]
            u = torch.rand_like(z).clamp(1e-6, 1 - 1e-6)
            return straight_through(z + u.log() - (-u).log1p(), self.tau)

        functions = {
            node.name: lambda logits, column=node.settings["column"]: act(logits, column) for node in fit.network.gates
        }
        with fit.network.replaced(functions):
            loss = fit.loss(batch, fit.forward(batch))
        if self.target is not None:
            loss = loss + self.weight * (torch.stack(opened).mean() - self.target).square()
        return fit.update(loss)


class HybridReinforcement(GatesLearn):
    """The network learns from the labels, its gates from a reward for skipping: REINFORCE.

    r_i = -(loss of the sample) + alpha / N * (sum over j >= i of skipped_j),  gates drawn from their probabilities,
    loss - weight * mean over samples of sum_i (r_i - r_i of the sample with its likeliest gates) log pi_i. What gates look at
    gets no gradient from them.

    Args:
        alpha: what skipping is worth: all blocks skipped as much as a loss smaller by alpha.
        weight: of the gates' term.
        bound: of the probabilities that gates are drawn from, see `bounded`; below 1 gates that have become certain go on
            trying. 1 in the paper.
    Source: Wang et al. 2018 (SkipNet), arXiv:1711.09485, section 3.4, equations 3 to 6; the baseline is BlockDrop's, since
    samples differ far more in their loss than ways do, and so is the bound.
    """

    def __init__(self, alpha: float, weight: float = 0.3, *, bound: float = 1.0) -> None:
        self.alpha, self.weight, self.bound = alpha, weight, bound

    def learn(self, fit: Fit, batch: Batch) -> float:
        with choosing(fit.network, drawn(self.bound), detached=True) as choices:
            answers = _one(fit, fit.forward(batch))
        with torch.no_grad():
            greedy, likely = _greedily(fit, batch, likeliest)
            advantage = self._rewards(answers, choices.opened(), batch) - self._rewards(greedy, likely, batch)
        policy = -(advantage * choices.log_probabilities(self.bound)).sum(1).mean()
        return fit.update(fit.loss(batch, answers) + self.weight * policy)

    def _rewards(self, answers: Tensor, opened: Tensor, batch: Batch) -> Tensor:
        """r_i, (batch, gates)."""
        losses = F.cross_entropy(answers.detach(), batch.labels, reduction="none")
        later = (1 - opened).flip(1).cumsum(1).flip(1) / opened.shape[1]
        return self.alpha * later - losses[:, None]


class DropByPolicy(GatesLearn):
    """A policy that sees the input learns which blocks to compute: a reward, the greedy choice as its critic, a curriculum.

    -(R(u) - R(greedy)) sum_k log pi_k(u_k) - entropy_weight * H, probabilities bounded while they are drawn from. In the first
    phase only the policy learns, and in epoch t of n only the last 1.25 t / n of the blocks are its choice, the others are
    computed. Jointly, the network learns from the labels too, along the way that was drawn.

    Args:
        penalty: for a wrong answer, gamma; the larger, the more is computed.
        joint: the network learns too; else it is left as it is, and there is a curriculum.
        bound: alpha, see `bounded`. entropy_weight: beta.
    Source: Wu et al. 2018 (BlockDrop), arXiv:1711.08393, sections 3.2 and 3.3.
    """

    def __init__(
        self,
        penalty: float,
        *,
        joint: bool,
        bound: float = 0.8,
        entropy_weight: float = 0.1,
        policy_weight: float = 1.0,
    ) -> None:
        self.penalty, self.joint, self.bound = penalty, joint, bound
        self.entropy_weight, self.policy_weight = entropy_weight, policy_weight

    def start(self, fit: Fit) -> None:
        if not self.joint:
            only_learn_(fit.network, _GATES)

    def epoch_start(self, fit: Fit) -> None:
        if not self.joint:
            rest_in_evaluation_(fit.network, _is_gate)

    def learn(self, fit: Fit, batch: Batch) -> float:
        free = 1.0 if self.joint else min((fit.epoch + 1) / max(fit.schedule.epochs, 1) * 1.25, 1.0)

        def choose(how: Chooser) -> Chooser:
            def act(source: str, logits: Tensor) -> Tensor:
                n = logits.shape[1]
                chosen = how(source, logits)
                forced = n - max(math.ceil(free * n), 1)
                return torch.cat([torch.ones_like(chosen[:, :forced]), chosen[:, forced:]], 1)

            return act

        with choosing(fit.network, choose(drawn(self.bound)), detached=True) as choices:
            answers = _one(fit, fit.forward(batch))
        opened = choices.opened()
        with torch.no_grad():
            found = reward(answers.argmax(1) == batch.labels, opened.mean(1), self.penalty)
            greedy, likely = _greedily(fit, batch, choose(likeliest))
            critic = reward(greedy.argmax(1) == batch.labels, likely.mean(1), self.penalty)
        p = choices.probabilities(self.bound)
        n_forced = opened.shape[1] - max(math.ceil(free * opened.shape[1]), 1)
        log_pi = choices.log_probabilities(self.bound)[:, n_forced:]
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum(1).mean()
        policy = -((found - critic)[:, None] * log_pi).sum(1).mean() - self.entropy_weight * entropy
        loss = self.policy_weight * policy
        return fit.update(loss + fit.loss(batch, answers) if self.joint else loss)

    def finish(self, fit: Fit) -> None:
        only_learn_(fit.network, None)


class ValueOfActions(GatesLearn):
    """A recurrent agent learns how much computing a set of channels more is worth: Q-learning; the network learns in between.

    Q_t(a) is the agent's logit for a sets of channels in block t. Actions are the best but for a share epsilon, which falls.
    target_t = (a_t - 1) p / (k - 1) + discount * max_a Q_{t+1}(a),  in the last block -alpha loss instead of what comes after.
    Epochs alternate: the agent learns, the network learns along the agent's ways.

    Args:
        penalty: p < 0 for computing all sets of a block.
        alpha: weight of the sample's loss.
        explore: epsilon at the first step, and from 70 % of the steps on; linear in between.
        agent: without it only the network learns.
    Source: Lin et al. 2017, Runtime Neural Pruning, NIPS, sections 3.2 to 3.4; the penalty is divided by k - 1, so that it
    does not depend on the number of sets.
    """

    def __init__(
        self,
        penalty: float,
        alpha: float = 1.0,
        *,
        discount: float = 1.0,
        explore: tuple[float, float] = (1.0, 0.1),
        agent: bool = True,
    ) -> None:
        self.penalty, self.alpha, self.discount, self.explore, self.agent = penalty, alpha, discount, explore, agent
        self._agent_learns = agent

    def epoch_start(self, fit: Fit) -> None:
        self._agent_learns = self.agent and fit.epoch % 2 == 0
        for name, parameter in fit.network.named_parameters():
            parameter.requires_grad_(_is_gate(name) == self._agent_learns)
        if self._agent_learns:
            rest_in_evaluation_(fit.network, _is_gate)

    def learn(self, fit: Fit, batch: Batch) -> float:
        progress = fit.step / max(fit.total_steps - 1, 1)
        epsilon = self.explore[0] + (self.explore[1] - self.explore[0]) * min(progress / 0.7, 1.0)

        def act(_: str, logits: Tensor) -> Tensor:
            best = logits.detach().argmax(1)
            random = torch.randint_like(best, logits.shape[1])
            return torch.where(torch.rand(len(best), device=best.device) < epsilon, random, best)

        with choosing(fit.network, act, detached=True) as choices:
            answers = _one(fit, fit.forward(batch))
        if not self._agent_learns:
            return fit.update(fit.loss(batch, answers))
        losses = F.cross_entropy(answers.detach(), batch.labels, reduction="none")
        values, actions = list(choices.logits.values()), list(choices.taken.values())
        terms = []
        for t, (value, action) in enumerate(zip(values, actions, strict=True)):
            cost = self.penalty * action / (value.shape[1] - 1)
            after = -self.alpha * losses if t + 1 == len(values) else self.discount * values[t + 1].detach().amax(1)
            chosen = value.gather(1, action[:, None]).squeeze(1)
            terms.append(F.smooth_l1_loss(chosen, cost + after))
        return fit.update(torch.stack(terms).sum())

    def finish(self, fit: Fit) -> None:
        for parameter in fit.network.parameters():
            parameter.requires_grad_(True)


def _one(fit: Fit, answers: Tensor | ExitOutputs) -> Tensor:
    if isinstance(answers, ExitOutputs):
        raise SettingError(f"{fit.where}: routing is learned in a network without exits; attach those afterwards.")
    return answers


def _greedily(fit: Fit, batch: Batch, choose: Chooser) -> tuple[Tensor, Tensor]:
    """The answers of the network as it will be used, and which gates are open for each sample, (batch, gates)."""
    modes = {module: module.training for module in fit.network.modules()}
    fit.network.eval()
    try:
        with choosing(fit.network, choose) as choices:
            batch = fit.laid_out(batch)
            answers = fit.network(*batch.args, **batch.kwargs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return answers, choices.opened()
