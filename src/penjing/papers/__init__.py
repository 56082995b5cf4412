"""Claims of papers, each a file: what was claimed, our experiment, the inequalities that must hold."""

import importlib

from penjing.errors import SettingError, nearest
from penjing.papers.claim import Check, Claim
from penjing.papers.reproduce import reproduce, result_path

CLAIMS: dict[str, str] = {
    "optimal-brain-damage": "optimal_brain_damage",
    "lifelong-importance": "lifelong_importance",
    "network-trimming": "network_trimming",
    "structured-sparsity": "structured_sparsity",
    "lottery-ticket": "lottery_ticket",
    "lottery-ticket-conv2": "lottery_ticket_conv",
    "deconstructing-lottery-tickets": "deconstructing",
    "weight-agnostic": "weight_agnostic",
    "rethinking-pruning": "rethinking_pruning",
    "iterative-vs-one-shot": "iterative_vs_one_shot",
    "neuron-vs-weight": "neuron_vs_weight",
    "deep-compression": "deep_compression",
    "huffman": "huffman",
    "binary-connect": "binary_connect",
    "binarized-network": "binarized_network",
    "xnor-net": "xnor_net",
    "fewer-bits": "fewer_bits",
    "calibrated-coding": "calibrated_coding",
    "hinton-distillation": "hinton_distillation",
    "do-deep-nets": "do_deep_nets",
    "fitnets": "fitnets",
    "patient-distillation": "patient_distillation",
    "teacher-assistant": "teacher_assistant",
    "ensemble-distillation": "ensemble_distillation",
    "weight-averaging": "weight_averaging",
    "depthwise-separable": "depthwise_separable",
    "low-rank": "low_rank",
    "compact-networks": "compact_networks",
    "under-100k": "under_100k",
    "early-exit": "early_exit",
    "msdnet": "msdnet",
    "slimmable": "slimmable",
    "universally-slimmable": "universally_slimmable",
    "skipnet": "skipnet",
    "blockdrop": "blockdrop",
    "runtime-neural-pruning": "runtime_neural_pruning",
}
"""By its word on the command line, the file of each claim."""


def claim_named(name: str) -> Claim:
    """A claim. Raises: SettingError: there is none of that name, with the nearest."""
    if name not in CLAIMS:
        raise SettingError(f'reproduce: there is no claim "{name}"; {nearest(name, CLAIMS)}.')
    found: Claim = importlib.import_module(f"{__name__}.{CLAIMS[name]}").CLAIM
    return found


__all__ = ["CLAIMS", "Check", "Claim", "claim_named", "reproduce", "result_path"]
