"""GDRO-AT's rows from training to tables of groups and their paired differences."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce.gdro_at import PAIRS
from benchmarks.reproduce.group_figure import Dot, group_figure
from benchmarks.reproduce.group_tables import (
    group_difference_table,
    group_table,
    groups_of,
)
from benchmarks.reproduce.papers import PAPERS, tables_of
from benchmarks.reproduce.results import Entry, ResultFile, packed

from gdro_at.cli import resolve, training_script
from gdro_at.data import load_groups
from gdro_at.phases import training_attack
from gdro_at.plan import test_attack
from gdro_at.validation import first_of_each_group
from robust_core.data import load_dataset
from robust_core.errors import UserError
from robust_core.evaluation import Interval

PAPER = PAPERS["gdro-at"]
SIX = ["erm", "group-dro", "trades", "trades-balanced", "gdro-at-official", "gdro-at"]
TINY = [
    *(
        "--scale",
        "smoke",
        "--batch-size",
        "16",
        "--main-steps",
        "1",
        "--test-images",
        "24",
        "--train-subset",
        "48",
    ),
    *("--validation-images", "8", "--threads", "1", "--precision", "float32", "--jobs", "1"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce")
    words = ["gdro-at", "--rows", "erm,group-dro", "--out", str(out), *TINY]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("robust_core.session.write_report", lambda path: path)
        assert main(words) == 0
    return out / "gdro-at/smoke", words


@pytest.mark.slow
def test_rows_become_tables_with_groups(table):
    folder, _ = table
    entries = json.loads((folder / "results.json").read_text())["entries"]
    assert [(entry["row"], entry["seed"]) for entry in entries] == [("erm", 1), ("group-dro", 1)]
    for entry in entries:
        assert {"natural", "robust", "pgd-10", "apgd-ce", *(f"group/{k}" for k in range(4))} <= set(
            entry["record"]
        )
        assert set(entry["weighted"]) == {"natural", "robust"}
        assert not any(str(value).startswith("/") for value in entry["settings"].values())
    text = (folder / "table.md").read_text()
    for words in (
        "natural worst group",
        "PGD-10 worst group",
        "robust worst group",
        "train-weighted natural",
    ):
        assert words in text
    assert "Group-DRO minus ERM" in text
    assert "robust, pointed on cool |" in text
    assert "nothing is claimed" in text
    assert (folder / "comparison.png").stat().st_size > 5000
    assert (folder / "comparison.pdf").read_bytes()[:4] == b"%PDF"
    assert len(json.loads((folder / "table.json").read_text())["tables"]) == 4


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(table, capsys):
    _, words = table
    assert main(words) == 0
    assert capsys.readouterr().out.count("not run again") == 2


def test_the_demo_has_six_rows_and_all_methods_every_baseline():
    for scale in ("smoke", "demo"):
        rows = PAPER.at(scale)
        assert [row.name for row in rows if not row.extra] == SIX
    every = {row.name for row in PAPER.at("demo")}
    assert every == {row.name for row in PAPER.at("reduced")} == {row.name for row in PAPER.at("paper")}
    assert {name for pair in PAIRS for name in pair} <= every
    kinds = {row.settings.get("train_type") for row in PAPER.at("demo")}
    assert kinds >= {"pgd", "BAT", "WAT", "CFA", "FAT", "DAFA", "CGD", "uni", "unitrades", "unimart"}


def _configs(scale):
    return {
        row.name: PAPER.resolve({**row.settings, "scale": scale, "seed": 1, "run_dir": "x"})[0]
        for row in PAPER.at(scale)
    }


@pytest.mark.parametrize("scale", ["smoke", "demo", "reduced", "paper"])
def test_rows_differ_in_the_method_alone(scale):
    configs = _configs(scale)
    selected = {name: configs.pop(f"{name}-selected") for name in ("erm", "group-dro")}
    for name, config in selected.items():
        assert config == replace(configs[name], selection="official")
        assert config.selection_score == "natural_worst_group"
    for name in (
        "weight_decay",
        "selection",
        "lr",
        "batch_size",
        "main_steps",
        "epochs",
        "test_epsilon",
        "model",
        "augment_data",
        "random_init",
        "swaps_augmentation",
        "published_test_start",
    ):
        assert len({getattr(config, name) for config in configs.values()}) == 1, name
    assert len({test_attack(config) for config in configs.values()}) == 1
    assert {config.selection_score for config in configs.values()} == {"attacked_worst_group"}
    assert {config.pixels for config in configs.values()} == {"unit"}
    assert configs["trades-balanced-24"].beta == 4 * configs["gdro-at-sum"].beta == 24.0
    assert configs["gdro-at-official"].weights == "official"
    assert all(
        configs[name].official == name.endswith("-official") for name in configs if name != "gdro-at-official"
    )


def test_official_rows_are_trained_on_images_cropped_and_flipped_as_all_rows(folders):
    rows = {row.name: row for row in PAPER.at("reduced")}
    seen = set()
    for name in ("wat", "wat-official"):
        given = {"scale": "reduced", "run_dir": "x", "root_dir": str(folders)}
        few = {"validation": 10, "fraction": 1.0, "imbalance_ratio": 2.0}
        config, _ = PAPER.resolve({**rows[name].settings, **given, **few})
        train, validation, test = load_groups(config, lambda _: None)
        images = tuple(part.images.numpy().tobytes() for part in (validation, test))
        seen.add((train.info.crop_padding, train.info.flip, images))
    assert [found[:2] for found in seen] == [(4, True)]


# of the published line: no part of the method's, or another name for what the table sets itself
NOT_OF_THE_ROW = {
    *("run_dir", "log_dir", "log_dir_text", "name_index", "device"),
    *("lamda", "tau", "alpha_", "lr_tau", "test_epsilon", "augmentation", "test_start"),
}


def test_the_official_row_of_the_paper_scale_is_the_published_command():
    script = (Path(__file__).parents[2] / "packages/gdro_at/waterbirds.sh").read_text().replace("\\\n", " ")
    words = shlex.split(script.partition('run_expt.py" ')[2].replace('"$@"', ""))
    published = resolve(training_script().parse(words)[0])[0].to_dict()
    row = _configs("paper")["gdro-at-official"]
    config = row.to_dict()
    differ = {name for name in published if name != "seed" and published[name] != config[name]}
    assert differ <= NOT_OF_THE_ROW
    assert (row.random_init, row.test_epsilon) == (1e-4, row.epsilon)
    attack = training_attack(row)
    assert (attack.noise, attack.eps, attack.steps) == (1e-4, 0.00196, 10)


def test_smoke_rows_on_shared_images_wait_for_their_folders(tmp_path, capsys):
    small = ["gdro-at-waterbirds", "gdro-at-celeba", "gdro-at-covid"]
    assert [paper.name for paper in tables_of("gdro-at", "reduced")] == ["gdro-at", *small]
    assert [paper.name for paper in tables_of("gdro-at", "demo")] == ["gdro-at"]
    assert main(["gdro-at-covid", "--scale", "reduced", "--data-dir", str(tmp_path)]) == 0
    assert "no folder covid-ct in --data-dir" in capsys.readouterr().out
    (tmp_path / "cub").mkdir()
    paper = PAPERS["gdro-at-waterbirds"]
    given = {"data_dir": str(tmp_path), "scale": "reduced", "run_dir": "x", "seed": 1}
    assert paper.absent(given) == ""
    for row in paper.at("reduced"):
        config, _ = paper.resolve({**given, **row.settings})
        assert (config.root_dir, config.epochs, config.data) == (str(tmp_path / "cub"), 1, "waterbirds")
    assert "supports no claim" in paper.reading["reduced"]


@pytest.mark.parametrize(("text", "seeds"), [("3", (1, 2, 3)), ("3,", (3,)), ("4,2", (4, 2)), ("", (1,))])
def test_one_number_of_seeds_repeats(text, seeds):
    from benchmarks.reproduce.__main__ import _seeds

    assert _seeds(PAPER, "demo", text) == seeds


def test_no_seeds_is_one_sentence(capsys):
    assert main(["gdro-at", "--scale", "smoke", "--seeds", "0"]) == 2
    assert "--seeds 0 is not possible" in capsys.readouterr().err


def _entry(row, seed, natural, robust, groups):
    bits = {"natural": natural, "robust": robust, "pgd-10": robust}
    bits |= {f"group/{k}": groups == k for k in range(2)}
    return Entry(
        row=row,
        seed=seed,
        settings={"data": "shapes-grouped", "model": "m", "test_epsilon": 0.1},
        images=len(groups),
        record={name: packed(np.asarray(value)) for name, value in bits.items()},
        summary={"groups": [{"name": "a"}, {"name": "b"}]},
        machine={"precision": "float32", "processor": "p", "threads": 1, "torch": "2"},
        software={},
        data={"train": {"images": 1}, "test": {"sha256": "x"}},
        commit="c",
        train_seconds=1.0,
        weighted={"natural": 0.5, "robust": None},
    )


def _results(tmp_path, gains):
    """Return results in which Group-DRO's worst group is better by ``gains`` of 200 images, seed by seed."""
    results = ResultFile(tmp_path / "results.json", "gdro-at", "demo")
    groups = np.arange(400) % 2
    place = np.arange(400) // 2
    for seed, gain in enumerate(gains, start=1):
        erm = (groups == 0) | (place < 40)
        dro = (groups == 0) & (place < 150) | (groups == 1) & (place < 40 + gain)
        results.entries += [
            _entry("erm", seed, erm, erm, groups),
            _entry("group-dro", seed, dro, dro, groups),
        ]
    return results


