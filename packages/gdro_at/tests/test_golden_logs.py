"""Text, CSV columns and logged values against the official implementation's."""

from __future__ import annotations

import re

import golden
import grfal_golden
import loss_sequence
import numpy as np
import pytest
import torch

from gdro_at.statistics import csv_columns, csv_row, get_stats, log_text, model_norm_sq
from gdro_at.weights import constants

pytestmark = pytest.mark.golden

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def wanted():
    return golden.load_json("gdro_at", "loss_text.json")


@pytest.fixture(scope="module")
def running(wanted):
    arrays = grfal_golden.load("loss_computer_m4.npz")
    settings = next(s for s in loss_sequence.scenarios(arrays) if s["name"] == wanted["scenario"])
    return loss_sequence.run(arrays, settings, wanted["sequence"], "f32", wanted["after_batch"] + 1)[0]


def test_logged_values_in_their_order(wanted, running):
    found = get_stats(running.statistics, running.state.average)
    assert list(found) == list(wanted["get_stats"])
    grfal_golden.close(list(found.values()), np.array(list(wanted["get_stats"].values())), 2e-6)


def test_csv_columns_and_row(wanted, running):
    assert csv_columns(running.rule.units) == wanted["csv_columns"]
    model = torch.nn.Linear(3, 2)
    norm_sq = model_norm_sq(model.parameters())
    row = csv_row(4, 11, running.statistics, running.state.average, norm_sq=norm_sq, weight_decay=0.5)
    assert list(row) == wanted["csv_columns"]
    assert (row["epoch"], row["batch"]) == (4, 11)
    expected = float((model.weight.square().sum() + model.bias.square().sum()).detach())
    assert row["model_norm_sq"] == pytest.approx(expected)
    assert row["reg_loss"] == pytest.approx(expected / 4)
    assert row["avg_acc"] == pytest.approx(wanted["get_stats"]["avg_acc"])


def test_text(wanted, running):
    rule, state = running.rule, running.state
    adjusted = state.average + constants(rule, torch.float32, torch.device("cpu")).reference
    names = [line.strip().split("  [n =")[0] for line in wanted["log_text"].splitlines()[2:]]
    found = log_text(running.statistics, state, adjusted, names)
    assert NUMBER.sub("#", found) == NUMBER.sub("#", wanted["log_text"])
    pairs = list(zip(NUMBER.findall(found), NUMBER.findall(wanted["log_text"]), strict=True))
    assert len(pairs) > 2 + 6 * len(names)
    for ours, theirs in pairs:
        decimals = len(theirs.partition(".")[2])
        assert len(ours.partition(".")[2]) == decimals
        assert abs(float(ours) - float(theirs)) <= 1.01 * 10.0**-decimals * (decimals > 0), (ours, theirs)
