"""A suite carried out in parts: kept, continued, doubled where it was too short; features and transfer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_trades import EPS, tiny_images, tiny_trades

from robust_core.errors import UserError
from robust_core.evaluation import (
    Evaluation,
    Examination,
    Examiner,
    Member,
    Protocol,
    Sizes,
    evaluate,
    feature_runner,
    load_examination,
    transfer_runner,
    weights_digest,
)
from robust_core.models import build_model, pooled_features
from robust_core.reporting import examination_figure, examination_table, write_report
from robust_core.storage import write_json

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = Sizes(cascade=40, alone=20, long=20, precise=8, long_steps=12)


def _suite(steps):
    return Protocol(
        "suite",
        (
            Member("apgd", "apgd", {"eps": EPS, "steps": steps}),
            Member("other", "transfer", {"eps": EPS, "steps": steps, "source": "other"}),
            Member("square", "square", {"eps": EPS, "queries": 10}),
        ),
    )


def _examiner(folder=None, suite=_suite, said=None, **options):
    return Examiner(
        model=tiny_trades(),
        dataset=tiny_images(60),
        suite=suite,
        runners={"transfer": transfer_runner({"other": tiny_trades(1)})},
        sizes=options.pop("sizes", SIZES),
        folder=folder,
        say=([] if said is None else said).append,
        **options,
    )


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "adaptive"
    return _examiner(folder).examine(4), folder


def test_every_part_has_its_images(examined):
    found, _ = examined
    sizes = [
        len(part.labels) for part in (found.cascade, found.alone, found.long, found.float32, found.float64)
    ]
    assert sizes == [40, 20, 20, 8, 8]
    assert (found.cascade.cascade, found.alone.cascade) == (True, False)
    assert found.float64.precision == "float64"
    assert [m.name for m in found.float64.protocol.members] == ["apgd", "other"]
    assert found.long.protocol.members[0].settings["steps"] == 12
    assert (found.cascade.worst_case()[:20] <= found.alone.robust["apgd"]).all()


def test_kinds_without_gradients_have_no_precision():
    few = _examiner(without_gradients=("transfer",), sizes=replace(SIZES, alone=0, long=0)).examine(2)
    assert [m.name for m in few.float64.protocol.members] == ["apgd"]
    assert set(few.cascade.robust) == {"apgd", "other", "square"}


def test_what_was_kept_is_taken_over(examined):
    found, folder = examined
    again = _examiner(folder, progress=_only_natural).examine(4)
    assert np.array_equal(again.cascade.worst_case(), found.cascade.worst_case())
    assert np.array_equal(load_examination(folder).alone.natural, found.alone.natural)


def _only_natural(member, done, total):
    if member != "natural":
        raise AssertionError(f"{member} ran again: {done} of {total}")


def test_an_examination_that_was_stopped_goes_on(examined, tmp_path):
    found, _ = examined

    def stop(member, done, total):
        if member == "square":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _examiner(tmp_path, progress=stop).examine(4)
    assert load_examination(tmp_path) is None
    ran = set()
    whole = _examiner(
        tmp_path,
        progress=lambda member, *_: ran.add(member),
        sizes=Sizes(cascade=40, alone=0, long=0, precise=0),
    ).examine(4)
    assert ran == {"natural", "square"}
    assert np.array_equal(whole.cascade.worst_case(), found.cascade.worst_case())
    assert load_examination(tmp_path).alone is None


def test_damaged_parts_are_made_anew(tmp_path):
    (tmp_path / "cascade-1.json").write_text("{")
    (tmp_path / "cascade-1.npz").write_text("")
    said = []
    sizes = Sizes(cascade=8, alone=0, long=0, precise=0)
    _examiner(tmp_path, said=said, sizes=sizes).examine(1)
    assert "damaged; its members are run again" in said[0]
    assert len(load_examination(tmp_path).cascade.labels) == 8
    (tmp_path / "cascade-1.npz").write_text("")
    with pytest.raises(UserError, match="examine the network again"):
        load_examination(tmp_path)


def test_of_another_network_there_is_no_examination(examined):
    found, folder = examined
    assert load_examination(folder, found.cascade.weights) is not None
    assert load_examination(folder, "another") is None


def test_parts_of_another_examination_are_not_mixed_in(examined, tmp_path):
    """What a longer examination left lies beside the shorter one that came after it."""
    _examiner(tmp_path, sizes=replace(SIZES, precise=0)).examine(4)
    _examiner(tmp_path, sizes=Sizes(cascade=10, alone=0, long=0, precise=0)).examine(2)
    found = load_examination(tmp_path)
    assert (found.alone, found.long) == (None, None)
    assert found.cascade.protocol.members[0].settings["steps"] == 2


def test_few_images_are_compared_with_the_same_few():
    found = _examiner(sizes=Sizes(cascade=5, alone=20, long=20, precise=20, long_steps=8)).examine(4)
    sizes = [len(part.labels) for part in (found.cascade, found.alone, found.long, found.float64)]
    assert sizes == [5, 5, 5, 5]
    assert abs(found.gain()) <= 0.2


def test_the_worst_case_is_over_all_parts(examined):
    found, _ = examined
    broken = found.long.robust["apgd"].copy()
    broken[:] = False
    more = replace(found, long=replace(found.long, robust={**found.long.robust, "apgd": broken}))
    assert not more.worst_case()[:20].any()
    assert (more.worst_case()[20:] == found.cascade.worst_case()[20:]).all()
    assert not found.claims()


def test_another_source_of_the_same_name_is_another_member(tmp_path):
    def suite(source):
        settings = {"eps": EPS, "steps": 3, "source": "other", "source_weights": weights_digest(source)}
        return lambda steps: Protocol("s", (Member("t", "transfer", settings),))

    ran = []
    for source in (tiny_trades(1), tiny_trades(1), tiny_trades(2)):
        Examiner(
            model=tiny_trades(),
            dataset=tiny_images(8),
            suite=suite(source),
            runners={"transfer": transfer_runner({"other": source})},
            sizes=Sizes(cascade=8, alone=0, long=0, precise=0),
            folder=tmp_path,
            progress=lambda member, *_: ran.append(member),
        ).examine(3)
    assert ran.count("t") == 2


def test_a_finished_examination_whose_budget_was_doubled_is_not_run_again(tmp_path):
    data = tiny_images(20)
    suite, run = _breaking(lambda steps: 10 if steps >= 20 else 0)
    ran = []
    for _ in range(2):
        Examiner(
            model=_WrongIfChanged(data).eval(),
            dataset=data,
            suite=suite,
            runners={"some": lambda call: ran.append(call.settings["steps"]) or run(call)},
            sizes=Sizes(cascade=20, alone=0, long=20, precise=0, long_steps=40),
            folder=tmp_path,
            say=[].append,
        ).examine(5)
    assert ran == [5, 40, 10, 20]


def _breaking(images_of):
    """A suite whose only member breaks, with so many steps, so many images."""

    def suite(steps):
        return Protocol("suite", (Member("some", "some", {"eps": EPS, "steps": steps}),))

    def run(call):
        broken = torch.tensor([index < images_of(call.settings["steps"]) for index in call.indices])
        worst = torch.where(call.images < 0.5, call.images - EPS, call.images + EPS).clamp(0, 1)
        call.observe(call.images, torch.arange(len(call.images)))
        call.flag("made up")
        return torch.where(broken.view(-1, 1, 1, 1), worst, call.images)

    return suite, run


class _WrongIfChanged(torch.nn.Module):
    def __init__(self, data):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.natural = {
            image.numpy().tobytes(): int(y) for image, y in zip(data.images, data.labels, strict=True)
        }

    def forward(self, images):
        labels = [
            self.natural.get(i.contiguous().numpy().tobytes(), 5) for i in (images * 255).round().byte()
        ]
        labels = [label if label < 4 else 0 for label in labels]
        logits = torch.nn.functional.one_hot(torch.tensor(labels), 4).to(images.dtype) * self.scale
        known = torch.tensor(
            [i.contiguous().numpy().tobytes() in self.natural for i in (images * 255).round().byte()]
        )
        return torch.where(known[:, None], logits, logits * torch.nan)


@pytest.mark.parametrize(("needed", "budgets"), [(5, [5]), (20, [5, 10, 20]), (99, [5])])
def test_the_budget_is_doubled_until_more_steps_gain_nothing(needed, budgets):
    data = tiny_images(20)
    suite, run = _breaking(lambda steps: 10 if steps >= needed else 0)
    tried, said = [], []
    found = Examiner(
        model=_WrongIfChanged(data).eval(),
        dataset=data,
        suite=lambda steps: tried.append(steps) or suite(steps),
        runners={"some": run},
        sizes=Sizes(cascade=20, alone=0, long=20, precise=0, long_steps=40),
        say=said.append,
    ).examine(5)
    assert [steps for steps in dict.fromkeys(tried) if steps != 40] == budgets
    assert len(said) == len(budgets) - 1
    assert found.gain() == 0.0
    if said:
        assert "50.0 points" in said[0]


def test_features_move_towards_training_images_of_wrong_classes():
    net = build_model("resnet8-s2", 4, seed=3).eval()
    data, references = _wide(tiny_images(12)), _wide(tiny_images(40, "train"))
    last = {}

    def runner(call):
        def look(points, rows):
            last.update(zip(rows.tolist(), points, strict=True))
            call.observe(points, rows)

        return feature_runner(references)(replace(call, observe=look))

    member = Member("features", "features", {"eps": 16 / 255, "steps": 8, "targets": 1})
    with torch.no_grad():
        images = data.pixels(slice(None))
        logits = net(images)
        data = replace(data, labels=logits.argmax(dim=1))
        found = evaluate(net, data, Protocol("p", (member,)), runners={"features": runner})
        wanted = logits.topk(2, dim=1).indices[:, 1]
        goals = pooled_features(net, references.pixels(slice(None)))
        far = torch.cdist(pooled_features(net, images), goals)
        far = far.masked_fill(references.labels[None] != wanted[:, None], torch.inf)
        moved = pooled_features(net, torch.stack([last[i] for i in range(12)]))
        near = (moved - goals[far.argmin(dim=1)]).norm(dim=1)
    assert (near < 0.8 * far.amin(dim=1)).all()
    assert found.runs["features"].backward > 0


@pytest.mark.parametrize("missing", ["references", "features"])
def test_features_say_what_is_missing(missing):
    net = tiny_trades() if missing == "features" else build_model("resnet8-s2", 4, seed=3).eval()
    data = tiny_images(4) if missing == "features" else _wide(tiny_images(4))
    member = Member("features", "features", {"eps": EPS, "steps": 2, "targets": 1})
    runner = feature_runner(None if missing == "references" else tiny_images(8))
    found = evaluate(net, data, Protocol("p", (member,)), runners={"features": runner})
    assert not found.runs["features"].ran
    assert ("no training images" if missing == "references" else "feature") in found.runs["features"].remedy


def test_transfer_attacks_the_source_and_says_when_there_is_none():
    member = Member("t", "transfer", {"eps": EPS, "steps": 10, "source": "other"})
    net, data = tiny_trades(), tiny_images(60)
    given = evaluate(
        net, data, Protocol("p", (member,)), runners={"transfer": transfer_runner({"other": tiny_trades(1)})}
    )
    own = evaluate(net, data, Protocol("p", (member,)), runners={"transfer": transfer_runner({"other": net})})
    assert own.worst_case().mean() <= given.worst_case().mean() < given.natural.mean()
    assert given.runs["t"].backward > 0
    none = evaluate(net, data, Protocol("p", (member,)), runners={"transfer": transfer_runner({})})
    assert "no network 'other'" in none.runs["t"].remedy


def _wide(data):
    return replace(
        data,
        images=data.images.repeat(1, 1, 4, 4),
        info=replace(data.info, size=32),
    )


def test_the_table_and_the_report_show_what_was_found(examined):
    found, folder = examined
    text = examination_table(found, "Suite").markdown()
    for words in (
        "| APGD |",
        "of those that ran",
        "only this breaks",
        "first 20 test images",
        "float64 differ",
    ):
        assert words in text
    short = examination_table(Examination(found.cascade)).markdown()
    assert "| – | – |" in short
    incomplete: Evaluation = evaluate(
        tiny_trades(), tiny_images(8), _suite(1), runners={"transfer": transfer_runner({})}, cascade=True
    )
    assert "no worst case is claimed" in examination_table(Examination(incomplete)).markdown()
    assert "was not run: no network 'other'" in examination_table(Examination(incomplete)).markdown()
    assert "eps 8/255; steps of the gradient attacks: 4" in text
    assert len(examination_figure(found).axes) == 1
    run = folder.parent
    write_json(run / "config.json", {"config": {}})
    write_json(
        folder / "sanity.json", {"checks": [{"name": "a", "fails_when": "b", "figures": "c", "failed": True}]}
    )
    page = write_report(run).read_text()
    assert "Attacks that know the network" in page
    assert "FAILS" in page
