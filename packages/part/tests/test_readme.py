"""The README keeps its word: two commands, an example that runs, flags and files that exist."""

from __future__ import annotations

import re

import pytest
import torch
from scripts import ROOT

from part.config import PartConfig
from robust_core.config import option_names

README = (ROOT / "README.md").read_text()
BOTH = README + (ROOT / "packages/part/README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_exactly_two_commands_to_run_and_test():
    assert [block.strip().split("&& ")[-1] for block in blocks("sh")[:2]] == [
        ".venv/bin/nox -s reproduce",
        ".venv/bin/nox -s tests",
    ]


def test_the_library_example_runs(capsys):
    torch.manual_seed(0)
    exec_globals: dict[str, object] = {}
    (example,) = blocks("python")
    code = compile(example, "README.md", "exec")
    exec(code, exec_globals)
    assert 0.0 <= float(capsys.readouterr().out) <= 1.0


def test_flags_that_are_named_exist():
    ours = re.sub(r"### (ANCRA|GDRO-AT)\n.*?(?=\n### )", "", BOTH, flags=re.DOTALL)
    names = option_names(PartConfig) | {"resume", "overwrite", "help", "nproc_per_node", "model_dir"}
    names |= {"seeds", "all_methods"}  # of a reproduction
    for flag in set(re.findall(r"--([a-z][a-z_-]+)", ours)):
        assert flag.replace("-", "_") in names, flag


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#h][^)#]*)\)", README))
def test_linked_files_exist(path):
    assert (ROOT / path).exists()
