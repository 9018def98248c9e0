"""``run_expt.py`` and the published shell scripts as a user starts them: files, data sets, resuming after kills."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from expt_runs import (
    GDRO,
    QUICK,
    WATERBIRDS,
    equal,
    finished,
    last_checkpoint,
    metrics,
    run_undrawn,
    table,
    weights,
)
from published_folders import COUNTS
from starts import start

from gdro_at.networks import build_network
from gdro_at.statistics import csv_columns
from robust_core.models import load_weights

SHELL = [*QUICK, "--batch_size", "8", "--n_epochs", "1"]
SHIFT = ["-s", "label_shift_step", "-d", "CIFAR10", "--minority_fraction", "0.5", "--imbalance_ratio", "2"]


def check_logs(run, name, *, epochs, groups=4, letter="F", text="log.txt", train=None):
    """The three CSV logs have the published header and rows, the text log its blocks."""
    for split, count in (("train", epochs if train is None else train), ("val", epochs), ("test", 1)):
        path = run / f"{name}{split}.csv"
        assert path.read_text(encoding="utf8").splitlines()[0] == ",".join(csv_columns(groups))
        assert len(table(path)) == count, split
    said = (run / f"{name}{letter}{text}").read_text(encoding="utf8")
    for number in range(epochs):
        assert f"Epoch [{number}]:" in said
    for words in (
        "Training Data...",
        "Current lr: ",
        "Current validation accuracy: ",
        "Best model saved at epoch",
    ):
        assert words in said
    assert said.count("Average incurred loss") == 2 * epochs + 1
    assert said.count("adv prob = ") == (2 * epochs + 1) * groups


@pytest.fixture
def shell(environment, package, tmp_path):
    """Start a shell script of the package, with this Python first on the path."""
    first = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"

    def run(name, *words):
        return subprocess.run(
            ["sh", str(package / name), *map(str, words)],
            capture_output=True,
            text=True,
            env={**environment, "PATH": first},
            cwd=tmp_path,
            timeout=300,
            check=False,
        )

    return run


@pytest.mark.slow
def test_the_published_script_trains_selects_tests_and_logs(shell, birds, tmp_path):
    done = shell("waterbirds.sh", *SHELL, "--epsilon", "0.00196", "--root_dir", birds, "--test_images", "0")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "logs" / "1-CUB-trades-pgd-reTrue-roTrue-0.00010.00196"
    check_logs(run, "robust", epochs=1)
    (row,) = table(run / "robusttest.csv")
    counts = [float(row[f"processed_data_count_group:{group}"]) for group in range(4)]
    assert counts == list(COUNTS[2])
    for name in ("robust0_model.pth", "robustlast_model.pth", "robustbest_model.pth"):
        load_weights(
            build_network("resnet8-s2", 2, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0), run / name
        )
    record = json.loads((run / "config.json").read_text(encoding="utf8"))
    assert record["config"]["trades_new"]
    assert record["config"]["epochs"] == 1
    assert (run / "report/report.html").exists()
    assert "Test, natural: average accuracy" in done.stdout
    result = finished(run)
    assert result["method"] == "GDRO-AT (official weights)"
    assert {"natural", "robust"} <= set(result["train_weighted_accuracy"])
    assert "warning" not in done.stdout


def published(package, name):
    text = (package / name).read_text(encoding="utf8").replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if line.startswith("exec python"))
    return shlex.split(line.partition('run_expt.py" ')[2].removesuffix('"$@"'))


def test_the_published_script_of_celeba(expt, package, faces):
    done = expt(*published(package, "celebA.sh"), *QUICK, "--epsilon", "0.00196", "--root_dir", faces)
    assert done.code == 0, done.err
    run = Path("logs/1-CelebA-trades-pgd-reTrue-roTrue-0.00010.00196")
    check_logs(run, "robust", epochs=2, text="log_.txt")
    done = expt(*published(package, "celebA.sh"), *QUICK, "--epsilon", "0.00196", "--root_dir", faces)
    assert done.code == 0, done.err
    second = Path("logs/2-CelebA-trades-pgd-reTrue-roTrue-0.00010.00196")
    for name in ("robusttrain.csv", "robustval.csv", "robusttest.csv"):
        assert (run / name).read_bytes() == (second / name).read_bytes()


def ran(expt, *words, run="run"):
    done = expt(*QUICK, "--run-dir", run, *words)
    assert done.code == 0, done.err
    result = finished(Path(run))
    assert 0 <= result["test"]["natural_worst_group"] <= 1
    return done, result


def test_several_confounders_make_more_groups(expt, faces):
    words = ["-d", "CelebA", "-t", "Blond_Hair", "-c", "Male", "Young", "--root_dir", faces, "--robust"]
    ran(
        expt,
        *words,
        "--train_type",
        "erm",
        "--generalization_adjustment",
        "1,2,3,4,5,6,7,8",
        "--test_images",
        "0",
    )
    assert len(metrics(Path("run"), "groups")[-1]["natural_weights"]) == 8


def test_covid_in_both_layouts(expt, slices, sites):
    shared = ["-d", "Covid", "-t", "Covid", "-c", "hospital", *GDRO, "--test_images", "0"]
    _, found = ran(expt, *shared, "--root_dir", slices)
    assert "attacked_accuracy_group:3" in found["test"]
    check_logs(Path("run"), "unit", epochs=2)
    _, found = ran(expt, *shared, "--root_dir", sites, run="sites")
    assert "attacked_accuracy_group:5" in found["test"]
    check_logs(Path("sites"), "unit", epochs=2, groups=6)


def test_the_official_split_of_covid_is_drawn_by_the_seed_and_its_pixels_are_normalised(expt, sites):
    shared = [
        "-d",
        "Covid",
        "-t",
        "Covid",
        "-c",
        "hospital",
        *GDRO,
        "--root_dir",
        sites,
        "--pixels",
        "official",
    ]
    done, found = ran(expt, *shared)
    assert "outside of [0, 1]" in found["note"]
    assert "outside of [0, 1]" in done.out
    assert "summary" not in found
    check_logs(Path("run"), "unit", epochs=2, groups=6)
    done = expt(*QUICK, *shared, "--train_type", "CFA", "--run-dir", "no")
    assert done.code == 2
    assert "--pixels official normalises COVID's images" in done.err


@pytest.mark.slow
def test_the_report_of_a_run_without_an_evaluation_is_drawn(in_process, sites):
    from gdro_at.cli import run_expt

    words = ["-d", "Covid", *GDRO, "--root_dir", sites, "--pixels", "official", "--run-dir", "run"]
    done = in_process(run_expt, [*QUICK, *words])
    assert done.code == 0, done.err
    assert Path("run/report/report.html").exists()


def test_any_table(expt, birds):
    folder = birds / "data/waterbird_complete95_forest2water2"
    words = [
        "-d",
        "table",
        "--metadata",
        folder / "metadata.csv",
        "-t",
        "y",
        "-c",
        "place",
        "--train_type",
        "erm",
    ]
    # the table's own validation split selects, whatever --validation would keep apart
    ran(expt, *words, "--robust", "--cache_dir", "cache", "--workers", "2", "--validation", "0")
    assert list(Path("cache").glob("*.pixels"))
    logs = table(Path("run/unitval.csv"))
    ran(expt, *WATERBIRDS, birds, "--train_type", "erm", "--robust", run="birds")
    assert table(Path("birds/unitval.csv")) == logs


def test_cifar_with_label_shift_long_tail_and_as_it_is(expt, folders):
    root = [
        "--root_dir",
        folders,
        "--train_type",
        "erm",
        "--robust",
        "--validation",
        "20",
        "--batch_size",
        "16",
    ]
    ran(expt, *SHIFT, *root, "--validation", "0")  # --val_fraction keeps images apart here
    check_logs(Path("run"), "unit", epochs=2, groups=10)
    ran(expt, "-d", "CIFAR10", "--imbalance_ratio", "2", *root, "--reweight_groups", run="tail")
    text = Path("tail/counts.txt").read_text(encoding="utf8")
    assert "airplane: n = " in text
    done, _ = ran(expt, "-d", "Cifar", *root, run="plain")
    assert "rate 0.01" in done.out
    done, _ = ran(expt, "-d", "CIFAR10", *SHIFT[:2], *SHIFT[4:], *root, "--official", run="official")
    assert "Y = 0 (plane)" in Path("official/counts.txt").read_text(encoding="utf8")


def test_shapes_with_the_smoke_scale(expt, monkeypatch):
    import functools

    from robust_core.data import load_dataset

    @functools.cache
    def fewer(name, root, split):
        found = load_dataset(name, root, split)
        return found.subset(torch.arange(0, len(found), 17))

    monkeypatch.setattr("gdro_at.data.load_dataset", fewer)
    words = [
        "--scale",
        "smoke",
        "--threads",
        "1",
        "--precision",
        "float32",
        "--main_steps",
        "3",
        "--train_subset",
        "0",
        "--natural_steps",
        "0",
    ]
    done = expt(*words, *GDRO, "--run-dir", "run", "--test_images", "20", "--batch_size", "20")
    assert done.code == 0, done.err
    assert [line["step"] for line in metrics(Path("run"), "step")] == [3]
    assert finished(Path("run"))["method"] == "GDRO-AT (official weights)"


def test_a_group_without_validation_images_is_told_and_the_run_goes_on(expt, tmp_path):
    from published_folders import write_waterbirds

    root = write_waterbirds(tmp_path / "cub", (COUNTS[0], (3, 0, 2, 3), COUNTS[2]))
    done, found = ran(
        expt, *WATERBIRDS, root, "--test_type", "pgd", *GDRO[:2], "--robust", "--test_images", "0"
    )
    assert "no validation image of the group 'waterbird_complete95 = 0, forest2water2 = 1'" in done.out
    lines = metrics(Path("run"), "epoch")
    assert "attacked_accuracy_group:1" not in lines[0]
    assert "attacked_accuracy_group:1" in found["test"]
    assert lines[0]["attacked_worst_group"] == min(
        value for name, value in lines[0].items() if name.startswith("attacked_accuracy_group")
    )


def test_of_an_attack_that_did_not_run_nothing_is_told(expt, birds):
    done = expt(*WATERBIRDS, birds, "--train_type", "erm", "--n_epochs", "1", "--run-dir", "run")
    assert done.code == 0, done.err
    told = [*metrics(Path("run"), "epoch"), finished(Path("run"))["test"]]
    assert not any("attacked" in name for line in told for name in line)
    assert "Test, natural" in done.out
    assert "attacked" not in done.out
    check_logs(Path("run"), "unit", epochs=1)


def test_a_run_does_not_go_on_with_other_groups(expt, tmp_path):
    from published_folders import WATERBIRDS as FOLDER
    from published_folders import read_list, write_list, write_waterbirds

    root = write_waterbirds(tmp_path / "cub")
    done = expt(*WATERBIRDS, root, "--n_epochs", "1", "--run-dir", "run")
    assert done.code == 0, done.err
    Path("run/finished.json").unlink()
    path = root / "data" / FOLDER / "metadata.csv"
    rows = read_list(path)
    changed = next(row for row in rows if (row["split"], row["y"], row["place"]) == ("0", "0", "0"))
    changed["place"] = "1"
    write_list(path, rows)
    done = expt("--resume", "run")
    assert done.code == 2
    assert "The train data of run has changed" in done.err


def test_a_row_of_the_training_log_every_few_batches(expt, birds):
    words = [
        *WATERBIRDS,
        birds,
        "--train_type",
        "erm",
        "--batch_size",
        "3",
        "--log_every",
        "2",
        "--n_epochs",
        "1",
    ]
    done = expt(*words, "--run-dir", "run")
    assert done.code == 0, done.err
    assert [int(row["batch"]) for row in table(Path("run/unittrain.csv"))] == [1, 3, 5]
    rows = table(Path("run/unittrain.csv"))
    assert sum(float(row["processed_data_count_group:0"]) for row in rows) == COUNTS[0][0]
    norms = [float(row["model_norm_sq"]) for row in rows]
    assert [float(row["reg_loss"]) for row in rows] == pytest.approx([5e-5 / 2 * norm for norm in norms])
    plain = weights(Path("run/unitlast_model.pth"))
    done = expt(*words[:-4], "--log_every", "100", "--n_epochs", "1", "--run-dir", "rare")
    assert equal(plain, weights(Path("rare/unitlast_model.pth")))


METHODS = {
    "gdro": [*GDRO, "--log_every", "1"],
    "corrected": [*GDRO, "--weights", "corrected", "--scheduler"],
    "CFA": [
        "--train_type",
        "CFA",
        "--test_type",
        "pgd",
        "--epsilon",
        "0.2/255",
        "--beta",
        "1",
        "--reweight_groups",
    ],
    "WAT": ["--train_type", "WAT", "--test_type", "pgd"],
    "DAFA": ["--train_type", "DAFA"],
    "FAT": ["--train_type", "FAT", "--n_epochs", "3"],
    "CGD": ["--train_type", "CGD", "--reweight_groups"],
    "BAT": ["--train_type", "BAT"],
    "uni": ["--train_type", "unitrades"],
    "last layer": ["--train_type", "erm", "--is_combine", "--combine_epochs", "1"],
    "btl": ["--train_type", "erm", "--robust", "--btl"],
}
SLOW = set(METHODS) - {"gdro"}


def same_runs(whole, run):
    """Two runs are equal to the bit: lines, logs, weights, and the state of method and optimizer."""
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for split in ("train", "val", "test"):
        assert (run / f"unit{split}.csv").read_bytes() == (whole / f"unit{split}.csv").read_bytes()
    assert equal(weights(run / "unitlast_model.pth"), weights(whole / "unitlast_model.pth"))
    assert equal(last_checkpoint(run), last_checkpoint(whole))
    assert finished(run)["test"] == finished(whole)["test"]
    texts = [
        (path / "unitFlog.txt").read_text(encoding="utf8").replace(str(path), "") for path in (run, whole)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in METHODS]
)
def test_a_run_killed_again_and_again_resumes_to_the_bit(method, birds, tmp_path):
    words = [
        *WATERBIRDS,
        birds,
        "--batch_size",
        "6",
        *METHODS[method],
        "--checkpoint-every",
        "1",
        "--selection",
        "last",
    ]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert run_undrawn([*map(str, words), "--run-dir", str(whole)]) == 0
    steps = len(metrics(whole, "step"))
    begin = [*words, "--run-dir", run]
    moments = sorted(random.Random(method).sample(range(1, steps), 2))
    for moment in moments:
        live = start(run_undrawn, begin)
        said = []
        for line in live.lines():
            said.append(line)
            if line.startswith(f"step {moment}/"):
                break
        live.kill()
        assert live.process.exitcode == -signal.SIGKILL, "".join(said)
        begin = ["--resume", run]
    assert run_undrawn([str(word) for word in begin]) == 0
    same_runs(whole, run)


@pytest.mark.parametrize(
    ("method", "selection"),
    [
        ("gdro", "best"),
        ("CFA", "last"),
        pytest.param("gdro", "last", marks=pytest.mark.slow),
        pytest.param("CFA", "best", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_between_training_and_evaluation_evaluates_the_same_network(
    method, selection, expt, birds
):
    words = [*WATERBIRDS, birds, *METHODS[method], "--selection", selection, "--n_epochs", "4"]
    done = expt(*words, "--run-dir", "run")
    assert done.code == 0, done.err
    run = Path("run")
    before = {path.name: path.read_bytes() for path in run.glob("unit*")}
    told = finished(run)
    if method == "CFA":
        assert any("first_averaging_epoch" in line for line in metrics(run, "refresh"))
    for name in ("finished.json", "test.json", "counts.txt", "unittest.csv"):
        (run / name).unlink()
    for path in run.glob("evaluation/*"):
        path.unlink()
    done = expt("--resume", "run")
    assert done.code == 0, done.err
    assert finished(run)["test"] == told["test"]
    assert plain(finished(run)) == plain(told)
    after = {path.name: path.read_bytes() for path in run.glob("unit*")}
    assert after.keys() == before.keys()
    assert all(
        equal(weights(run / name), torch.load(_bytes(before[name])))
        for name in before
        if name.endswith(".pth")
    )
    assert all(after[name] == before[name] for name in before if not name.endswith(".pth"))


def plain(result):
    """The summary without what depends on the clock."""
    return {name: value for name, value in result["summary"].items() if name not in ("members", "seconds")}


def _bytes(content):
    import io

    return io.BytesIO(content)


def test_resuming_refuses_other_settings(expt, birds):
    done = expt(*WATERBIRDS, birds, "--n_epochs", "1", "--run-dir", "run")
    assert done.code == 0, done.err
    done = expt("--resume", "run", "--beta", "3")
    assert done.code == 2
    assert "--beta 3.0 (the run has 6.0)" in done.err
    done = expt(*WATERBIRDS, birds, "--n_epochs", "1", "--run-dir", "run")
    assert done.code == 2
    done = expt(*WATERBIRDS, birds, "--n_epochs", "1", "--run-dir", "run", "--overwrite")
    assert done.code == 0, done.err


@pytest.mark.parametrize("official", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_published_aa_is_apgd(expt, birds, official):
    words = ["--train_type", "erm", "--test_type", "AA", "--n_epochs", "1", "--run-dir", "run"]
    done = expt(*WATERBIRDS, birds, *words, *["--official"] * official)
    assert done.code == 0, done.err
    found = finished(Path("run"))["test"]
    assert found["attacked_accuracy"] <= found["natural_accuracy"]


def test_cifar_without_validation_images(expt, folders):
    ran(expt, "-d", "CIFAR10", "--root_dir", folders, "--validation", "0", "--selection", "last")
    assert table(Path("run/unitval.csv")) == []
    done = expt(*QUICK, *SHIFT, "--root_dir", folders, "--val_fraction", "0.001", "--run-dir", "shift")
    assert done.code == 2
    assert "--val-fraction 0.001 leaves none of 60 images" in done.err


def test_a_suite_without_its_package_is_refused_at_the_start(expt, birds, monkeypatch):
    monkeypatch.setattr("robust_core.extras.autoattack_available", lambda: False)
    done = expt(*WATERBIRDS, birds, "--suite_images", "4", "--run-dir", "run")
    assert done.code == 2
    assert "--suite-images 4 needs the package pyautoattack: pip install 'packages/gdro_at[eval]'" in done.err


@pytest.mark.slow
def test_the_suite_for_two_classes_and_the_sweep(expt, birds):
    pytest.importorskip("pyautoattack")
    words = ["--train_type", "erm", "--suite_images", "4", "--sweep_images", "3", "--n_epochs", "1"]
    done = expt(*WATERBIRDS, birds, *words, "--run-dir", "run")
    assert done.code == 0, done.err
    found = finished(Path("run"))
    said = json.dumps(found["summary"])
    assert all(f'"{name}"' in said for name in ("pgd-10", "apgd-ce", "apgd-margin", "fab", "square"))
    assert list(found["sweep"]) == ["0.5/255", "1/255", "2/255", "4/255", "8/255"]
    assert "apgd-margin" in json.dumps(found["float64"])


def test_the_sweep_of_budgets(expt, birds):
    done = expt(
        *WATERBIRDS,
        birds,
        "--train_type",
        "erm",
        "--sweep_images",
        "2",
        "--n_epochs",
        "1",
        "--run-dir",
        "run",
    )
    assert done.code == 0, done.err
    assert list(finished(Path("run"))["sweep"]) == ["0.5/255", "1/255", "2/255", "4/255", "8/255"]