def test_worst_groups_and_their_difference_by_hand(tmp_path):
    gains = [60, 80, 100]
    results = _results(tmp_path, gains)
    rows = PAPER.at("demo")
    assert groups_of(results.entries[0]).tolist() == (np.arange(400) % 2).tolist()
    main_rows = {row[0]: row for row in group_table(PAPER, results, rows).rows}
    assert main_rows["ERM"][1].startswith("60.0")
    assert main_rows["ERM"][2].startswith("20.0")
    assert main_rows["Group-DRO"][2].startswith("60.0")  # (100 + 120 + 140) / 200 / 3
    table = group_difference_table(PAPER, results, rows)
    line = dict(zip(table.columns, table.rows[0], strict=False))
    half = 4.302652729911275 * 10 / 3**0.5  # t of 2 degrees of freedom, standard deviation of 30, 40, 50
    assert line["natural worst group"] == f"+40.0 [{40 - half:+.1f}, {40 + half:+.1f}]"
    assert len(table.rows) == 1
    assert "need not be the same group" in table.notes[1]


def test_below_200_images_in_a_group_no_p_is_given_of_worst_groups(tmp_path):
    def of(images):
        results = ResultFile(tmp_path / "results.json", "gdro-at", "demo")
        groups = np.arange(images) % 2
        for seed in (1, 2, 3):
            erm = np.arange(images) % 5 < 3
            results.entries += [
                _entry("erm", seed, erm, erm, groups),
                _entry("group-dro", seed, erm | (np.arange(images) < 40 + seed), erm, groups),
            ]
        table = group_difference_table(PAPER, results, PAPER.at("demo"))
        tested = [
            cell != "–" for head, cell in zip(table.columns, table.rows[0], strict=True) if "Holm" in head
        ]
        return tested, "Fewer than 200 images" in " ".join(table.notes)

    assert of(398) == ([True, False, True, False], True)
    assert of(400) == ([True] * 4, False)
    # fewer than that in all
    assert of(198) == ([False] * 4, True)


