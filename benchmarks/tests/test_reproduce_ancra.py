"""ANCRA's rows from training to the table, with what attacks that know the defence make of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from benchmarks.reproduce import ancra as tables_of_ancra
from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce.costs import adaptive_cost, cost_table
from benchmarks.reproduce.engine import Reproduction
from benchmarks.reproduce.papers import PAPERS, tables_of
from benchmarks.reproduce.results import ResultFile
from runs import undrawn

from ancra.examine import EXAMINATIONS
from robust_core.evaluation import Sizes, load_evaluation, load_examination
from robust_core.evaluation.work import TAKEN_OVER
from robust_core.training import RunDirectory

SMALL = [
    *("--model", "resnet8-s2", "--batch-size", "20", "--natural-steps", "1", "--warm-up-steps", "1"),
    *("--main-steps", "1", "--num-steps", "1", "--validation", "10", "--curve-images", "0"),
    *("--test-images", "20", "--data", "cifar10", "--threads", "1", "--precision", "float32", "--jobs", "1"),
]
SHORT = replace(
    EXAMINATIONS["smoke"], sizes=Sizes(cascade=12, alone=4, long=4, precise=0, long_steps=3), sanity_images=0
)


@pytest.fixture(scope="module")
def table(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce")
    words = ["ancra", "--scale", "smoke", "--rows", "trades,ancra-trades", "--out", str(out), *SMALL]
    words += ["--data-dir", str(folders)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("robust_core.session.write_report", undrawn)
        patched.setattr("ancra.examine.write_report", undrawn)
        patched.setattr(tables_of_ancra, "EXAMINATIONS", {"smoke": SHORT})
        assert main(words) == 0
    return out / "ancra/smoke", words


def test_every_row_is_attacked_with_knowledge_of_its_defence(table):
    folder, _ = table
    entries = {entry["row"]: entry for entry in json.loads((folder / "results.json").read_text())["entries"]}
    for entry in entries.values():
        assert entry["examined"]["cascade"]["images"] == 12
        assert {"adaptive", "attacked/adaptive"} <= set(entry["record"])
    assert set(entries["ancra-trades"]["examined"]["sources"]) == {"TRADES"}
    assert entries["trades"]["examined"]["sources"] == {}
    text = (folder / "table.md").read_text()
    for words in (
        "| adaptive |",
        "first 12 images",
        "no worst case is claimed",
        "published AutoAttack",
        "59.70",
    ):
        assert words in text
    assert "attacks that know the network" in text
    cost = json.loads((folder / "table.json").read_text())["tables"][-1]
    assert cost["columns"][-1] == "adaptive"
    assert all(row[-1].endswith(" s") for row in cost["rows"])
    assert "Not transferred from, for want of such a network: AT (2 of 2 runs), another seed (2 of 2" in text
    assert (folder / "attacks.png").stat().st_size > 5000
    assert (folder / "attacks.pdf").read_bytes()[:4] == b"%PDF"


def test_the_cost_of_the_worst_case_is_that_of_all_its_parts(table):
    folder, _ = table
    entry = ResultFile(folder / "results.json", "ancra", "smoke").find("trades", 1)
    found = load_examination(folder / "trades-seed1/adaptive")
    runs = [run for part in (found.cascade, found.alone, found.long) for run in part.runs.values()]
    mine = sum(run.forward for run in runs if TAKEN_OVER not in run.flags)
    plain = load_evaluation(folder / "trades-seed1/evaluation", "pgd").runs.values()
    expected = (mine + sum(run.forward * 12 / run.images for run in plain)) / 12
    assert adaptive_cost(entry)["forward_per_image"] == pytest.approx(expected)
    notes = cost_table(PAPERS["ancra"], ResultFile(folder / "results.json", "ancra", "smoke"), []).notes
    assert "every part of the examination and the plain attacks" in notes[-1]
    # results of before count the cascade
    cost = entry.examined.pop("cost")
    members = entry.examined["cascade"]["members"].values()
    assert adaptive_cost(entry)["seconds"] == pytest.approx(sum(member["seconds"] for member in members))
    assert adaptive_cost(entry)["forward_per_image"] < cost["forward_per_image"]


@pytest.mark.parametrize("seeds", [(2,), (1, 2), (1, 2, 3)])
def test_networks_to_transfer_from_do_not_depend_on_the_seeds_of_the_call(tmp_path, seeds):
    work = Reproduction(PAPERS["ancra"], "reduced", tmp_path, {"data_dir": str(tmp_path)})
    rows = {row.name: row for row in PAPERS["ancra"].at("reduced")}
    for name, seed in (("at", 1), ("trades", 1), ("trades", 2), ("ra", 1), ("ra", 2), ("ra", 3)):
        config = work.configure(rows[name], seed).to_dict()
        if (name, seed) == ("ra", 3):
            config["epochs"] = 1  # of another call, with other settings
        RunDirectory.create(tmp_path / f"{name}-seed{seed}", {"config": config})
        (tmp_path / f"{name}-seed{seed}/finished.json").write_text("{}")
    found = work.finished(seeds)
    assert set(found) == {("at", 1), ("trades", 1), ("trades", 2), ("ra", 1), ("ra", 2)}
    names = {title: path.name for title, path in PAPERS["ancra"].sources(("ra", 2), found).items()}
    assert names == {"AT": "at-seed1", "TRADES": "trades-seed2", "another seed": "ra-seed1"}


def test_rows_share_beginnings_with_their_own_kind_of_network(table):
    folder, _ = table
    # plain networks and those with attention begin alike in nothing
    assert not (folder / "shared").exists()


def test_what_was_examined_is_not_examined_again(table, capsys):
    _, words = table
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.count("not run again") == 2
    assert "attacks that know the defence" not in told


def test_networks_trained_since_make_the_examination_go_on(table, monkeypatch, capsys):
    folder, words = table
    path = folder / "results.json"
    kept = path.read_text()
    results = json.loads(kept)
    for entry in results["entries"]:
        if entry["row"] == "ancra-trades":
            entry["examined"]["sources"] = {"TRADES": "another network"}
    path.write_text(json.dumps(results))
    asked = []
    monkeypatch.setattr(
        tables_of_ancra, "examine_run", lambda run, sources, effort: asked.append((run.name, set(sources)))
    )
    assert main(words) == 0
    assert asked == [("ancra-trades-seed1", {"TRADES"})]
    assert "ANCRA-TRADES, seed 1] attacks that know the defence" in capsys.readouterr().out
    path.write_text(kept)


def test_transfers_come_from_at_from_trades_and_from_another_seed():
    runs = {(row, seed): f"{row}{seed}" for row in ("trades", "ra") for seed in (1, 2)} | {("at", 1): "at1"}
    sources = PAPERS["ancra"].sources
    assert sources(("ra", 2), runs) == {"AT": "at1", "TRADES": "trades2", "another seed": "ra1"}
    assert sources(("trades", 1), runs) == {"AT": "at1", "another seed": "trades2"}
    assert sources(("at", 1), {("at", 1): "at1"}) == {}


def test_the_published_tables_are_all_there():
    names = ["ancra", "ancra-cifar100", "ancra-wrn", "ancra-tiny"]
    assert [paper.name for paper in tables_of("ancra", "paper")] == names
    assert [paper.name for paper in tables_of("all", "demo")] == ["part", "ancra", "gdro-at"]
    figures = {
        (name, row.name): dict(row.published) for name in names for row in PAPERS[name].rows if row.published
    }
    assert figures["ancra", "ancra-mart"] == {"natural": 84.88, "autoattack": 59.60}
    assert figures["ancra-wrn", "ancra-34"] == {"natural": 83.19, "autoattack": 66.28}
    assert figures["ancra-tiny", "zhang"] == {"natural": 45.26, "pgd-40": 18.42}
    assert len(figures) == 5 + 4 + 6 + 4
    for name in names:
        for row in PAPERS[name].at("paper"):
            if not row.cited:
                config, _ = PAPERS[name].resolve({**row.settings, "scale": "paper", "run_dir": "x"})
                assert config.epochs == 120


def test_a_scale_without_rows_is_one_sentence(capsys):
    assert main(["ancra-wrn", "--scale", "demo"]) == 2
    assert "has no rows at scale demo" in capsys.readouterr().err
