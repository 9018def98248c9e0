"""Every method of ``run_expt.py`` through a whole run of a few steps, and the flags that change how it trains."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from expt_runs import GDRO, QUICK, WATERBIRDS, equal, finished, metrics, table, weights

from gdro_at.config import TRAIN_TYPES
from robust_core.evaluation import Member, Protocol

PLAIN = ["erm", "pgd", "trades"]
BASELINES = [name for name in TRAIN_TYPES if name not in PLAIN]


@pytest.fixture(autouse=True)
def short_test(monkeypatch):
    """Let the last evaluation be one step of one attack; all of it belongs to test_scripts.py."""

    def one_step(config, _classes):
        settings = {"eps": config.test_eps, "step_size": config.test_eps, "steps": 1}
        return Protocol("groups", (Member("pgd-10", "pgd", settings),))

    monkeypatch.setattr("gdro_at.plan.final_protocol", one_step)
    monkeypatch.setattr("robust_core.plan.save_gallery", lambda *_, **__: None)


@pytest.fixture(scope="module")
def plain_weights():
    """What runs without a further flag trained, by their words."""
    return {}


def numbers(value):
    """All numbers of a nested record."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def check_finished(run, groups=4):
    """A run is whole: figures of the test, overall and per group, are shares; of an attack only where one ran."""
    result = finished(run)
    tested = result["test"]
    assert all(math.isfinite(number) for number in numbers(result))
    record = json.loads((run / "config.json").read_text(encoding="utf8"))
    kinds = ("natural",) if record["config"]["test_type"] == "erm" else ("natural", "attacked")
    assert any("attacked" in name for name in tested) == ("attacked" in kinds)
    for kind in kinds:
        assert 0 <= tested[f"{kind}_worst_group"] <= tested[f"{kind}_accuracy"] <= 1
        found = [tested[f"{kind}_accuracy_group:{group}"] for group in range(groups)]
        assert min(found) == tested[f"{kind}_worst_group"]
    assert all(math.isfinite(line["loss"]) for line in metrics(run, "step"))
    return result


def ran(expt, birds, *words):
    done = expt(*WATERBIRDS, birds, "--run-dir", "run", *words)
    assert done.code == 0, done.err
    return Path("run")


@pytest.mark.filterwarnings("ignore:DAFA. the official form never takes a step")
@pytest.mark.parametrize(
    "official", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["corrected", "official"]
)
@pytest.mark.parametrize("kind", BASELINES)
def test_a_baseline_trains_validates_and_is_tested(expt, birds, kind, official):
    run = ran(expt, birds, "--train_type", kind, "--test_type", "pgd", *["--official"] * official)
    result = check_finished(run)
    assert result["method"].startswith(kind)
    assert len(metrics(run, "step")) == 4
    assert len(metrics(run, "epoch")) >= 2
    # as published, no row is written in training; one per epoch is in validation, and one is of the test
    # (FAT begins with TRADES, which has rows)
    assert table(run / "unittrain.csv") == [] or kind == "FAT"
    assert {int(row["epoch"]) for row in table(run / "unitval.csv")} == {0, 1}
    assert len(table(run / "unittest.csv")) == 1


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(
    "words", [["--robust"], ["--robust", "--official"], ["--reweight_groups"]], ids=" ".join
)
def test_plain_training_and_group_dro(expt, birds, kind, words):
    run = ran(expt, birds, "--train_type", kind, "--test_type", "pgd", *words)
    result = check_finished(run)
    assert ("DRO" in result["method"]) == ("--robust" in words)
    assert ("group-balanced" in result["method"]) == ("--reweight_groups" in words)
    assert len(table(run / "unittrain.csv")) == 2


@pytest.mark.parametrize("words", [["--official"], ["--weights", "corrected"]], ids=" ".join)
def test_gdro_at(expt, birds, words):
    run = ran(expt, birds, *GDRO, *words)
    assert "GDRO-AT" in check_finished(run)["method"]
    last = metrics(run, "groups")[-1]
    assert len(last["natural_weights"]) == len(last["adversarial_weights"]) == 4


def group_weights(expt, birds, run, *words):
    shared = ["--n_epochs", "1", "--robust_step_size", "0.5", "--batch_size", "6", "--selection", "last"]
    shared += ["--validation_images", "4"]
    done = expt(*WATERBIRDS, birds, *GDRO, *shared, "--log_every", "1", "--run-dir", run, *words)
    assert done.code == 0, done.err
    last = metrics(Path(run), "groups")[-1]
    return last["natural_weights"] + last["adversarial_weights"], [
        line["loss"] for line in metrics(Path(run), "step")
    ]


CHANGES = [
    "--weights_sign minus",
    "--weights_updates published",
    "--weights_bound clip",
    "--weights_absent moved",
    "--weights_running_mean log",
    "--weights_adjust in_place",
    "--adv_scale sum",
    "--adv_scale four",
    "--adv_weights uniform",
    "--adv_weights natural",
]


