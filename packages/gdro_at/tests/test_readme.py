"""What GDRO-AT's README says is there: flags, files, commands, examples."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gdro_at.config import TRAIN_TYPES, GdroConfig
from gdro_at.draw import DrawConfig

ROOT = Path(__file__).parents[3]
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf8")
SECTION = re.search(r"### GDRO-AT\n.*?(?=\n##)", (ROOT / "README.md").read_text(encoding="utf8"), re.DOTALL)
PROJECT = (ROOT / "packages/gdro_at/pyproject.toml").read_text(encoding="utf8")


def test_flags_that_are_named_exist():
    assert SECTION is not None
    names = {
        "help",
        "resume",
        "overwrite",
        "cub",
        "places",
        "confounder_strength",
        "rows",
        "seeds",
        "all_methods",
    }
    names |= {"no_uniform_term"}
    for kind in (GdroConfig, DrawConfig):
        for entry in fields(kind):
            spellings = (entry.name, *entry.metadata.get("flags", ()))
            names |= {spelling.lstrip("-").replace("-", "_").rstrip("_") for spelling in spellings}
    for flag in set(re.findall(r"--([a-z][a-z_-]+)", README + SECTION.group())):
        assert flag.replace("-", "_").rstrip("_") in names, flag


def test_commands_that_are_named_are_installed():
    assert SECTION is not None
    commands = set(re.findall(r"^([a-z0-9-]+) = .gdro_at[.]", PROJECT, re.MULTILINE))
    named = set(re.findall(r"v/bin/([a-z0-9-]+)", SECTION.group())) - {"pip", "python"}
    assert named <= commands == {"run-expt", "make-waterbirds", "draw-attack-cam"}


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#h][^)#]*)\)", README))
def test_linked_files_exist(path):
    assert (Path(__file__).parents[1] / path).exists()


def test_every_train_type_is_described():
    for kind in TRAIN_TYPES:
        assert f"`{kind}`" in README, kind


def test_the_library_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    found: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), found)
    assert float(found["loss"]) > 0  # type: ignore[arg-type]
