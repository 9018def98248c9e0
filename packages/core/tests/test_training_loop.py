"""The loop: resumed equals uninterrupted, evaluation is invisible, a loss that is not finite stops it."""

from __future__ import annotations

import pytest
import torch
from runs import Killed, StopAt, constant, image_set, same, small_model, training, weights_of

from robust_core.errors import UserError
from robust_core.evaluation import evaluate, protocol
from robust_core.training import Hooks, LoopSettings, Method, Phase
from robust_core.training.method import StepContext, StepResult, micro_batches
from robust_core.training.methods import Adversarial, AtLoss, InnerAttack, MartLoss, Natural, TradesLoss

ATTACK = {"eps": 8 / 255, "step_size": 4 / 255, "steps": 2}
METHODS = {
    "natural": lambda: Natural(),
    "at": lambda: Adversarial("AT", InnerAttack(**ATTACK), AtLoss()),
    "at-mma": lambda: Adversarial("AT", InnerAttack(**ATTACK, kind="mma", targets=2), AtLoss()),
    "trades": lambda: Adversarial(
        "TRADES", InnerAttack(**ATTACK, objective="kl", start="normal"), TradesLoss()
    ),
    "trades-l2": lambda: Adversarial(
        "TRADES", InnerAttack(0.5, 0.1, 2, objective="kl", start="normal", norm="l2"), TradesLoss(forwards=2)
    ),
    "mart": lambda: Adversarial("MART", InnerAttack(**ATTACK, start="normal"), MartLoss()),
}


def phases_of(name):
    def build():
        return [
            Phase("natural", Natural(), 2, constant()),
            Phase("main", METHODS[name](), 5, constant()),
        ]

    return build


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_equals_uninterrupted(tmp_path, name, precision):
    whole = training(tmp_path / "whole", phases_of(name), precision=precision)
    whole.fit()
    step = 1 + sum(map(ord, name + precision)) % 6
    cut = training(tmp_path / "cut", phases_of(name), precision=precision, hooks=Hooks(scalar=StopAt(step)))
    with pytest.raises(Killed):
        cut.fit()
    resumed = training(tmp_path / "cut", phases_of(name), precision=precision)
    resumed.fit()
    assert same(weights_of(whole), weights_of(resumed))
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()
    optimizers = [run.optimizer.state_dict()["state"] for run in (whole, resumed)]
    for key, state in optimizers[0].items():
        assert torch.equal(state["momentum_buffer"], optimizers[1][key]["momentum_buffer"])


def test_a_method_needs_nothing_but_a_loss(tmp_path):
    class Own(Method):
        name = "own"

        def loss(self, model, batch, context):
            return Natural().loss(model, batch, context)

    runs = [
        training(tmp_path / m.name, lambda m=m: [Phase("main", m, 4, constant())]) for m in (Own(), Natural())
    ]
    for run in runs:
        run.fit()
    assert same(*map(weights_of, runs))
    with pytest.raises(TypeError, match="loss"):
        type("Lossless", (Method,), {})()


