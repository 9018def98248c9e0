"""``feature_distance.py``, ``draw_umap.py`` and ``draw_hist.py``: the whole chain, what is measured, every flag."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from ancra import distances, histograms, projection
from ancra.checkpoint import SubjectConfig, load_subject
from ancra.config import ALL_STRATEGIES
from ancra.distances import QUANTITIES, pair_distances
from ancra.features import pooled_features
from ancra.histograms import Measured, histogram_figure
from ancra.inspection import InspectionScript
from ancra.negatives import candidates
from robust_core.errors import UserError

pytestmark = pytest.mark.usefixtures("drawn_once")

KEYS = [quantity.key for quantity in QUANTITIES]
QUICK = ["--num-steps", "2", "--target_label", "3"]


class FakeUmap(types.ModuleType):
    """Stands for umap-learn, whose compilation takes half a minute: keeps its settings, gives two features."""

    def __init__(self):
        super().__init__("umap")
        self.settings = {}

    def UMAP(self, **settings):
        self.settings = settings
        return types.SimpleNamespace(fit_transform=lambda features: features[:, :2].astype(np.float64))


@pytest.fixture
def umap(monkeypatch):
    fake = FakeUmap()
    monkeypatch.setitem(sys.modules, "umap", fake)
    return fake


@pytest.fixture
def runs(trained, tmp_path):
    """Return a folder with copies of the trained runs."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


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


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("", "batch_size", 500),
        ("--batch-size 9", "batch_size", 9),
        ("", "seed", 42),
        ("--seed 5", "seed", 5),
        ("--dataset svhn", "data", "svhn"),
        ("--no-cuda", "no_cuda", True),
        ("--model_dir a", "model_dir", "a"),
    ],
)
def test_a_flag_of_draw_umap_sets_its_setting(words, name, value):
    assert getattr(given_to(projection, projection.ProjectionConfig, *words.split()), name) == value


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("", "measured", "./three"),
        ("--in a", "measured", "a"),
        ("--log_path a", "measured", "a"),
        ("--target_label 2", "target_label", 2),
        ("--dataset cifar100", "data", "cifar100"),
        ("--names A,B", "names", "A,B"),
        ("--out p", "out", "p"),
    ],
)
def test_a_flag_of_draw_hist_sets_its_setting(words, name, value):
    assert getattr(given_to(histograms, histograms.HistogramConfig, *words.split()), name) == value


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
        ("--dataset cifar100", "--data cifar100 contradicts the run"),
        ("--out text", "Cannot write"),
    ],
)
def test_mistakes_of_feature_distance(in_process, runs, words, told):
    Path("text").write_text("a file where a folder should be")
    done = in_process(distances.main, ["--model-dir", runs / "ancra", "--num-steps", "1", *words.split()])
    assert done.code == 2
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.fixture
def arrays(tmp_path):
    """Write measurements of class 1 by hand: three methods with values of their own."""
    folder = tmp_path / "three"
    folder.mkdir()
    for number, name in enumerate(("ANCRA", "TRADES", "a-b"), 1):
        for key in KEYS:
            np.save(folder / f"1-{name}-{key}.npy", np.linspace(0, number, 50, dtype=np.float32))
        record = {"network": {"data": "shapes" if number < 3 else "cifar10"}, "class": "ring"}
        (folder / f"1-{name}.json").write_text(json.dumps(record))
    return folder


def names_drawn(done):
    return [line.partition(":")[0] for line in done.out.splitlines() if "PP-f-Cosine" in line]


def test_methods_are_found_chosen_and_ordered(in_process, arrays, monkeypatch):
    saved = []
    monkeypatch.setattr(histograms, "save_figure", lambda _figure, path: saved.append(path))
    words = ["--in", arrays, "--target-label", "1"]
    done = in_process(histograms.main, words)
    assert names_drawn(done) == ["TRADES", "ANCRA", "a-b"]
    assert "warning: measured on different data: cifar10, shapes" in done.out
    assert names_drawn(in_process(histograms.main, [*words, "--names", "a-b, ANCRA"])) == ["a-b", "ANCRA"]
    assert names_drawn(in_process(histograms.main, [*words, "--dataset", "Shapes"])) == ["TRADES", "ANCRA"]
    done = in_process(histograms.main, [*words, "--names", "TRADES", "--out", "elsewhere"])
    assert "TRADES: NP-f-L2 max: 2.000000, min: 0.000000, mean: 1.000000, var: 0.3" in done.out
    names = {f"Class-1-four-{key}.{ending}" for key in KEYS for ending in ("png", "pdf")}
    assert {path.name for path in saved if path.parent == Path("elsewhere")} == names


def test_histograms_are_densities_over_common_bins():
    values = {
        name: np.linspace(low, high, 100, dtype=np.float32) for name, low, high in (("A", 0, 1), ("B", 0, 4))
    }
    methods = [Measured(name, dict.fromkeys(KEYS, array), {}) for name, array in values.items()]
    figure = histogram_figure(QUANTITIES[1], methods)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("L2 distance", "Frequency")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "B"]
    outlines = [patch.get_xy() for patch in axes.patches if not patch.get_fill()]
    assert len(outlines) == 2
    for outline, top in zip(outlines, (1.0, 0.25), strict=True):
        edges = np.unique(outline[:, 0])
        assert edges == pytest.approx(np.linspace(0, 4, 21), abs=1e-6)
        assert outline[:, 1].max() == pytest.approx(top, rel=0.2)


