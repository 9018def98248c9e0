"""The reproduction engine: shared beginnings once, finished rows not again, a table of what was measured."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from benchmarks.reproduce import tables
from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce.engine import Reproduction
from benchmarks.reproduce.papers import PAPERS
from benchmarks.reproduce.results import Entry, ResultFile, packed, unpacked
from runs import undrawn

SMALL = [
    *("--model", "resnet8-s2", "--batch-size", "20", "--natural-steps", "1", "--warm-up-steps", "2"),
    *(
        "--main-steps",
        "2",
        "--num-steps",
        "1",
        "--validation",
        "10",
        "--curve-images",
        "5",
        "--test-images",
        "20",
    ),
    *("--data", "CIFAR10", "--threads", "1", "--precision", "float32", "--jobs", "1"),
]


@pytest.fixture(scope="module")
def table(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce")
    words = ["part", "--scale", "smoke", "--rows", "natural,at,part,part-t", "--out", str(out)]
    words += [*SMALL, "--data-dir", str(folders)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("robust_core.session.write_report", undrawn)
        assert main(words) == 0
    return out, words


def test_shared_beginnings_are_trained_once(table):
    out, _ = table
    shared = sorted((out / "part/smoke/shared").iterdir())
    # the natural steps of all four rows, the warm-up of AT and PART; natural and TRADES go their own ways
    assert len(shared) == 2
    assert all((path / "finished.json").exists() for path in shared)


def test_the_table_is_there_in_every_form(table):
    out, _ = table
    folder = out / "part/smoke"
    text = (folder / "table.md").read_text()
    for title in ("natural training", "AT", "PART", "PART-T"):
        assert f"| {title} |" in text
    assert "No published figures are known" in text
    assert "paired by seed and image" in text
    assert json.loads((folder / "table.json").read_text())["tables"][0]["columns"][:3] == [
        "method",
        "natural",
        "PGD-20",
    ]
    assert (folder / "comparison.png").stat().st_size > 5000
    assert "http://" not in (folder / "index.html").read_text()


def test_every_attack_has_its_cost_beside_it(table):
    out, _ = table
    cost = json.loads((out / "part/smoke/table.json").read_text())["tables"][-1]
    assert cost["columns"][:3] == ["method", "training", "PGD-20"]
    for row in cost["rows"]:
        assert row[2].startswith("20 + 20, ")
        assert row[2].endswith(" s")


def test_few_images_bear_no_p_values(table):
    out, _ = table
    text = (out / "part/smoke/table.md").read_text()
    assert "Fewer than 200 images: nothing is claimed" in text


def test_finished_rows_are_not_run_again_unless_forced(table, capsys):
    _, words = table
    assert main(words) == 0
    assert capsys.readouterr().out.count("not run again") == 4
    assert main([*words, "--rows", "at", "--force"]) == 0
    assert "not run again" not in capsys.readouterr().out


def test_a_run_goes_on_with_other_threads(table, tmp_path, capsys):
    _, words = table
    again = [*words, "--rows", "at", "--threads", "2", "--results", str(tmp_path / "results.json")]
    assert main(again) == 0
    told = capsys.readouterr().out
    assert "at-seed1 is finished; nothing to do" in told
    assert not re.search(r"step \d+/", told)


@pytest.mark.slow
def test_rows_run_side_by_side_to_the_same_results(table, folders, tmp_path):
    out, words = table
    beside = [*words, "--out", str(tmp_path), "--jobs", "2", "--rows", "at,part"]
    assert main(beside) == 0
    found = [json.loads((path / "part/smoke/results.json").read_text()) for path in (out, tmp_path)]
    records = [{e["row"]: e["record"] for e in results["entries"]} for results in found]
    assert records[1] == {row: records[0][row] for row in ("at", "part")}


def test_results_hold_a_record_per_image(table):
    out, _ = table
    results = json.loads((out / "part/smoke/results.json").read_text())
    entry = next(entry for entry in results["entries"] if entry["row"] == "part")
    bits = unpacked(entry["record"]["natural"], entry["images"])
    assert bits.mean() == pytest.approx(entry["summary"]["natural_accuracy"])
    assert entry["machine"]["threads"] == 1
    assert re.fullmatch(r"unknown|[0-9a-f]{40}\+?", entry["commit"])


def test_bits_survive_packing():
    bits = np.random.default_rng(0).random(37) > 0.5
    assert (unpacked(packed(bits), 37) == bits).all()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prat"], "did you mean 'part'"),
        (["part", "--rows", "att", "--scale", "smoke"], "did you mean 'at'"),
        (["part", "--seeds", "one", "--scale", "smoke"], "--seeds one"),
        (["ancra-wrn", "--scale", "demo"], "has no rows at scale demo"),
        (
            ["all", "--scale", "smoke", "--results", "r.json"],
            "--results r.json is one paper's file; all has 3",
        ),
        (["all", "--rows", "part", "--scale", "smoke"], "Unknown row at scale smoke 'part'. Known: anc,"),
        (
            ["part", "--mask-control", "random", "--scale", "smoke"],
            "--mask-control is what row 'part-random'",
        ),
        (["part", "--method", "at", "--rows", "at", "--scale", "smoke"], "--method is what row"),
        (["ancra", "--method", "mart", "--scale", "demo"], "--method is what row 'at'"),
        (["gdro-at", "--train-type", "pgd", "--scale", "smoke"], "--train-type is what row"),
    ],
)
def test_mistakes_are_one_sentence(words, told, capsys, tmp_path):
    assert main([*words, "--out", str(tmp_path)] if words != ["prat"] else words) == 2
    assert told in capsys.readouterr().err


def test_a_results_file_of_another_kind_is_refused(tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"entries": [{"row": 1}]}')
    assert (
        main(
            ["part", "--scale", "smoke", "--out", str(tmp_path), "--results", str(tmp_path / "results.json")]
        )
        == 2
    )
    assert "holds no results of this version" in capsys.readouterr().err


@pytest.mark.parametrize("paper", ["part", "ancra", "gdro-at"])
def test_what_all_rows_share_may_be_given(paper):
    shared = (
        "model",
        "data_dir",
        "test_images",
        "batch_size",
        "main_steps",
        "validation",
        "threads",
        "epsilon",
    )
    assert {name: PAPERS[paper].row_told_by(name) for name in shared} == dict.fromkeys(shared)


def test_a_shared_flag_that_all_rows_set_themselves_is_said(tmp_path, capsys):
    given = {"data_dir": str(tmp_path), "model": "resnet8-s2"}
    work = Reproduction(PAPERS["ancra-cifar100"], "paper", tmp_path, {**given, "data": "cifar10"})
    work.check_given()
    assert capsys.readouterr().out == "warning: --data has no effect here: every row sets it\n"


def test_the_table_names_every_commit_and_machine(tmp_path):
    results = ResultFile(tmp_path / "results.json", "part", "demo")
    for seed, (commit, processor, threads) in enumerate(
        [("b" * 40, "P", 2), ("a" * 40, "P", 1), ("a" * 40, "Q", 1)], start=1
    ):
        results.entries.append(
            Entry(
                row="at", seed=seed, settings={"data": "d", "model": "m", "test_epsilon": 0.1}, images=4,
                record={}, summary={}, software={}, data={"train": {"images": 1}}, commit=commit,
                machine={"precision": "float32", "processor": processor, "threads": threads, "torch": "2"},
                train_seconds=0.0,
            )
        )  # fmt: skip
    told = " ".join(tables.run_notes(PAPERS["part"], results))
    assert f"evaluation float32; P and Q, threads 1 and 2, torch 2, commit {'a' * 10} and {'b' * 10}." in told


def test_partly_attacked_columns_count_their_own_images():
    entry = Entry(
        row="part", seed=1, settings={}, images=4, summary={}, machine={}, software={}, data={}, commit="",
        train_seconds=0.0,
        record={
            "autoattack": packed(np.array([True, False, False, False])),
            "attacked/autoattack": packed(np.array([True, True, False, False])),
        },
    )  # fmt: skip
    assert entry.accuracy("autoattack") == 0.5
    assert tables.interval_of([entry], "autoattack").estimate == 0.5


def test_results_of_other_settings_stay_out_of_the_table(table, capsys):
    out, words = table
    before = json.loads((out / "part/smoke/results.json").read_text())["entries"]
    assert main([*words, "--rows", "at", "--test-images", "9"]) == 0
    assert f"{len(before) - 1} results with other settings" in capsys.readouterr().out
    text = (out / "part/smoke/table.md").read_text()
    assert "| AT |" in text
    assert "PART-T" not in text
