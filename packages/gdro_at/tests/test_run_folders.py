"""What a run leaves in its folder, what --overwrite takes away, and what is refused before there is one."""

from __future__ import annotations

import json
from pathlib import Path

from expt_runs import WATERBIRDS, finished
from published_folders import write_waterbirds

from gdro_at.plan import GdroPlan

OF_THE_CORE = {"config.json", "metrics.jsonl", "timings.jsonl", "finished.json", "best.pt", "gallery.npz"}


def test_overwriting_leaves_no_file_of_the_former_run(expt, birds):
    words = [*WATERBIRDS, birds, "--run-dir", "run"]
    done = expt(*words, "--save_step", "1", "--name_index", "old[1]", "--log_dir_text", "l.txt")
    assert done.code == 0, done.err
    run = Path("run")
    settings = json.loads((run / "config.json").read_text(encoding="utf8"))["config"]
    patterns = GdroPlan().published_files(settings)
    written = {path for path in run.iterdir() if path.is_file()} - {run / name for name in OF_THE_CORE}
    assert written == {path for pattern in patterns for path in run.glob(pattern)}
    assert run / "old[1]1_model.pth" in written
    for mine in ("mine.pth", "old[1]_my_model.pth", "train.csv"):
        (run / mine).write_text("x")
    few = ["--no-save_best", "--no-save_last", "--save_step", "5", "--n_epochs", "1"]
    done = expt(*words, *few, "--overwrite")
    assert done.code == 0, done.err
    left = {path.name for path in run.iterdir() if path.is_file()} - OF_THE_CORE
    assert left == {
        *("unit0_model.pth", "unittrain.csv", "unitval.csv", "unittest.csv", "unitFlog.txt"),
        *("counts.txt", "test.json", "mine.pth", "old[1]_my_model.pth", "train.csv"),
    }


def test_a_damaged_record_names_no_files_to_remove():
    assert list(GdroPlan().published_files({})) == []
    assert list(GdroPlan().published_files({"name_index": "unit"})) == []


def test_a_run_on_the_default_folder_goes_on_from_anywhere(expt, tmp_path, monkeypatch):
    write_waterbirds(Path("cub"))
    words = [word for word in WATERBIRDS if word != "--root_dir"]
    done = expt(*words, "--run-dir", "run")
    assert done.code == 0, done.err
    run = Path("run").absolute()
    result = finished(run)
    (run / "finished.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = expt("--resume", run)
    assert done.code == 0, done.err
    assert finished(run) == result


def test_no_epoch_is_one_sentence_and_no_run(expt, birds):
    done = expt(*WATERBIRDS, birds, "--n_epochs", "0", "--run-dir", "run")
    assert done.code == 2
    assert "leave no step to train" in done.err
    assert not Path("run").exists()


def test_too_few_validation_images_to_halve_are_one_sentence(expt):
    write_waterbirds(Path("cub"), ((4, 2, 2, 4), (1, 1, 1, 1), (1, 1, 1, 1)))
    done = expt(*WATERBIRDS, "cub", "--train_type", "erm", "--is_combine", "--run-dir", "run")
    assert done.code == 2
    assert "no group has two (images in all: 4)" in done.err
    assert not Path("run").exists()
