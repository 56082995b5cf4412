"""Networks that work whatever their weight: a search among topologies, with one weight for all connections.

    trial = digits_trial()
    state = search(trial, digits_search(seed=0), generations=500)
    print(weigh_digits(state.champion, trial, np.random.default_rng(0)))
    network = trace(to_network(state.champion, 1.0), (x,))

Source: Gaier and Ha 2019, Weight Agnostic Neural Networks, arXiv:1906.04358.
"""

from penjing.pruning.weight_agnostic.cart_pole import SwingUpTrial
from penjing.pruning.weight_agnostic.conversion import TopologyNetwork, hold_zeros_, to_network, train_weights
from penjing.pruning.weight_agnostic.digits import DigitsTrial, digits_search, digits_trial
from penjing.pruning.weight_agnostic.evaluate import evaluate, evaluate_own
from penjing.pruning.weight_agnostic.search import (
    SERIES,
    Generation,
    SearchSettings,
    State,
    Trial,
    advance,
    begin,
    load_state,
    save_state,
    search,
)
from penjing.pruning.weight_agnostic.topology import ACTIVATIONS, Topology, dense, minimal, mutate
from penjing.pruning.weight_agnostic.tuning import tune_by_reward, tune_swing_up
from penjing.pruning.weight_agnostic.weighing import Worth, weigh_digits, weigh_swing_up

__all__ = [
    "ACTIVATIONS",
    "SERIES",
    "DigitsTrial",
    "Generation",
    "SearchSettings",
    "State",
    "SwingUpTrial",
    "Topology",
    "TopologyNetwork",
    "Trial",
    "Worth",
    "advance",
    "begin",
    "dense",
    "digits_search",
    "digits_trial",
    "evaluate",
    "evaluate_own",
    "hold_zeros_",
    "load_state",
    "minimal",
    "mutate",
    "save_state",
    "search",
    "to_network",
    "train_weights",
    "tune_by_reward",
    "tune_swing_up",
    "weigh_digits",
    "weigh_swing_up",
]