def test_one_value_for_all_images_is_drawn_too():
    same = Measured("A", dict.fromkeys(KEYS, np.ones(5, dtype=np.float32)), {})
    assert histogram_figure(QUANTITIES[0], [same]).axes


@pytest.mark.parametrize(
    ("spoil", "words", "told"),
    [
        (lambda folder: shutil.rmtree(folder), "", "is no folder; run feature_distance.py first"),
        (lambda folder: None, "--target-label 2", "holds no measurement of class 2"),
        (lambda folder: None, "--target-label -2", "--target-label -2 is not possible"),
        (lambda folder: None, "--names MART", "Unknown method of --names 'MART'"),
        (
            lambda folder: None,
            "--dataset svhn",
            "Nothing was measured on --dataset svhn, only on cifar10, shapes",
        ),
        (lambda folder: (folder / "1-TRADES-NPfL2.npy").unlink(), "", "1-TRADES-NPfL2.npy' is missing"),
        (lambda folder: (folder / "1-TRADES-NPfL2.npy").write_bytes(b"\x93NUMPY"), "", "is damaged"),
        (lambda folder: torch.save(torch.ones(3), folder / "1-TRADES-NPfL2.npy"), "", "is damaged"),
        (
            lambda folder: np.save(folder / "1-TRADES-PPfcos.npy", np.ones((2, 2))),
            "",
            "no vector of distances",
        ),
        (lambda folder: np.save(folder / "1-TRADES-PPfcos.npy", np.array([1.0, np.nan])), "", "no vector"),
        (lambda folder: np.save(folder / "1-TRADES-PPfcos.npy", np.array([{}] * 2)), "", "is damaged"),
    ],
)
def test_mistakes_of_draw_hist(in_process, arrays, spoil, words, told):
    spoil(arrays)
    done = in_process(histograms.main, ["--in", arrays, "--target-label", "1", *words.split()])
    assert done.code == 2
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not Path("pictures").exists()


def test_more_methods_than_colours_are_refused(in_process, arrays):
    for name in "cdefg":
        for key in KEYS:
            shutil.copy(arrays / f"1-ANCRA-{key}.npy", arrays / f"1-{name}-{key}.npy")
    done = in_process(histograms.main, ["--in", arrays, "--target-label", "1"])
    assert done.code == 2
    assert "8 methods in one figure cannot be told apart, expected at most 7" in done.err


def test_umap_gets_the_published_settings_and_the_seed(umap):
    projection.project(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32), seed=5)
    wanted = {
        "n_neighbors": 12,
        "min_dist": 0.01,
        "metric": "correlation",
        "densmap": True,
        "dens_lambda": 1.5,
    }
    assert wanted.items() <= umap.settings.items()
    assert (umap.settings["random_state"], umap.settings["n_components"]) == (5, 2)


def test_few_images_have_fewer_neighbours(in_process, runs, umap):
    words = ["--model-dir", runs / "ancra"]
    done = in_process(projection.main, [*words, "--test-images", "8", "--batch-size", "3"])
    assert done.code == 0, done.err
    assert umap.settings["n_neighbors"] == 7
    assert (runs / "ancra/nat_distribution_7_0.010_umap1.5.png").exists()
    few = in_process(projection.main, [*words, "--test-images", "4"])
    assert few.code == 2
    assert "4 images are too few for a figure, expected at least 5" in few.err
    with pytest.raises(UserError, match="not finite"):
        projection.project(np.full((9, 3), np.nan, dtype=np.float32), seed=0)


def test_without_umap_learn_one_sentence_says_what_to_install(in_process, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    done = in_process(projection.main, ["--model-dir", runs / "ancra"])
    assert done.code == 2
    assert "pip install umap-learn" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_the_scatter_tells_classes_apart_and_many_by_a_colour_bar():
    points = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    ten = projection.scatter_figure(points, np.arange(60) % 10, [f"c{k}" for k in range(10)])
    (axes,) = ten.axes
    assert [text.get_text() for text in ten.legends[0].get_texts()] == [f"c{k}" for k in range(10)]
    looks = {
        (tuple(map(tuple, drawn.get_facecolor())), drawn.get_paths()[0].vertices.tobytes())
        for drawn in axes.collections
    }
    assert len(looks) == 10
    assert sum(len(drawn.get_offsets()) for drawn in axes.collections) == 60
    many = projection.scatter_figure(points, np.arange(60), [f"c{k}" for k in range(100)])
    assert [axes.get_ylabel() for axes in many.axes] == ["UMAP 2", "class number"]


@pytest.mark.skipif(
    importlib.util.find_spec("umap") is None, reason="umap-learn is not installed (extra 'plots')"
)
def test_the_real_projection_from_the_command_line(environment, package, runs):
    # interpreted: its compilation would take longer than all tests of this file
    environment = {**environment, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, str(package / "draw_umap.py"), "--model_dir", str(runs / "ancra")]
    done = subprocess.run(
        [*command, "--test-images", "14"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with np.load(runs / "ancra/nat_distribution_12_0.010_umap1.5.npz") as stored:
        points = stored["points"]
    assert points.shape == np.unique(points, axis=0).shape == (14, 2)
    assert np.isfinite(points).all()