def test_one_seed_has_an_interval_over_images_and_no_test(tmp_path):
    results = _results(tmp_path, [60])
    table = group_difference_table(PAPER, results, PAPER.at("demo"))
    cell, p = table.rows[0][3:5]
    assert p == "–"
    low, high = (float(part) for part in cell[cell.index("[") + 1 : -1].split(","))
    assert 20 < low < 30 < high < 40


def test_results_on_other_images_are_not_paired(tmp_path):
    results = _results(tmp_path, [60])
    entry = results.entries[1]
    results.entries[1] = _entry("group-dro", 1, *(np.ones(400, bool),) * 2, groups_of(entry))
    object.__setattr__(results.entries[1], "data", {"train": {"images": 1}, "test": {"sha256": "y"}})
    table = group_difference_table(PAPER, results, PAPER.at("demo"))
    assert table.rows == ()
    assert table.notes == ("Left out: Group-DRO minus ERM, seed 1: other test images.",)
    results.entries.pop()
    assert group_difference_table(PAPER, results, PAPER.at("demo")) is None


def test_the_figure_needs_methods_and_shows_seeds():
    with pytest.raises(UserError, match="at least one"):
        group_figure({})
    dot = Dot(Interval(0.5, 0.4, 0.6), (0.45, 0.55))
    figure = group_figure({"ERM": {"natural": (dot, dot), "robust": (dot, dot)}})
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "one seed"
    assert len(figure.axes) == 2


def test_an_epochs_end_may_look_at_as_many_images_of_each_group():
    images = load_dataset("shapes-grouped", None, "validation")
    assert first_of_each_group(images, 0) is images
    part = first_of_each_group(images, 400)
    assert np.bincount(part.groups).tolist() == [100] * 4
    assert part.indices.tolist() == sorted(part.indices.tolist())
    assert np.bincount(first_of_each_group(images, 600).groups).tolist() == [150, 150, 133, 133]
    assert (
        len(
            first_of_each_group(
                SimpleNamespace(
                    labels=images.labels, groups=None, info=images.info, subset=lambda rows: rows
                ),
                40,
            )
        )
        == 20
    )


def test_what_the_table_pins_is_not_told_as_a_flag_without_effect():
    row = next(row for row in PAPER.at("demo") if row.name == "wat-official")
    given = {**row.settings, "scale": "demo", "run_dir": "x"}
    assert not any("--augmentation" in note for note in PAPER.resolve(given)[1])
    assert any("--augmentation" in note for note in PAPER.resolve({**given, "augmentation": "official"})[1])