def test_metrics_are_on_the_disk_before_a_checkpoint_is(tmp_path, monkeypatch):
    trained = training(tmp_path / "run", phases_of("natural"))
    events = []
    monkeypatch.setattr("robust_core.training.rundir.settle", lambda path: events.append(path.name))
    write = trained.run.checkpoints.save
    monkeypatch.setattr(
        trained.run.checkpoints, "save", lambda *given: (events.append("save"), write(*given))
    )
    trained.fit()
    assert len(events) > 3
    assert events == ["metrics.jsonl", "timings.jsonl", "save"] * (len(events) // 3)


def test_resume_between_checkpoints_cuts_the_metrics(tmp_path):
    settings = LoopSettings(batch_size=16, log_interval=1, checkpoint_every=3)
    whole = training(tmp_path / "whole", phases_of("at"), settings=settings)
    whole.fit()
    hooks = Hooks(scalar=StopAt(5))
    cut = training(tmp_path / "cut", phases_of("at"), settings=settings, hooks=hooks)
    with pytest.raises(Killed):
        cut.fit()
    with (tmp_path / "cut/metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "step", "step": 9')  # a line that a kill has cut short
    resumed = training(tmp_path / "cut", phases_of("at"), settings=settings)
    assert resumed.restore() == 3
    resumed.fit()
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()


def test_average_of_weights_resumes_and_is_what_is_evaluated(tmp_path):
    settings = LoopSettings(batch_size=16, checkpoint_every=1, log_interval=1, ema_decay=0.9)
    whole = training(tmp_path / "whole", phases_of("at"), settings=settings)
    whole.fit()
    cut = training(tmp_path / "cut", phases_of("at"), settings=settings, hooks=Hooks(scalar=StopAt(4)))
    with pytest.raises(Killed):
        cut.fit()
    resumed = training(tmp_path / "cut", phases_of("at"), settings=settings)
    resumed.fit()
    first, second = whole.evaluated_model.state_dict(), resumed.evaluated_model.state_dict()
    assert same(first, second)
    assert not same(first, weights_of(whole))


def test_evaluation_changes_no_later_weight(tmp_path):
    images = image_set(20, seed=5)

    def figures(model):
        result = evaluate(model, images, protocol("pgd-20", step_size=4 / 255), limit=4)
        return {"natural_accuracy": float(result.natural.mean()), "pgd20_accuracy": 0.0}

    quiet = training(tmp_path / "quiet", phases_of("at"))
    quiet.fit()
    watched = training(tmp_path / "watched", phases_of("at"), hooks=Hooks(evaluate=figures))
    watched.fit()
    assert same(weights_of(quiet), weights_of(watched))
    kinds = [line["kind"] for line in watched.run.metrics()]
    assert kinds.count("epoch") == 4  # 7 steps of 3 per epoch, a phase that ends after 2


def test_selection_keeps_the_best_weights(tmp_path):
    scores = iter([0.1, 0.2, 0.9, 0.4])
    settings = LoopSettings(batch_size=16, log_interval=1, selection="best")
    run = training(
        tmp_path,
        phases_of("natural"),
        settings=settings,
        hooks=Hooks(evaluate=lambda model: {"pgd20_accuracy": next(scores)}),
    )
    seen = {}
    fit_end = run.save

    def watch(step):
        seen[step] = weights_of(run)
        fit_end(step)

    run.save = watch
    run.fit()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert same(best, seen[6])


def test_a_loss_that_is_not_finite_stops_with_step_and_checkpoint(tmp_path):
    class Diverges(Natural):
        def loss(self, model, batch, context: StepContext) -> StepResult:
            result = super().loss(model, batch, context)
            factor = float("nan") if context.step == 4 else 1.0
            return StepResult(result.loss * factor, result.metrics)

    run = training(tmp_path, lambda: [Phase("main", Diverges(), 6, constant())])
    with pytest.raises(UserError, match=r"NaN at step 5 .*checkpoint of step 4 is whole"):
        run.fit()
    assert run.run.checkpoints.latest_step() == 4
    assert all(torch.isfinite(value).all() for value in run.run.checkpoints.latest()["model"].values())


def test_accumulation_slices_the_draws_of_the_global_batch(tmp_path):
    run = training(tmp_path, phases_of("at"))
    (batch, *_) = run._batches(0, 0)
    context = run._context(0, 0, (0, len(batch)), len(batch))
    whole = context.uniform("start", batch.images)
    pieces = micro_batches(batch, context, 3)
    assert torch.equal(torch.cat([c.uniform("start", b.images) for b, c in pieces]), whole)
    assert torch.equal(torch.cat([b.labels for b, _ in pieces]), batch.labels)


def test_accumulated_gradient_is_the_mean_over_the_batch(tmp_path):
    def frozen_norms(path, accumulate):
        settings = LoopSettings(
            batch_size=16, log_interval=1, accumulate=accumulate, momentum=0.0, weight_decay=0.0
        )
        run = training(path, lambda: [Phase("main", Natural(), 1, constant())], settings=settings)
        for module in run.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.forward = lambda x, m=module: torch.nn.functional.batch_norm(
                    x, m.running_mean, m.running_var, m.weight, m.bias, training=False
                )
        run.fit()
        return weights_of(run)

    once, thrice = frozen_norms(tmp_path / "1", 1), frozen_norms(tmp_path / "3", 3)
    for name, value in once.items():
        torch.testing.assert_close(thrice[name], value, rtol=1e-4, atol=1e-6)


def test_rate_of_each_phase_reaches_the_optimizer(tmp_path):
    from robust_core.training import Rate

    def build():
        return [Phase("a", Natural(), 2, constant(0.3)), Phase("b", Natural(), 2, Rate("linear", 0.2))]

    run = training(tmp_path, build)
    run.fit()
    rates = [line["lr"] for line in run.run.metrics() if line["kind"] == "step"]
    assert rates == [0.3, 0.3, 0.2, 0.1]


def test_training_leaves_global_randomness_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    training(tmp_path, phases_of("at")).fit()
    assert torch.equal(before, torch.get_rng_state())


def test_no_generator_state_in_a_checkpoint(tmp_path):
    run = training(tmp_path, phases_of("trades"))
    run.fit()
    state = run.run.checkpoints.latest()
    assert set(state) == {"step", "model", "optimizer", "average", "method", "best_score"}
    assert not any(isinstance(value, torch.Tensor) and value.dtype == torch.uint8 for value in state.values())


def test_small_model_is_the_same_for_a_seed():
    assert same(small_model(3).state_dict(), small_model(3).state_dict())
    assert not same(small_model(3).state_dict(), small_model(4).state_dict())


def test_a_uniform_start_lies_in_the_l2_ball(tmp_path):
    run = training(tmp_path, phases_of("at"))
    (batch, *_) = run._batches(0, 0)
    context = run._context(0, 0, (0, len(batch)), len(batch))
    attack = InnerAttack(0.5, 0.1, 0, norm="l2", clip_start=False)
    lengths = (attack.start_from(batch.images, context) - batch.images).flatten(1).norm(dim=1)
    assert float(lengths.max()) <= 0.5 * (1 + 1e-5)
    assert float(lengths.min()) > 0.4  # in many dimensions nearly all of a ball lies at its surface
