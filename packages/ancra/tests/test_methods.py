"""ANCRA in the loop: every family and ablation trains and resumes; passes, draws, statistics, warnings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import Killed, StopAt, constant, image_set, same, training, weights_of

from ancra.attacks import AllLogits
from ancra.methods import FAMILIES, Ancra, NegativeChoice
from ancra.negatives import STRATEGIES
from ancra.networks import build_network
from robust_core.models import FrozenView
from robust_core.training import Hooks, LoopSettings, Phase, Processes

QUICK = {"steps": 2, "step_size": 4 / 255}


def method(family="trades", **changes):
    return Ancra("ANCRA", family, 10, **{**QUICK, **changes})


def run(path, make, *, attention="reverse", data=None, settings=None, hooks=None, precision="float32"):
    return training(
        path,
        lambda: [Phase("main", make(), 5, constant(0.02))],
        model=build_network("resnet8-s2", 10, attention=attention, seed=1),
        data=data,
        settings=settings or LoopSettings(batch_size=16, log_interval=1, checkpoint_every=1),
        hooks=hooks,
        precision=precision,
    )


@pytest.fixture
def first_step(tmp_path):
    """Return a function that gives the first step's result, the model, its batch and the context."""

    def step(subject, *, attention="reverse"):
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        trained = run(path, lambda: subject, attention=attention)
        (batch, *_) = trained._batches(0, 0)
        context = trained._context(0, 0, (0, len(batch)), len(batch))
        trained.model.train()
        result = subject.loss(trained.model, batch, context)
        return result._replace(loss=result.loss.detach()), trained.model, batch, context

    return step


