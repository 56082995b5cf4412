"""Recipes and runs: stages put together, carried out, measured and written down."""

from penjing.recipe.budget import Budget
from penjing.recipe.recipe import STAGES, Recipe, load_task, read_recipe, read_stage
from penjing.recipe.run import Run, compress
from penjing.recipe.table import stage_table, summary_table
from penjing.training import load_model

__all__ = [
    "STAGES",
    "Budget",
    "Recipe",
    "Run",
    "compress",
    "load_model",
    "load_task",
    "read_recipe",
    "read_stage",
    "stage_table",
    "summary_table",
]
