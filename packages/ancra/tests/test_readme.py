"""What ANCRA's README says is there: flags, files, commands, examples."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from ancra.adaptive import AttackEffort
from ancra.config import AncraConfig
from ancra.distances import DistanceConfig
from ancra.histograms import HistogramConfig
from ancra.networks import build_network
from ancra.projection import ProjectionConfig
from ancra.white_attack import WhiteAttackConfig
from robust_core.data import load_dataset

ROOT = Path(__file__).parents[3]
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf8")
SECTION = re.search(r"### ANCRA\n.*?(?=\n### )", (ROOT / "README.md").read_text(encoding="utf8"), re.DOTALL)
CONFIGS = (AncraConfig, WhiteAttackConfig, DistanceConfig, HistogramConfig, ProjectionConfig)
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_flags_that_are_named_exist():
    assert SECTION is not None
    names = {"resume", "overwrite", "help", "rows", "seeds", "results"}
    for kind in CONFIGS:
        for entry in fields(kind):
            spellings = (entry.name, *entry.metadata.get("flags", ()))
            names |= {spelling.lstrip("-").replace("-", "_") for spelling in spellings}
    for flag in set(re.findall(r"--([a-z][a-z_-]+)", README + SECTION.group())):
        assert flag.replace("-", "_") in names, flag


def test_commands_that_are_named_are_installed():
    assert SECTION is not None
    project = (ROOT / "packages/ancra/pyproject.toml").read_text(encoding="utf8")
    commands = set(re.findall(r"^([a-z0-9-]+) = .ancra[.]", project, re.MULTILINE))
    named = set(re.findall(r"v/bin/([a-z0-9-]+)", SECTION.group())) - {"pip"}
    assert named <= commands
    assert len(commands) == 10


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#h][^)#]*)\)", README))
def test_linked_files_exist(path):
    assert (Path(__file__).parents[1] / path).exists()


def test_the_library_examples_run():
    torch.manual_seed(0)
    test = load_dataset("shapes", split="test").subset(torch.arange(4))
    found: dict[str, object] = {
        "images": test.pixels(slice(None)),
        "labels": test.labels,
        "generator": torch.Generator().manual_seed(0),
        "test": test,
        "train": test,
        "model": build_network("resnet8-s2", 10, seed=0),
        "SHORT": AttackEffort(1, 1, 1, 1, 1, 1),
    }
    for example in EXAMPLES:
        # the networks and efforts of the examples take minutes
        short = example.replace('build_network("resnet18", 10)', 'build_network("resnet10-s2", 10).eval()')
        short = short.replace(
            "blocks_of(model), num_classes=10)", "blocks_of(model), 10, effort=SHORT, autoattack=False)"
        )
        exec(compile(short, "README.md", "exec"), found)
    assert found["found"].worst_case().shape == (4,)  # type: ignore[attr-defined]
