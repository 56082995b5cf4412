"""What a paper claims, and how it is checked: the form that every file of this folder fills in."""

import ast
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from penjing.settings import Settings
from penjing.shapes import Json

if TYPE_CHECKING:
    from penjing.papers.laboratory import Laboratory

Figures = dict[str, Json]
"""What one arm of an experiment measured, by name."""
Arms = Mapping[str, Figures]
"""The figures of one seed, by arm."""
Profile = Literal["quick", "full"]


@dataclass(frozen=True)
class Check:
    """One inequality of a claim: difference(arms) >= at_least, for the mean over seeds.

    Attributes:
        says: the inequality in words.
        paper: what the paper found, with its figure.
        difference: of one seed's arms.
        at_least: the bound.
        unit: of the difference.
    """

    says: str
    paper: str
    difference: Callable[[Arms], float]
    at_least: float = 0.0
    unit: str = "pp"


@dataclass(frozen=True)
class Claim:
    """A paper's claim.

    Attributes:
        name: its word on the command line.
        paper: authors, year, identifier.
        says: what is claimed, in a sentence or two.
        scaled: how our run differs from the paper's.
        data: the data sets that it needs, see `laboratory.DATA`.
        settings: of both profiles.
        arms: of the settings, the names of the runs of one seed, in order.
        measure: carries out one arm; earlier arms of the same seed are given.
        checks: of the settings, the inequalities.
        picture: of all figures, by seed and arm: a list of rows and how to draw them, see `pictures`.
        judges: the modules whose code it judges; a result remembers their state.
        seeds: how many by default.
        timed: some of what is judged are times, so nothing else should run beside it.
    """

    name: str
    paper: str
    says: str
    scaled: str
    data: tuple[str, ...]
    settings: Mapping[Profile, Settings]
    arms: Callable[[Any], tuple[str, ...]]
    measure: Callable[["Laboratory", str, Any, Arms], Figures]
    checks: Callable[[Any], tuple[Check, ...]]
    picture: Callable[[Mapping[int, Arms], Any], Any]
    judges: tuple[str, ...]
    seeds: int = 3
    timed: bool = False

    def settings_hash(self, profile: Profile) -> str:
        """Of everything that decides a part's figures besides the code."""
        return hashlib.sha256(json.dumps(self.settings[profile].model_dump(), sort_keys=True).encode()).hexdigest()[:12]

    def code_hash(self) -> str:
        """Of what is judged and of the claim's own file: of what code does, not of comments, docstrings, layout and picture."""
        modules = sorted({*self.judges, self.measure.__module__})
        meanings = [_meaning(inspect.getsource(importlib.import_module(name))) for name in modules]
        return hashlib.sha256("\0".join(meanings).encode()).hexdigest()[:12]


def _meaning(source: str) -> str:
    """A module's syntax tree without docstrings, pictures, and the claim's own words; its settings have a hash of their own."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if getattr(node, "name", "") != "picture" and not _names_claim(node)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and body
            and ast.get_docstring(node, clean=False)
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def _names_claim(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "CLAIM" for t in node.targets)