@pytest.mark.slow
def test_corrected_weights_and_each_single_change_train_differently(expt, birds):
    found = {
        words: group_weights(expt, birds, f"run{number}", "--weights", "corrected", *words.split())
        for number, words in enumerate(["", *CHANGES])
    }
    found["official"] = group_weights(expt, birds, "official", "--weights", "official")
    plain = found[""]
    only_loss = (
        "--weights_adjust in_place",
        "--adv_scale sum",
        "--adv_scale four",
        "--adv_weights uniform",
        "--adv_weights natural",
    )
    for words in [*CHANGES, "official"]:
        differs = found[words][1] != plain[1] if words in only_loss else found[words][0] != plain[0]
        assert differs, words
    # with four groups, the sum over groups is the published factor
    assert found["--adv_scale sum"] == found["--adv_scale four"]


SMALL_CHANGES = [
    ("--hinge", "--train_type erm"),
    ("--btl", "--train_type erm --robust"),
    ("--use_normalized_loss", "--train_type erm --robust --robust_step_size 1"),
    ("--generalization_adjustment 3,0.1,5,2", "--train_type erm --robust --robust_step_size 1"),
    ("--augment_data", "--train_type erm"),
    ("--reweight_groups", "--train_type erm"),
    ("--seed 5", "--train_type erm"),
    ("--lr 0.1", "--train_type erm"),
    ("--weight_decay 0.5", "--train_type erm"),
    ("--epsilon 16/255", "--train_type pgd"),
    ("--attack_iters 3", "--train_type pgd"),
    ("--random_init 0.05", "--train_type pgd"),
    ("--clmax 0.6", "--train_type pgd"),
    ("--clmin 0.1", "--train_type pgd"),
    ("--beta 60", "--train_type trades --epsilon 16/255"),
    ("--no-uniform-term", "--train_type BAT"),
    ("--fair_over class", "--train_type WAT"),
    ("--lamda 100", "--train_type uni"),
    ("--tau 0.001", "--train_type uni"),
    ("--alpha_ 0.05", "--train_type uni"),
    ("--forwards two", "--train_type trades"),
]


@pytest.mark.parametrize(("words", "around"), SMALL_CHANGES, ids=[case[0] for case in SMALL_CHANGES])
def test_a_flag_changes_what_is_trained(expt, birds, plain_weights, words, around):
    shared = ["--n_epochs", "2" if "WAT" in around else "1", "--selection", "last"]
    shared += ["--validation_images", "4", *around.split()]
    if around not in plain_weights:
        done = expt(*WATERBIRDS, birds, *shared, "--run-dir", "without")
        assert done.code == 0, done.err
        plain_weights[around] = weights(Path("without/unitlast_model.pth"))
    done = expt(*WATERBIRDS, birds, *shared, "--run-dir", "with", *words.split())
    assert done.code == 0, done.err
    assert not equal(plain_weights[around], weights(Path("with/unitlast_model.pth")))


def test_the_scheduler_lowers_the_rate_where_the_validation_loss_no_longer_falls(expt, birds):
    words = ["--train_type", "erm", "--robust", "--scheduler", "--lr", "2", "--batch_size", "16"]
    run = ran(expt, birds, *words, "--n_epochs", "16")
    rates = [line["lr"] for line in metrics(run, "step")]
    losses = [line["validation_loss"] for line in metrics(run, "epoch")]
    best, waited, factor, expected = math.inf, 0, 1.0, []
    for loss in losses:
        expected.append(2 * factor)
        if loss < best * (1 - 1e-4):
            best, waited = loss, 0
        elif waited == 5:
            factor, waited = factor * 0.1, 0
        else:
            waited += 1
    assert rates == pytest.approx(expected)
    assert rates[-1] < rates[0]


@pytest.mark.parametrize("kind", ["erm", "trades"])
def test_the_last_layer_is_trained_anew_and_the_trunk_stays(expt, birds, kind):
    words = ["--train_type", kind, "--is_combine", "--combine_epochs", "2", "--robust", "--selection", "last"]
    run = ran(expt, birds, *words, "--save_step", "1")
    assert check_finished(run)["method"].endswith("last layer anew")
    assert {line["phase"] for line in metrics(run, "step")} == {"main", "last layer"}
    # numbers of epochs go on in the second phase
    assert sorted(path.name for path in run.glob("unit?_model.pth")) == [
        f"unit{epoch}_model.pth" for epoch in range(4)
    ]
    trunk, after = weights(run / "unit1_model.pth"), weights(run / "unit3_model.pth")
    same = {name: torch.equal(trunk[name], after[name]) for name in trunk}
    assert not any(same[name] for name in trunk if name.startswith(("linear", "fc")))
    assert all(kept for name, kept in same.items() if not name.startswith(("linear", "fc")))
    assert equal(after, weights(run / "unitlast_model.pth"))


