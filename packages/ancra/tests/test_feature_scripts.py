"""``feature_distance.py``, ``draw_umap.py`` and ``draw_hist.py``: the whole chain, what is measured, every flag."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ancra import distances, histograms, projection
from ancra.checkpoint import SubjectConfig, load_subject
from ancra.config import ALL_STRATEGIES
from ancra.distances import QUANTITIES, pair_distances
from ancra.inspection import InspectionScript
from ancra.negatives import candidates
from robust_core.models import pooled_features

pytestmark = pytest.mark.usefixtures("drawn_once")

KEYS = [quantity.key for quantity in QUANTITIES]
QUICK = ["--num-steps", "2", "--target_label", "3"]


@pytest.fixture(scope="module")
def subject(trained):
    given = {"test_images": 40}
    return load_subject(str(trained / "ancra"), SubjectConfig(**given), given, flag="", say=lambda _: None)


def given_to(module, kind, *words):
    script = InspectionScript("test", "", "", kind, lambda _c, _g: None, module.PUBLISHED_FLAGS)
    return kind(**script.parse(words))


def measured(folder, name, label=3):
    return {key: np.load(folder / f"{label}-{name}-{key}.npy", allow_pickle=False) for key in KEYS}


def test_the_chain_of_the_three_scripts(in_process, runs, umap):
    for run, strategy in (("ancra", "random_adv"), ("trades", "random")):
        words = ["--model_dir", runs / run, "--dataset", "shapes", *QUICK, "--strategy", strategy]
        done = in_process(distances.main, words)
        assert done.code == 0, done.err
    arrays = measured(Path("three"), "ANCRA-TRADES")
    assert all(values.dtype == np.float32 and values.shape == (4,) for values in arrays.values())
    record = json.loads(Path("three/3-TRADES.json").read_text())
    assert (record["class"], record["network"]["attention"]) == ("triangle", "none")
    for key, values in measured(Path("three"), "TRADES").items():
        told = record["statistics"][key]
        exact = (values.max(), values.min(), values.mean(), values.var(ddof=1))
        assert [told[name] for name in ("max", "min", "mean", "var")] == pytest.approx(exact, rel=1e-5)
        title = next(quantity.title for quantity in QUANTITIES if quantity.key == key)
        line = f"{title} max: {told['max']:.6f}, min: {told['min']:.6f}, mean: {told['mean']:.6f}"
        assert line in done.out
        assert line in (runs / "trades/eval.log").read_text()

    drawn = in_process(projection.main, ["--model_dir", runs / "ancra", "--dataset", "shapes"])
    assert drawn.code == 0, drawn.err
    beginning = runs / "ancra/nat_distribution_12_0.010_umap1.5"
    assert Path(f"{beginning}.png").read_bytes().startswith(b"\x89PNG")
    assert Path(f"{beginning}.pdf").read_bytes().startswith(b"%PDF")
    with np.load(f"{beginning}.npz", allow_pickle=False) as stored:
        assert stored["points"].shape == (40, 2)
        assert stored["labels"].tolist() == [*range(10)] * 4
        assert stored["class_names"][3] == "triangle"

    over = in_process(histograms.main, ["--target_label", "3"])
    assert over.code == 0, over.err
    for key in KEYS:
        assert Path(f"pictures/Class-3-four-{key}.png").read_bytes().startswith(b"\x89PNG")
        assert Path(f"pictures/Class-3-four-{key}.pdf").read_bytes().startswith(b"%PDF")
    assert "warning: measured with different strategy: random, random_adv" in over.out
    log = Path("pictures/eval.log").read_text()
    assert log.index(" - TRADES: PP-f-Cosine max") < log.index(" - ANCRA-TRADES: PP-f-Cosine max")
    assert log.count(" var: ") == 8


def test_positive_pairs_are_the_class_and_itself_attacked(subject):
    still = pair_distances(subject.network, subject.images, target=3, eps=0.0, steps=1)
    assert still.positive.cosine.numpy() == pytest.approx(np.ones(4), abs=1e-6)
    assert still.positive.l2.numpy() == pytest.approx(np.zeros(4), abs=1e-5)
    near, far = (pair_distances(subject.network, subject.images, target=3, eps=eps) for eps in (0.01, 0.2))
    assert (near.positive.l2 > 0).all()
    assert far.positive.l2.mean() > near.positive.l2.mean()


def distances_to(subject, target):
    """Every distance from the images of a class to all images, by hand."""
    with torch.no_grad():
        features = pooled_features(subject.network, subject.images.pixels(slice(None)))
    anchors = features[subject.images.labels == target]
    return (anchors[:, None] - features[None]).norm(dim=2)


@pytest.mark.parametrize("strategy", ["random", "soft", "hard", "easy"])
@pytest.mark.parametrize("target", [0, 7])
def test_natural_negatives_are_what_the_strategy_allows_in_the_batch(subject, strategy, target):
    found = pair_distances(
        subject.network, subject.images, target=target, strategy=strategy, steps=1, batch_size=20
    )
    labels = subject.images.labels
    with torch.no_grad():
        predictions = subject.network(subject.images.pixels(slice(None))).argmax(dim=1)
    own = (labels == target).nonzero()[:, 0]
    table = distances_to(subject, target)
    for row, (anchor, distance) in enumerate(zip(own.tolist(), found.negative.l2, strict=True)):
        batch = torch.arange(40) // 20 == anchor // 20
        allowed = batch & (labels != target)
        if strategy != "random":
            rule = (
                candidates(strategy, labels[[anchor]], predictions[[anchor]], labels, predictions)[0] & batch
            )
            allowed = rule if rule.any() else allowed
        assert (table[row][allowed] - distance).abs().min() < 1e-4


@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
def test_every_strategy_measures_and_adv_attacks_its_negatives(subject, strategy):
    settings = {"target": 2, "steps": 2, "eps": 0.1, "step_size": 0.05}
    found = pair_distances(subject.network, subject.images, strategy=strategy, **settings)
    assert all(np.isfinite(values).all() for values in found.arrays().values())
    other = pair_distances(
        subject.network, subject.images, strategy=strategy.removesuffix("_adv"), **settings
    )
    assert torch.equal(found.negative.l2, other.negative.l2) == (not strategy.endswith("_adv"))
    assert torch.equal(found.positive.l2, other.positive.l2)


def test_the_seed_decides_and_the_batch_size_matters_to_negatives_alone(subject):
    def found(**changes):
        return pair_distances(subject.network, subject.images, **{"target": 3, "steps": 2, **changes})

    first, again = found(strategy="random_adv"), found(strategy="random_adv")
    assert all(np.array_equal(values, again.arrays()[key]) for key, values in first.arrays().items())
    smaller = found(strategy="random_adv", batch_size=7)
    assert smaller.positive.l2.numpy() == pytest.approx(first.positive.l2.numpy(), rel=1e-3, abs=1e-5)
    assert not torch.allclose(smaller.negative.l2, first.negative.l2)
    assert not torch.equal(found(seed=1).negative.l2, found(seed=2).negative.l2)
    assert not torch.equal(found(seed=1).positive.l2, found(seed=2).positive.l2)


def test_images_alone_with_their_class_have_no_negative(subject):
    order = subject.images.labels.argsort(stable=True)
    found = pair_distances(subject.network, subject.images.subset(order), target=3, steps=1, batch_size=5)
    # of class 3 (places 12 to 15) the batches of five hold 3 and 1, each with others
    assert found.without_negative == 0
    alone = pair_distances(subject.network, subject.images.subset(order), target=3, steps=1, batch_size=2)
    assert alone.without_negative == 4
    assert len(alone.positive.l2) == 4


MEASURED = [
    ("", "epsilon", 8 / 255),
    ("--epsilon 4/255", "epsilon", 4 / 255),
    ("", "seed", 42),
    ("--seed 1", "seed", 1),
    ("", "batch_size", 128),
    ("--batch-size 9", "batch_size", 9),
    ("--no-cuda", "no_cuda", True),
    ("", "data", "cifar10"),
    ("--dataset cifar100", "data", "cifar100"),
    ("", "model_dir", "./model/NPsfc-cifar10-strategy-random-adv-alpha-1.0-beta-6.0-zeta-3.0-seed-1"),
    ("--model_dir a_b", "model_dir", "a_b"),
    ("--model-dir a", "model_dir", "a"),
    ("--run-dir a", "model_dir", "a"),
    ("", "strategy", "random"),
    ("--strategy hard_adv", "strategy", "hard_adv"),
    ("", "num_steps", 10),
    ("--num-steps 3", "num_steps", 3),
    ("", "step_size", 0.007),
    ("--step-size 1/255", "step_size", 1 / 255),
    ("", "target_label", 0),
    ("--target_label 4", "target_label", 4),
    ("--target-label 4", "target_label", 4),
]


@pytest.mark.parametrize(("words", "name", "value"), MEASURED)
def test_a_flag_of_feature_distance_sets_its_setting(words, name, value):
    assert getattr(given_to(distances, distances.DistanceConfig, *words.split()), name) == value


@pytest.mark.parametrize("words", ["--epsilon 1/255", "--num-steps 1", "--step-size 0.5/255", "--seed 3"])
def test_a_flag_of_feature_distance_changes_what_is_measured(in_process, runs, words):
    usual = ["--model-dir", runs / "ancra", *QUICK]
    assert in_process(distances.main, usual).code == 0
    assert in_process(distances.main, [*usual, *words.split(), "--out", "other", "--name", "o"]).code == 0
    first, second = measured(Path("three"), "ANCRA-TRADES"), measured(Path("other"), "o")
    assert not np.array_equal(first["PPfL2"], second["PPfL2"])


IDLE = [
    (distances, "--log_path a"),
    *((projection, words) for words in ("--log_path a", "--epsilon 4/255", "--num-steps 3")),
    *((projection, words) for words in ("--step-size 1/255", "--strategy random_adv")),
    *((histograms, words) for words in ("--epsilon 4/255", "--seed 1", "--batch-size 7", "--no-cuda")),
]


@pytest.mark.parametrize(("module", "words"), IDLE)
def test_a_published_flag_without_effect_is_said(in_process, module, words, umap):
    done = in_process(module.main, words.split())
    flag = words.split()[0].replace("_", "-")
    assert done.out.count(f"warning: {flag} has no effect here: ") == 1
    assert done.code == 2  # nothing is there to look at


def test_help_names_every_published_flag(in_process):
    for module in (distances, projection, histograms):
        said = " ".join(in_process(module.main, ["--help"]).out.split())
        assert all(flag in said for flag in module.PUBLISHED_FLAGS), module


def test_names_and_what_they_replace(in_process, runs):
    words = [*QUICK, "--name", "TRADES, seed 2"]
    refused = in_process(distances.main, ["--model-dir", runs / "ancra", *words])
    assert refused.code == 2
    assert "--name 'TRADES, seed 2' is not possible" in refused.err
    words = [*QUICK, "--name", "MART"]
    assert "replaces" not in in_process(distances.main, ["--model-dir", runs / "ancra", *words]).out
    assert "replaces" not in in_process(distances.main, ["--model-dir", runs / "ancra", *words]).out
    assert "replaces what was" in in_process(distances.main, ["--model-dir", runs / "trades", *words]).out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--target-label 10", "--target-label 10 is not possible; expected 0 to 9, a class of shapes"),
        ("--target-label -1", "--target-label -1 is not possible"),
        ("--target-label 3 --test-images 10", "--target-label 3 has 1 of the 10 test images"),
        ("--batch-size 1 --target-label 3", "hold no other class than 3"),
        ("--batch-size 0", "--batch-size 0 is not possible"),
        ("--num-steps 0", "--num-steps 0 is not possible"),
        ("--epsilon -8/255", "--epsilon -0.0313"),
        ("--strategy medium", "Unknown strategy"),
        ("--dataset cifar100", "--dataset cifar100 contradicts the run"),
        ("--out text", "--out names 'text', where no folder can be made"),
    ],
)
def test_mistakes_of_feature_distance(in_process, runs, words, told):
    Path("text").write_text("a file where a folder should be")
    done = in_process(distances.main, ["--model-dir", runs / "ancra", "--num-steps", "1", *words.split()])
    assert done.code == 2
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
