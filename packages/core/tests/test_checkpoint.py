"""Checkpoints are whole or not there; damage is noticed; nothing foreign is unpickled."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from robust_core import storage
from robust_core.errors import UserError
from robust_core.training.checkpoint import CheckpointStore
from robust_core.training.rundir import RunDirectory, run_folder


def state(step):
    return {"step": step, "model": {"w": torch.full((3,), float(step))}}


def test_two_newest_are_kept_and_the_newest_is_loaded(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3):
        store.save(state(step), step)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step-00000002.pt", "step-00000003.pt"]
    assert store.latest()["step"] == 3
    assert store.latest_step() == 3
    assert store.latest_path() == tmp_path / "step-00000003.pt"


def test_no_checkpoint_is_none(tmp_path):
    assert CheckpointStore(tmp_path).latest() is None
    assert CheckpointStore(tmp_path).latest_step() == 0
    assert CheckpointStore(tmp_path).latest_path() is None


def test_a_file_that_the_manifest_does_not_name_is_no_checkpoint(tmp_path):
    torch.save(state(9), tmp_path / "step-00000009.pt")
    assert CheckpointStore(tmp_path).latest() is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "zero"])
def test_damage_is_named_and_the_checkpoint_before_is_taken(tmp_path, damage):
    store = CheckpointStore(tmp_path)
    store.save(state(1), 1)
    path = store.save(state(2), 2)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    elif damage == "truncate":
        del content[-100:]
    else:
        content[-200:] = bytes(200)
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(bytes(content))
    said = []
    assert store.latest(say=said.append)["step"] == 1
    (line,) = said
    assert line.startswith(f"warning: {path} is damaged (")
    assert line.endswith("); falling back to the checkpoint of step 1")


def test_a_damaged_checkpoint_is_one_plain_line_for_the_user(tmp_path, capsys):
    store = CheckpointStore(tmp_path)
    store.save(state(1), 1)
    store.save(state(2), 2).unlink()
    store.latest()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("warning: ")
    assert told.err.count("\n") == 1
    assert ".py" not in told.err


def test_no_whole_checkpoint_is_one_sentence(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(state(1), 1).write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"No checkpoint in .* is whole \(step-00000001\.pt: 8 bytes instead"):
        store.latest()


class Harmful:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return type(self.trace).mkdir, (self.trace,)


def test_a_checkpoint_that_is_a_pickle_of_objects_is_refused(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    path = store.save(state(1), 1)
    path.write_bytes(pickle.dumps(Harmful(tmp_path / "executed")))
    manifest = store.folder / "manifest.json"
    entries = json.loads(manifest.read_text())
    entries["checkpoints"][0].update(sha256=storage.file_digest(path), bytes=path.stat().st_size)
    manifest.write_text(json.dumps(entries))
    with pytest.raises(UserError, match="pickle of Python objects, not a plain checkpoint, and was refused"):
        store.latest()
    assert not (tmp_path / "executed").exists()


ENTRY = {"file": "step-00005000.pt", "step": 5000, "sha256": "0" * 64, "bytes": 9}
MANIFESTS = {
    "cut short": b"{",
    "empty": b"",
    "no UTF-8": b'{"checkpoints": "\xff"}',
    "a number": b'{"checkpoints": 3}',
    "a list": b"[1]",
    "no key": b"{}",
    "names nothing": b'{"checkpoints": []}',
    "no entry": b'{"checkpoints": [1]}',
    **{
        f"without {key}": json.dumps({"checkpoints": [{k: ENTRY[k] for k in ENTRY if k != key}]}).encode()
        for key in ENTRY
    },
    **{
        f"{key} {value!r}": json.dumps({"checkpoints": [{**ENTRY, key: value}]}).encode()
        for key, value in [
            *(("step", "q"), ("step", None), ("step", True), ("step", 5001), ("step", -1)),
            *(("bytes", "9"), ("sha256", 3), ("file", None), ("file", "../step-00005000.pt")),
        ]
    },
}


@pytest.mark.parametrize("content", [None, *MANIFESTS.values()], ids=["missing", *MANIFESTS])
def test_without_a_sound_manifest_good_checkpoints_are_left_alone(tmp_path, content):
    store = CheckpointStore(tmp_path)
    store.save({"a": 1}, 5000)
    store.save({"a": 1}, 6000)
    manifest = tmp_path / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_bytes(content)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for use in (store.latest, store.latest_step, lambda: store.save({"a": 2}, 7000)):
        with pytest.raises(UserError) as refused:
            use()
        told = str(refused.value)
        assert str(manifest) in told
        assert "step-N.pt" in told
        assert "untouched" in told
        assert "restore manifest.json" in told
        assert "--run-dir" in told
        assert told.count(". ") == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_manifest_that_may_not_be_read_is_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(UserError, match=r"manifest\.json' cannot be read"):
        store.latest()


def test_a_kill_in_the_first_checkpoint_starts_again(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(state(3), 3)
    (tmp_path / "manifest.json").unlink()  # renamed, but not yet named
    assert store.latest() is None
    assert store.latest_step() == 0
    store.save(state(3), 3)
    assert store.latest()["step"] == 3


def test_a_kill_in_a_later_checkpoint_keeps_the_one_before(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(state(1), 1)
    manifest = (tmp_path / "manifest.json").read_bytes()
    store.save(state(2), 2)
    (tmp_path / "manifest.json").write_bytes(manifest)
    assert store.latest()["step"] == 1
    store.save(state(2), 2)
    assert store.latest()["step"] == 2


@pytest.mark.parametrize("content", [None, b"{"])
def test_a_manifest_without_checkpoints_loses_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    store.save(state(1), 1)
    assert store.latest()["step"] == 1


@pytest.fixture
def full_disk():
    """Let no file grow beyond a kilobyte: a real failed write, whichever library makes it."""
    resource = pytest.importorskip("resource", reason="limits of file sizes exist on POSIX systems only")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def test_no_space_keeps_the_checkpoint_before(tmp_path, full_disk):
    store = CheckpointStore(tmp_path)
    store.save(state(1), 1)
    with full_disk(), pytest.raises(UserError, match=r"No space left to write .*step-00000002"):
        store.save({**state(2), "more": torch.zeros(1000)}, 2)
    assert store.latest()["step"] == 1
    assert not list(tmp_path.glob(".*tmp"))


def test_no_space_for_a_line_of_metrics(tmp_path, full_disk):
    run = RunDirectory.create(tmp_path, {"config": {}})
    with full_disk(), pytest.raises(UserError, match="No space left"):
        run.log({"kind": "step", "step": 1, "text": "x" * 2000})
    run.cut_back(0)
    assert run.metrics() == []


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        storage.write_json(tmp_path / "x.json", {})
    assert not list(tmp_path.iterdir())
    storage.settle(tmp_path / "x.jsonl")  # nothing to bring to the disk
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="No space left"):
        storage.settle(tmp_path / "x.jsonl")


def test_a_path_through_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*choose another --run-dir"):
        storage.write_json(tmp_path / "file" / "run" / "config.json", {})


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_write_that_fails_is_one_sentence(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    reason = re.escape(f"({os.strerror(number)}); choose another --run-dir")
    with pytest.raises(UserError, match=f"Cannot write .*{reason}"):
        storage.write_whole(tmp_path / "x.json", "text")


def test_a_run_is_not_overwritten_unasked(tmp_path):
    RunDirectory.create(tmp_path / "run", {"config": {"a": 1}})
    with pytest.raises(UserError, match="already holds a run"):
        RunDirectory.create(tmp_path / "run", {"config": {"a": 2}})
    (tmp_path / "run/mine.txt").write_text("kept")
    (tmp_path / "run/metrics.jsonl").write_text("{}\n")
    RunDirectory.create(tmp_path / "run", {"config": {"a": 2}}, overwrite=True)
    assert RunDirectory.open(tmp_path / "run").record["config"] == {"a": 2}
    assert (tmp_path / "run/mine.txt").exists()
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("damaged", "left"), [(False, {"mine.pth", "b-1.pth"}), (True, {"mine.pth", "a-1.pth"})]
)
def test_what_a_paper_wrote_is_overwritten_too(tmp_path, damaged, left):
    run = RunDirectory.create(tmp_path / "run", {"config": {"name": "a"}})
    for name in ("a-1.pth", "b-1.pth", "mine.pth"):
        (run.path / name).write_text("x")
    (run.path / "a-folder.pth").mkdir()
    if damaged:
        (run.path / "config.json").write_text("{")

    def published(settings):
        return [f"{settings.get('name', 'b')}-*.pth"]

    RunDirectory.create(run.path, {"config": {"name": "b"}}, overwrite=True, published=published)
    assert {path.name for path in run.path.iterdir()} == {"config.json", "a-folder.pth", *left}


def ended(path):
    """Return a run with all that a run leaves behind."""
    run = RunDirectory.create(path, {"config": {"a": 1}})
    run.checkpoints.save(state(1), 1)
    run.log({"step": 1})
    run.log_timing({"step": 1})
    for name in (
        "best.pt",
        "gallery.npz",
        "a-1.pth",
        "tensorboard/events",
        "report/x",
        "adaptive/x",
        "evaluation/x",
    ):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("x")
    run.finish({})
    return run


def overwrite(path):
    return RunDirectory.create(
        path, {"config": {"a": 2}}, overwrite=True, published=lambda settings: ["a-*.pth"] if settings else []
    )


def test_overwriting_leaves_nothing_of_a_run(tmp_path):
    run = overwrite(ended(tmp_path / "run").path)
    assert [path.name for path in run.path.iterdir()] == ["config.json"]


def test_an_overwriting_killed_at_any_removal_is_made_good_by_the_next(tmp_path, monkeypatch):
    removed = []

    def killed_after(count, remove):
        def change(*arguments, **named):
            if len(removed) == count:
                raise KeyboardInterrupt
            removed.append(arguments[0])
            remove(*arguments, **named)

        return change

    for count in range(100):
        path = ended(tmp_path / str(count)).path
        removed.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", killed_after(count, Path.unlink))
            patched.setattr(shutil, "rmtree", killed_after(count, shutil.rmtree))
            try:
                overwrite(path)
            except KeyboardInterrupt:
                pass
            else:
                break
        # still the old run, and no longer one that has come to its end
        assert RunDirectory.open(path).record["config"] == {"a": 1}
        assert not RunDirectory.open(path).is_finished or count == 0
        assert [file.name for file in overwrite(path).path.iterdir()] == ["config.json"]
    assert count == 12


def test_what_cannot_be_removed_is_one_sentence(tmp_path, monkeypatch):
    path = ended(tmp_path / "run").path

    def fail(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", fail)
        with pytest.raises(
            UserError, match=r"'.*/report' of the former run cannot be removed \(Permission denied"
        ):
            overwrite(path)
    assert RunDirectory.open(path).checkpoints.latest_step() == 1
    (path / "checkpoints").rename(tmp_path / "elsewhere")
    (path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"checkpoints' of the former run cannot be removed \(.*symbolic link"
    ):
        overwrite(path)


def test_checkpoints_without_a_record_are_not_adopted(tmp_path):
    path = ended(tmp_path / "run").path
    (path / "config.json").unlink()
    with pytest.raises(UserError, match=r"'.*run' holds the checkpoints of a run without its config\.json; "):
        RunDirectory.create(path, {"config": {"a": 2}})
    assert (path / "checkpoints/manifest.json").exists()
    assert overwrite(path).checkpoints.latest() is None


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        RunDirectory.open(tmp_path)
    for content in (b"{", b"[]", b"{}", b'{"config": 3}', b'{"config": null}', b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(
            UserError, match=r"config\.json' is damaged .*; restore it, or start the run anew"
        ):
            RunDirectory.open(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json' cannot be read \(Is a directory\)"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize("name", ["metrics", "timings"])
def test_lines_are_cut_back_to_the_checkpoint(tmp_path, name):
    run = RunDirectory.create(tmp_path, {"config": {}})
    log = {"metrics": run.log, "timings": run.log_timing}[name]
    for step in (1, 2, 3):
        log({"kind": "step", "step": step})
    with (tmp_path / f"{name}.jsonl").open("a") as stream:
        stream.write('{"kind": "st')
    run.cut_back(2)
    log({"kind": "step", "step": 3})
    assert [line["step"] for line in getattr(run, name)()] == [1, 2, 3]


ODD_LINES = {
    "garbage": b"x#!",
    "blank": b"",
    "cut short": b'{"kind": "st',
    "no object": b"[1]",
    "no step": b'{"kind": "step"}',
    "odd step": b'{"step": "q"}',
    "no UTF-8": b'{"step": 1, "kind": "\xff"}',
}


@pytest.mark.parametrize("odd", ODD_LINES.values(), ids=ODD_LINES)
@pytest.mark.parametrize("name", ["metrics", "timings"])
def test_a_damaged_line_is_named(tmp_path, name, odd):
    run = RunDirectory.create(tmp_path, {"config": {}})
    path = tmp_path / f"{name}.jsonl"
    content = b'{"step": 1}\n' + odd + b'\n{"step": 2}\n'
    path.write_bytes(content)
    for use in (getattr(run, name), lambda: run.cut_back(1)):
        with pytest.raises(UserError) as refused:
            use()
        assert str(refused.value).startswith(f"Line 2 of '{path}' is damaged (")
        assert "mend or remove that line" in str(refused.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("torn", [b'{"st', b"\xc3", b"\0\0", b"x#!"])
def test_an_unfinished_last_line_is_left_out(tmp_path, torn):
    run = RunDirectory.create(tmp_path, {"config": {}})
    run.metrics_path.write_bytes(b'{"step": 1,  "loss": NaN}\n' + torn)
    assert len(run.metrics()) == 1
    run.cut_back(1)
    assert run.metrics_path.read_bytes() == b'{"step": 1,  "loss": NaN}\n'


def test_lines_that_may_not_be_read_are_one_sentence(tmp_path):
    run = RunDirectory.create(tmp_path, {"config": {}})
    run.metrics_path.mkdir()
    with pytest.raises(UserError, match=r"'.*metrics\.jsonl' cannot be read"):
        run.cut_back(1)


def test_finish_marks_the_run(tmp_path):
    run = RunDirectory.create(tmp_path, {"config": {}})
    assert not run.is_finished
    run.finish({"accuracy": 0.5})
    assert run.is_finished
    assert json.loads((tmp_path / "finished.json").read_text()) == {"accuracy": 0.5}


@pytest.mark.parametrize("selection", ["last", "best", "official", None])
def test_a_run_gives_the_weights_that_it_chose(tmp_path, selection):
    config = {} if selection is None else {"selection": selection}
    run = RunDirectory.create(tmp_path, {"config": config})
    assert run.chosen_weights() is None
    newest = run.checkpoints.save(state(4), 4)
    assert run.chosen_weights() == (newest if selection == "last" else None)
    (tmp_path / "best.pt").touch()
    assert run.chosen_weights() == (newest if selection == "last" else tmp_path / "best.pt")


def test_a_checkpoint_belongs_to_the_run_above_it(tmp_path, monkeypatch):
    assert run_folder(tmp_path / "run/checkpoints/step-1.pt") == tmp_path / "run"
    assert run_folder(tmp_path / "run/model-1.pt") == tmp_path / "run"
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path / "checkpoints")
    assert run_folder("step-1.pt") == tmp_path