def test_fat_begins_with_trades_or_with_given_weights(expt, birds):
    run = ran(
        expt, birds, "--train_type", "FAT", "--n_epochs", "3", "--save_step", "1", "--selection", "last"
    )
    assert [line["phase"] for line in metrics(run, "step")] == ["warm-up"] * 4 + ["main"] * 2
    assert sorted(path.name for path in run.glob("unit?_model.pth")) == [
        f"unit{epoch}_model.pth" for epoch in range(3)
    ]
    first = weights(run / "unit1_model.pth")
    done = expt(
        *WATERBIRDS, birds, "--train_type", "FAT", "--warm_start", run / "unit1_model.pth", "--run-dir", "on"
    )
    assert done.code == 0, done.err
    assert {line["phase"] for line in metrics(Path("on"), "step")} == {"main"}
    assert first


@pytest.mark.parametrize("count", [1, 4])
def test_the_beginning_of_fat_ends_with_an_epoch(expt, birds, count):
    run = ran(expt, birds, "--train_type", "FAT", "--n_epochs", count)
    epochs = [int(row["epoch"]) for row in table(run / "unitval.csv")]
    assert epochs == list(range(count))


def test_natural_steps_come_first(expt, birds):
    run = ran(expt, birds, *GDRO, "--natural_steps", "1", "--main_steps", "4", "--log_every", "1")
    assert [line["phase"] for line in metrics(run, "step")] == ["natural"] + ["main"] * 4
    # the main phase begins in the middle of an epoch of two batches
    rows = [(int(row["epoch"]), int(row["batch"])) for row in table(run / "unittrain.csv")]
    assert rows == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_a_main_phase_that_begins_with_a_smaller_batch_knows_its_epochs(expt, birds):
    # 16 images make batches of 6, 6 and 4
    words = ["--train_type", "erm", "--batch_size", "6", "--natural_steps", "2", "--main_steps", "4"]
    run = ran(expt, birds, *words)
    rows = [(int(row["epoch"]), int(row["batch"])) for row in table(run / "unittrain.csv")]
    assert rows == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.filterwarnings("ignore:.* follow the epoch before")
@pytest.mark.parametrize(
    "kind", ["CFA", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("WAT", "erm"))]
)
def test_only_test_and_a_bare_resume_take_weights(expt, birds, kind):
    first = ran(
        expt, birds, "--train_type", kind, "--test_type", "pgd", "--n_epochs", "1", "--selection", "last"
    )
    path = first / "unitlast_model.pth"
    words = ["--train_type", kind, "--test_type", "pgd", "--pth_name", path]
    done = expt(*WATERBIRDS, birds, *words, "--only_test", "--name_index", "P", "--run-dir", "test")
    assert done.code == 0, done.err
    before, after = (finished(Path(name))["test"] for name in ("run", "test"))
    assert after == before
    assert Path("test/PTlog.txt").exists()
    assert len(table(Path("test/Ptest.csv"))) == 1
    assert table(Path("test/Ptrain.csv")) == table(Path("test/Pval.csv")) == []
    done = expt(*WATERBIRDS, birds, *words, "--resume", "--n_epochs", "1", "--lr", "0", "--run-dir", "again")
    assert done.code == 0, done.err
    begun, trained = weights(path), weights(Path("again/unitlast_model.pth"))
    assert all(torch.equal(begun[name], trained[name]) for name in begun if name.endswith(".weight"))
    done = expt("--resume", "again")
    assert done.code == 0
    assert "nothing to do" in done.out


def test_a_pickled_network_is_refused(expt, birds):
    from robust_core.models import build_model

    torch.save(build_model("resnet8-s2", 2), "whole.pth")
    for words in (["--only_test"], ["--resume"]):
        done = expt(*WATERBIRDS, birds, *words, "--pth_name", "whole.pth", "--run-dir", "run")
        assert done.code == 2
        assert len(done.err.strip().splitlines()) == 1
        assert "whole.pth" in done.err
        assert not Path("run").exists()


def test_files_of_best_and_last_can_be_left_out(expt, birds):
    run = ran(expt, birds, "--no_save_best", "--no_save_last", "--n_epochs", "1", "--name_index", "P")
    assert sorted(path.name for path in run.glob("P*.pth")) == ["P0_model.pth"]


def test_a_numbered_file_at_epochs_0_and_1_and_at_multiples(expt, birds):
    run = ran(expt, birds, "--n_epochs", "5", "--save_step", "3", "--batch_size", "16")
    names = sorted(path.name for path in run.glob("unit*_model.pth"))
    assert names == [f"unit{name}_model.pth" for name in ("0", "1", "3", "best", "last")]


def test_every_train_type_has_a_test():
    assert set(TRAIN_TYPES) == set(PLAIN) | set(BASELINES)
    assert QUICK
