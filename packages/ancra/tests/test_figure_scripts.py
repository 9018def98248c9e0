"""``draw_hist.py`` and ``draw_umap.py``: what is drawn, every flag, mistakes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ancra import histograms, projection
from ancra.distances import QUANTITIES
from ancra.histograms import Measured, histogram_figure
from ancra.inspection import InspectionScript
from robust_core.errors import UserError

pytestmark = pytest.mark.usefixtures("drawn_once")

KEYS = [quantity.key for quantity in QUANTITIES]


def given_to(module, kind, *words):
    script = InspectionScript("test", "", "", kind, lambda _c, _g: None, module.PUBLISHED_FLAGS)
    return kind(**script.parse(words))


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
@pytest.mark.slow
def test_the_real_projection_from_the_command_line(environment, package, runs):
    # interpreted: its compilation would take longer than all tests of this file
    environment = {**environment, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, str(package / "draw_umap.py"), "--model_dir", str(runs / "ancra")]
    done = subprocess.run(
        [*command, "--test-images", "6"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with np.load(runs / "ancra/nat_distribution_5_0.010_umap1.5.npz") as stored:
        points = stored["points"]
    assert points.shape == np.unique(points, axis=0).shape == (6, 2)
    assert np.isfinite(points).all()
