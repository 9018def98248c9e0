"""A run's report from its directory alone: figures that show something and one page that stands alone."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from robust_core.errors import UserError
from robust_core.evaluation import Evaluation, Interval, Member, MemberRun, Protocol
from robust_core.reporting import (
    MethodResult,
    accuracy_curves,
    comparison_figure,
    gallery_figure,
    loss_curves,
    read_run,
    save_figure,
    write_report,
)

CLASSES = ("disc", "square", "triangle", "ring", "cross", "star", "crescent", "heart", "arrow", "<b>bold</b>")
SETTINGS = {"eps": 8 / 255, "norm": "linf", "step_size": 2 / 255, "steps": 20}


def gallery(count=4, size=32, mask=True):
    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 210, size)
    natural = np.broadcast_to(ramp, (count, 3, size, size)) + rng.normal(0, 12, (count, 3, size, size))
    natural = np.clip(natural, 0, 255).astype(np.uint8)
    sign = rng.choice([-1.0, 1.0], natural.shape)
    arrays = {
        "natural": natural,
        "adversarial": np.clip(natural / 255 + sign * 8 / 255, 0, 1).astype(np.float32),
        "labels": np.arange(count) % 10,
        "natural_prediction": np.arange(count) % 10,
        "adversarial_prediction": (np.arange(count) + np.arange(count) % 2) % 10,
        "classes": np.array(CLASSES),
    }
    if mask:
        rows, columns = np.mgrid[:size, :size]
        arrays["mask"] = np.stack([[np.hypot(rows - 16, columns - 8 - 4 * i) < 9] for i in range(count)])
    return arrays


def evaluation(count=2000, groups=True):
    rng = np.random.default_rng(1)
    labels = np.arange(count) % 10
    natural = rng.random(count) < 0.97 - 0.02 * (labels % 4)
    last = {"pgd-20": rng.random(count) < 0.62 - 0.05 * (labels % 5), "mma": rng.random(count) < 0.6}
    return Evaluation(
        protocol=Protocol(
            "part",
            (Member("pgd-20", "pgd", SETTINGS), Member("mma", "mma", SETTINGS), Member("autoattack", "a")),
        ),
        natural=natural,
        last=last,
        robust={name: natural & last[name] for name in last},
        attacked={name: np.ones(count, dtype=bool) for name in last},
        labels=labels,
        groups=(np.arange(count) * 3) // count if groups else None,
        indices=np.arange(count),
        runs={
            "pgd-20": MemberRun(count, 21 * count, 20 * count, 9 * count, 31.4),
            "mma": MemberRun(count, 63 * count, 60 * count, 21 * count, 92.3, flags=("a warning to keep",)),
            "autoattack": MemberRun(remedy="AutoAttack needs pyautoattack: pip install 'robust-core[eval]'."),
        },
        class_names=CLASSES,
        group_names=("land", "water", "air") if groups else None,
        seconds=123.7,
    )


def fake_run(path):
    """A run directory with everything in it."""
    path.mkdir()
    config = {
        "command": "train-eval-part --data shapes --scale demo",
        "config": {
            "method": "part",
            "model": "resnet8-s2",
            "data": "shapes",
            "epsilon": 8 / 255,
            "decay": [4, 6],
        },
        "data": {"name": "shapes", "digest": "0f" * 32},
        "commit": "0123abc",
        "software": {"numpy": "1.26.4"},
        "machine": {
            "processor": "two cores",
            "torch": "2.10",
            "threads": 2,
            "note": "<script>alert(1)</script>",
        },
    }
    (path / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(2)
    lines = []
    for step in range(1, 601):
        phase = "natural" if step <= 150 else "warm-up" if step <= 300 else "main"
        loss = 2.3 * np.exp(-step / 250) + 0.3 + rng.normal(0, 0.08) + (1.2 if phase == "warm-up" else 0)
        lines.append(
            {
                "kind": "step",
                "step": step,
                "epoch": step // 60,
                "phase": phase,
                "loss": float(loss),
                "lr": 0.1,
            }
        )
        if step % 60 == 0:
            natural = 0.97 - 0.6 * np.exp(-step / 150)
            robust = 0.5 * (1 - np.exp(-max(0, step - 150) / 200))
            epoch = {"kind": "epoch", "step": step, "epoch": step // 60 - 1, "phase": phase}
            lines.append({**epoch, "natural_accuracy": natural, "pgd20_accuracy": robust})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "timings.jsonl").write_text('{"step": 600, "seconds": 201.5, "images_per_second": 381.2}\n')
    evaluation().save(path / "evaluation", "test")
    np.savez(path / "gallery.npz", **gallery())
    return path


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    run = fake_run(tmp_path_factory.mktemp("runs") / "part-shapes")
    return write_report(run).parent


class Page(HTMLParser):
    """Collects tags, attributes and text, and complains about tags that are not closed in order."""

    void = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read_page(path):
    return Page(path.read_text(encoding="utf8"))


def assert_shows_something(path):
    picture = matplotlib.image.imread(path)
    assert min(picture.shape[:2]) > 200
    ink = (picture[..., :3] < 0.95).any(axis=2)
    assert 0.005 < ink.mean() < 0.95
    # Something everywhere: no quarter of the picture is empty.
    height, width = ink.shape
    for rows in (slice(0, height // 2), slice(height // 2, None)):
        for columns in (slice(0, width // 2), slice(width // 2, None)):
            assert ink[rows, columns].any()


def test_all_figures_are_there_and_not_blank(reported):
    names = sorted(path.name for path in reported.glob("*.png"))
    assert names == [
        "accuracy-curves.png",
        "accuracy-test.png",
        "class-test.png",
        "gallery.png",
        "group-test.png",
        "loss-curves.png",
    ]
    for name in names:
        assert_shows_something(reported / name)
    assert not list(reported.glob(".*"))


def test_page_needs_no_network_and_no_other_file(reported):
    text = (reported / "report.html").read_text(encoding="utf8")
    page = Page(text)
    assert page.open == []
    outside = text.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", outside)
    assert "url(" not in text
    assert "@import" not in text
    for picture in page.attributes("img"):
        assert picture["src"].startswith("data:image/png;base64,")
    assert not page.attributes("script")
    assert all(link["href"].startswith("data:") for link in page.attributes("link"))


def test_pictures_have_texts_and_sizes(reported):
    pictures = read_page(reported / "report.html").attributes("img")
    assert len(pictures) == 6
    for picture in pictures:
        assert len(picture["alt"]) > 20
        assert int(picture["width"]) > 400


def test_page_tells_figures_intervals_cost_and_what_intervals_do_not_cover(reported):
    text = "\n".join(read_page(reported / "report.html").texts).replace("\xa0", " ")
    summary = evaluation().summary()
    low, high = summary["robust_interval"]
    expected = f"{100 * summary['robust_accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    for phrase in (
        expected,
        "they do not cover the weakness of an attack",
        "21 + 20, 9",
        "31.4",
        "float32",
        "AutoAttack was not run: AutoAttack needs pyautoattack: pip install 'robust-core[eval]'.",
        "a warning to keep",
        "train-eval-part --data shapes --scale demo",
        "eps 8/255",
        "resnet8-s2",
        "two cores",
        "0123abc",
        "1.26.4",
        "381.2",
        "worst class, worst case",
        "worst group, natural",
    ):
        assert phrase in text, phrase


def test_page_escapes_what_a_run_contains(reported):
    text = (reported / "report.html").read_text(encoding="utf8")
    assert "<script>" not in text
    assert html.escape("<script>alert(1)</script>") in text
    assert "<b>bold" not in text


def test_report_is_reproducible_and_leaves_matplotlib_as_it_was(reported):
    before = {path.name: path.read_bytes() for path in reported.iterdir()}
    settings = dict(matplotlib.rcParams)
    write_report(reported.parent)
    assert {path.name: path.read_bytes() for path in reported.iterdir()} == before
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ("config.json", "config.json is missing"),
        ("metrics.jsonl", "metrics.jsonl is missing"),
        ("timings.jsonl", "timings.jsonl is missing"),
        ("gallery.npz", "gallery.npz is missing"),
        ("evaluation/test.npz", "No evaluation record"),
        ("evaluation/test.json", "There is no evaluation"),
    ],
)
def test_missing_pieces_are_told(tmp_path, lacking, told):
    run = fake_run(tmp_path / "run")
    (run / lacking).unlink()
    (problem,) = read_run(run).problems
    assert told in problem


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "gallery.npz", "evaluation/test.json"])
def test_damaged_pieces_are_told(tmp_path, name):
    run = fake_run(tmp_path / "run")
    (run / name).write_text('{"kind": "st')
    (problem,) = read_run(run).problems
    assert name.rpartition("/")[2] in problem


def test_an_almost_empty_run_makes_a_page_that_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    text = "\n".join(read_page(write_report(tmp_path)).texts)
    for phrase in (
        "What is missing",
        "gallery.npz is missing",
        "no accuracy curve",
        "no loss curve",
        "no images",
    ):
        assert phrase in text, phrase
    (tmp_path / "config.json").write_text("[]")
    assert "holds no settings" in "\n".join(read_page(write_report(tmp_path)).texts)


def test_a_gallery_that_does_not_fit_is_told(tmp_path):
    np.savez(tmp_path / "gallery.npz", natural=np.zeros((1, 3, 4, 4), np.uint8))
    assert "The gallery lacks adversarial" in "\n".join(read_page(write_report(tmp_path)).texts)


def test_a_killed_run_loses_only_its_torn_line(tmp_path):
    run = fake_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "st')
    found = read_run(run)
    assert (len(found.steps), len(found.epochs)) == (600, 10)
    assert found.problems == ["metrics.jsonl: 1 line(s) could not be read and were left out."]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run directory: expected at least one of config\.json"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="is not a directory"):
        write_report(tmp_path / "nowhere")


def test_gallery_refuses_what_does_not_fit():
    arrays = gallery()
    with pytest.raises(UserError, match="lacks labels"):
        gallery_figure({key: value for key, value in arrays.items() if key != "labels"})
    with pytest.raises(UserError, match=r"\(4, 3, 32, 32\).*\(3, 3, 32, 32\)"):
        gallery_figure({**arrays, "adversarial": arrays["adversarial"][:3]})


def test_gallery_without_mask_or_perturbation(tmp_path):
    arrays = gallery(mask=False)
    arrays["adversarial"] = (arrays["natural"] / 255).astype(np.float32)
    assert_shows_something(save_figure(gallery_figure(arrays), tmp_path / "gallery.png"))


def test_curves_skip_what_is_no_number(tmp_path):
    lines = [{"step": s, "loss": v} for s, v in ((1, 2.0), (2, None), (3, float("nan")), (4, 1.0), (5, "x"))]
    assert_shows_something(save_figure(loss_curves(lines), tmp_path / "loss.png"))
    assert loss_curves([{"step": 1, "loss": None}]) is None
    assert accuracy_curves([{"step": 1, "loss": 1.0}]) is None


def test_a_figure_is_also_a_vector_pdf_whose_text_is_text(tmp_path):
    figure = loss_curves([{"step": s, "loss": 1.0 / s} for s in (1, 2, 3)])
    pdf = save_figure(figure, tmp_path / "loss.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Subtype /Image" not in pdf
    assert b"/FontFile2" in pdf
    assert save_figure(figure, tmp_path / "again.pdf").read_bytes() == pdf


def test_comparison_of_methods(tmp_path):
    nan = float("nan")
    methods = [
        MethodResult("AT", Interval(0.8, 0.78, 0.82), Interval(0.45, 0.43, 0.47), (0.79, 0.81), (0.44, 0.46)),
        MethodResult("PART", Interval(0.82, nan, nan), Interval(0.44, nan, nan), published_robust=0.5),
    ]
    assert_shows_something(save_figure(comparison_figure(methods), tmp_path / "methods.png"))
    with pytest.raises(UserError, match="No methods"):
        comparison_figure([])


def test_many_classes_without_an_attack_show_the_lowest(tmp_path):
    rng = np.random.default_rng(3)
    labels = np.arange(600) % 30
    plain = replace(
        evaluation(),
        protocol=Protocol("natural"),
        natural=rng.random(600) < 0.6 + 0.01 * labels,
        last={},
        robust={},
        attacked={},
        runs={},
        labels=labels,
        groups=None,
        class_names=tuple(f"kind {i}" for i in range(31)),
        group_names=None,
    )
    plain.save(tmp_path / "evaluation", "natural")
    text = "\n".join(read_page(write_report(tmp_path)).texts)
    assert "The 20 lowest of 31, lowest first." in text
    assert "kind 30" not in text
    assert "fewer than 200 images: no claim" in text
    assert_shows_something(tmp_path / "report" / "class-natural.png")