@pytest.mark.parametrize(
    ("family", "attention", "changes"),
    [
        *((family, "reverse", {}) for family in FAMILIES),
        ("trades", "none", {}),  # ANC only
        ("trades", "reverse", {"zeta": 0.0}),  # RA only
        ("trades", "ones", {}),
        ("trades", "own", {}),
        ("trades", "reverse", {"attention_by": "predicted", "inner_loss": "kl"}),
        ("trades", "none", {"zeta": 0.0, "train_mode_attack": True}),  # the published baseline
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, family, attention, changes):
    def make():
        return method(family, **changes)

    whole = run(tmp_path / "whole", make, attention=attention)
    whole.fit()
    with pytest.raises(Killed):
        run(tmp_path / "cut", make, attention=attention, hooks=Hooks(scalar=StopAt(3))).fit()
    resumed = run(tmp_path / "cut", make, attention=attention)
    resumed.fit()
    assert same(weights_of(whole), weights_of(resumed))
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()
    lines = [line for line in whole.run.metrics() if line["kind"] == "step"]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    told = (
        "_given_label"
        if attention in ("reverse", "own") and changes.get("attention_by") != "predicted"
        else ""
    )
    expected = {f"adversarial_accuracy{told}", f"natural_accuracy{told}", "ap_l2"}
    expected |= {"an_l2", "exclusion_loss", "without_negative"} if changes.get("zeta", 3.0) else set()
    expected |= {"blocks_agree"} if attention != "none" else set()
    assert expected <= set(lines[0])


@pytest.mark.parametrize("attention", ["reverse", "none", "ones", "own"])
def test_bf16_attacks_train(tmp_path, attention):
    trained = run(tmp_path / "run", method, attention=attention, precision="bfloat16")
    before = weights_of(trained)
    trained.fit()
    after = weights_of(trained)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not same(before, after)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("attacked", [True, False])
def test_every_strategy_trains_with_several_negatives(first_step, strategy, attacked):
    choice = NegativeChoice(strategy, attacked, classes=2, images=1)
    assert torch.isfinite(first_step(method(negatives=choice))[0].loss)


def test_strategies_act_from_their_epoch_on(first_step):
    soft, drawn = (method(negatives=NegativeChoice(name, attacked=False)) for name in ("soft", "random"))
    _, _, batch, context = first_step(soft)
    found = []
    for epoch in (9, 10):  # the tenth and the eleventh
        then = replace(context, epoch=epoch)
        both = [subject._negatives(batch, then)[0].indices for subject in (soft, drawn)]
        found.append(torch.equal(*both))
    assert found == [True, False]


@pytest.mark.parametrize(
    ("changes", "attack_passes", "training_passes"),
    [
        ({"zeta": 0.0}, 2, 2),
        ({}, 4, 3),
        ({"negatives": NegativeChoice(attacked=False)}, 2, 3),
        ({"inner_loss": "kl"}, 5, 3),
        ({"family": "pgd"}, 4, 3),
        ({"family": "pgd", "zeta": 0.0}, 2, 1),
    ],
)
def test_a_step_makes_the_passes_that_its_loss_needs(first_step, changes, attack_passes, training_passes):
    subject = method(**changes)
    _, model, batch, context = first_step(subject)
    view = FrozenView(model)
    seen = {"live": 0, "view": 0}

    def counter(name):
        def count(*_):
            seen[name] += 1

        return count

    model.conv1.register_forward_hook(counter("live"))
    view.network.conv1.register_forward_hook(counter("view"))
    subject.loss(model, batch, replace(context, view=view))
    assert seen == {"live": training_passes, "view": attack_passes}


def test_anchors_without_negatives_train_on_and_are_told_of_once(tmp_path):
    data = image_set(32)
    lonely = replace(data, labels=torch.zeros_like(data.labels))
    trained = run(tmp_path / "run", method, data=lonely, settings=LoopSettings(batch_size=16, log_interval=1))
    with pytest.warns(UserWarning, match="32 images had no image of another class") as told:
        trained.fit()
    assert len(told) == 1
    lines = [line for line in trained.run.metrics() if line["kind"] == "step"]
    assert all(line["without_negative"] == 1.0 and line["exclusion_loss"] == 0.0 for line in lines)


def test_beta_and_zeta_weigh_the_terms(first_step):
    whole, no_beta, no_zeta = (
        first_step(method(**changes))[0] for changes in ({}, {"beta": 0.0}, {"zeta": 0.0})
    )
    terms = whole.metrics
    assert terms["exclusion_loss"] > 0
    expected = terms["natural_loss"] + 6 * terms["robust_loss"] + 3 * terms["exclusion_loss"]
    torch.testing.assert_close(whole.loss, expected)
    torch.testing.assert_close(no_beta.loss, expected - 6 * terms["robust_loss"])
    assert "exclusion_loss" not in no_zeta.metrics


@pytest.mark.parametrize(("train_mode", "moved"), [(True, QUICK["steps"] + 2), (False, 2)])
def test_only_the_published_baseline_moves_statistics_in_its_attack(first_step, train_mode, moved):
    _, model, _, _ = first_step(method(zeta=0.0, train_mode_attack=train_mode), attention="none")
    assert int(model.bn1.num_batches_tracked) == moved


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_choose_from_the_global_batch_as_one_does(first_step, monkeypatch, strategy):
    subject = method(negatives=NegativeChoice(strategy, attacked=False, classes=2))
    _, _, batch, context = first_step(subject)
    context = replace(context, epoch=10)
    whole, others, labels = subject._negatives(batch, context)
    logits = AllLogits(context.view)(batch.images)[:, 0]
    for rank, (low, high) in enumerate(((0, 7), (7, len(batch)))):
        piece = replace(batch, images=batch.images[low:high], labels=batch.labels[low:high])

        def gathered(rows, _, piece=piece):
            if rows is piece.images:
                return batch.images
            if rows is piece.labels:
                return batch.labels
            if rows.dim() == 2:
                torch.testing.assert_close(rows, logits[low:high], rtol=1e-3, atol=1e-5)  # noqa: B023
                return logits
            return (torch.arange(len(batch)) >= 7).long()

        monkeypatch.setattr("ancra.methods.gather_rows", gathered)
        there = replace(context, processes=Processes(rank, 2), rows=(low, high))
        chosen, images, classes = subject._negatives(piece, there)
        assert torch.equal(chosen.indices, whole.indices[low:high])
        assert torch.equal(images, others[2 * low : 2 * high])
        assert torch.equal(classes, labels[2 * low : 2 * high])
