"""Stages that the documentation shows are stages."""

import re
from pathlib import Path

import pytest
import yaml

from penjing.recipe import read_recipe, read_stage

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_stage_on_a_page_can_be_read(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        content = yaml.safe_load(block)
        for item in content["stages"] if isinstance(content, dict) and "stages" in content else content:
            if not isinstance(content, dict) or "stages" in content:
                read_stage(item)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(recipe: Path) -> None:
    assert read_recipe(recipe).stages
