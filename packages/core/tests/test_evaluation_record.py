"""The record per image: saved, loaded, and every summary recomputed from it."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from robust_core.errors import UserError
from robust_core.evaluation import (
    Evaluation,
    Member,
    MemberRun,
    Protocol,
    compare,
    load_evaluation,
    paired_difference,
    wilson,
)

MEMBERS = (
    Member("pgd-20", "pgd", {"eps": 8 / 255, "norm": "linf", "step_size": 2 / 255, "steps": 20}),
    Member("mma", "mma", {"eps": 8 / 255}),
    Member("autoattack", "autoattack", {"eps": 8 / 255}),
)


def record(count=400, grouped=True, seed=0):
    rng = np.random.default_rng(seed)
    natural = rng.random(count) < 0.9
    last = {name: rng.random(count) < 0.6 for name in ("pgd-20", "mma")}
    attacked = {"pgd-20": np.ones(count, dtype=bool), "mma": np.arange(count) < count // 2}
    return Evaluation(
        protocol=Protocol("part", MEMBERS),
        natural=natural,
        last={name: last[name] & attacked[name] for name in last},
        robust={name: natural & last[name] & attacked[name] for name in last},
        attacked=attacked,
        labels=np.arange(count) % 4,
        groups=np.arange(count) // 300 if grouped else None,
        indices=np.arange(count) + 7,
        runs={
            "pgd-20": MemberRun(count, 21 * count, 20 * count, 5 * count, 1.5),
            "mma": MemberRun(count // 2, 30 * count, 30 * count, count, 2.5, flags=("a warning",)),
            "autoattack": MemberRun(remedy="missing: pip install 'robust-core[eval]'."),
        },
        class_names=("a", "b", "c", "d", "never seen"),
        group_names=("land", "water") if grouped else None,
        data={"name": "toy", "split": "test"},
        seconds=4.0,
    )


@pytest.mark.parametrize("grouped", [True, False])
def test_what_is_loaded_equals_what_was_saved(tmp_path, grouped):
    saved = record(grouped=grouped)
    path = saved.save(tmp_path / "evaluation", "final")
    loaded = load_evaluation(tmp_path / "evaluation", "final")
    assert path == tmp_path / "evaluation" / "final.json"
    assert sorted(p.name for p in path.parent.iterdir()) == ["final.json", "final.npz"]
    assert loaded.runs == saved.runs
    assert loaded.protocol == saved.protocol
    assert list(loaded.robust) == ["pgd-20", "mma"]
    for mine, theirs in ((saved.last, loaded.last), (saved.robust, loaded.robust)):
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert loaded.summary() == saved.summary() == json.loads(path.read_text())["summary"]


def test_summary_is_recomputed_from_the_record_not_copied(tmp_path):
    path = record().save(tmp_path, "final")
    document = json.loads(path.read_text())
    document["summary"] = {"natural_accuracy": 2.0}
    path.write_text(json.dumps(document))
    assert load_evaluation(tmp_path, "final").summary() == record().summary()


def test_summary_holds_the_figures_of_the_record():
    evaluation = record()
    summary = evaluation.summary()
    worst = (
        evaluation.natural
        & evaluation.robust["pgd-20"]
        & (evaluation.robust["mma"] | ~evaluation.attacked["mma"])
    )
    assert summary["robust_accuracy"] == worst.mean()
    assert summary["robust_interval"] == wilson(int(worst.sum()), 400).ends()
    assert summary["natural_accuracy"] == evaluation.natural.mean()
    assert summary["members"]["mma"]["last_accuracy"] == evaluation.last["mma"][:200].mean()
    assert summary["members"]["mma"]["flags"] == ["a warning"]
    assert summary["members"]["mma"]["forward_per_image"] == 60
    assert summary["members"]["autoattack"]["status"] == "not run"
    assert not summary["complete"]
    assert "weakness of an attack" in summary["note"]


def test_summary_per_class_and_group():
    evaluation = record()
    summary = evaluation.summary()
    robust = evaluation.worst_case()
    for number, row in enumerate(summary["classes"][:4]):
        assert row["robust_accuracy"] == robust[evaluation.labels == number].mean()
        assert row["images"] == 100
        assert not row["enough_images"]
    assert summary["classes"][4]["images"] == 0
    assert summary["classes"][4]["natural_accuracy"] is None
    accuracies = [row["robust_accuracy"] for row in summary["classes"][:4]]
    assert summary["worst_class"]["robust_accuracy"] == min(accuracies)
    assert summary["worst_class"]["robust_name"] == "abcd"[int(np.argmin(accuracies))]
    low, high = summary["worst_class"]["robust_interval"]
    assert low < min(accuracies) < high
    assert [row["enough_images"] for row in summary["groups"]] == [True, False]
    assert summary["worst_group"]["natural_name"] in ("land", "water")
    assert record(grouped=False).summary()["worst_group"] is None


def test_groups_without_names_are_numbered():
    summary = replace(record(), group_names=None).summary()
    assert [row["name"] for row in summary["groups"]] == ["0", "1"]


REMEDY = r"delete finished\.json of the run and continue it with --resume"


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_missing_records_are_named(tmp_path, suffix):
    record().save(tmp_path, "final").with_suffix(suffix).unlink()
    with pytest.raises(UserError, match=rf"No evaluation record .*final\{suffix}.*{REMEDY}"):
        load_evaluation(tmp_path, "final")


def changed(**changes):
    return lambda document: json.dumps({**document, **changes})


DAMAGES = {
    "cut short": lambda document: "{",
    "empty": lambda document: "",
    "a list": lambda document: "[1]",
    "no keys": lambda document: "{}",
    "runs are a list": changed(runs=[]),
    "a run is a number": changed(runs={"pgd-20": 3}),
    "a run of a member without arrays": changed(runs={"apgd": {"flags": []}}),
    "no classes": changed(class_names=3),
    "no protocol": changed(protocol="part"),
    "members twice": lambda document: json.dumps(
        {**document, "protocol": {"name": "part", "members": document["protocol"]["members"] * 2}}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_records_are_named(tmp_path, damage):
    path = record().save(tmp_path, "final")
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(UserError, match=rf"final\.json cannot be read .*{REMEDY}"):
        load_evaluation(tmp_path, "final")


def flip(content):
    return bytes(byte ^ 4 if index == len(content) // 3 else byte for index, byte in enumerate(content))


def archive(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def shortened(content):
    with np.load(io.BytesIO(content)) as stored:
        return archive(**{**stored, "natural": stored["natural"][:7]})


def numbered(content):
    with np.load(io.BytesIO(content)) as stored:
        return archive(**{**stored, "robust/mma": stored["robust/mma"].astype(float)})


ARCHIVES = {
    "two letters": lambda content: b"PK",
    "empty": lambda content: b"",
    "flipped": flip,
    "cut short": lambda content: content[:-40],
    "other arrays": lambda content: archive(x=np.zeros(3)),
    "fewer images": shortened,
    "no booleans": numbered,
}


@pytest.mark.parametrize("damage", ARCHIVES.values(), ids=ARCHIVES)
def test_damaged_arrays_are_named(tmp_path, damage):
    path = record().save(tmp_path, "final").with_suffix(".npz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"final\.json cannot be read .*{REMEDY}"):
        load_evaluation(tmp_path, "final")


def test_arrays_of_another_save_do_not_fit(tmp_path):
    """A kill between the two files of a record that replaces another."""
    old, new = (
        record().save(tmp_path, "old"),
        replace(record(), natural=~record().natural).save(tmp_path, "new"),
    )
    new.with_suffix(".npz").replace(old.with_suffix(".npz"))
    with pytest.raises(UserError, match=rf"old\.json cannot be read .*{REMEDY}"):
        load_evaluation(tmp_path, "old")


def test_records_by_name():
    evaluation = record()
    assert evaluation.correct("natural") is evaluation.natural
    assert np.array_equal(evaluation.correct(), evaluation.worst_case())
    assert evaluation.correct("last/pgd-20") is evaluation.last["pgd-20"]
    for which in ("robust/mma", "last/autoattack", "nothing"):
        with pytest.raises(
            UserError, match=f"no record '{which}'.*natural, robust, last/pgd-20, robust/pgd-20"
        ):
            evaluation.correct(which)


@pytest.mark.parametrize("which", ["natural", "robust", "last/pgd-20"])
def test_methods_are_compared_by_seed_and_image(which):
    first, second = [record(seed=s) for s in (0, 1)], [record(seed=s) for s in (2, 3)]
    records = [np.stack([e.correct(which) for e in side]) for side in (first, second)]
    assert compare(first, second, which) == paired_difference(*records)
    assert compare(first, second, which).over == "seeds"
    assert compare(first[:1], second[:1], which).over == "images"


def test_other_images_or_attacks_are_not_compared():
    evaluation = record()
    stronger = (replace(MEMBERS[0], settings={"eps": 0.1}), *MEMBERS[1:])
    others = {
        "data": replace(evaluation, data={"name": "other"}),
        "images": replace(evaluation, indices=evaluation.indices + 1),
        "labels": replace(evaluation, labels=(evaluation.labels + 1) % 4),
        "attacks": replace(evaluation, protocol=Protocol("part", stronger)),
    }
    for what, other in others.items():
        with pytest.raises(UserError, match=f"different {what}"):
            compare([evaluation], [other])
    assert compare([evaluation], [others["attacks"]], "natural").p_value == 1.0
    with pytest.raises(UserError, match="1 and 2 evaluations"):
        compare([evaluation], [evaluation, evaluation])
