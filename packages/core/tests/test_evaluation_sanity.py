"""The sanity table: a plain TRADES network passes every line, each fixture fails on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_trades import EPS, MaskedByArgmax, Rounded, Scaled, tiny_images, tiny_trades

from robust_core import attacks
from robust_core.errors import UserError
from robust_core.evaluation import (
    Check,
    Member,
    Protocol,
    SanityEffort,
    evaluate,
    load_checks,
    sanity_table,
    save_checks,
)
from robust_core.evaluation.members import RUNNERS
from robust_core.evaluation.sanity import adaptive_check

pytestmark = pytest.mark.usefixtures("one_thread")
EFFORT = SanityEffort(
    apgd_steps=25, more_steps=75, more_restarts=3, queries=120, corners=30, curve=(4 / 255, 8 / 255, 16 / 255)
)
LINES = (
    *("natural against PGD", "one step against many", "no gradients against gradients"),
    *(
        "budget of the attack",
        "large eps",
        "eps curve",
        "gradients",
        "precision",
        "adaptive against standard",
    ),
)


def _table(model, images=100, **options):
    found = sanity_table(
        model.eval(), tiny_images(100), images=images, effort=options.pop("effort", EFFORT), **options
    )
    return {check.name: check for check in found}


def _guessed(model):
    """A network's evaluation under APGD and under APGD on the first guess, which chooses a mask."""

    def on_the_guess(call):
        return attacks.apgd(
            model.guess, call.images, call.labels, eps=EPS, steps=25, early_stop=call.standing,
            observe=call.observe, generator=call.generator(),
        )  # fmt: skip

    members = (
        Member("apgd", "apgd", {"eps": EPS, "steps": 25}),
        Member("guess", "on-the-guess", {"eps": EPS}),
    )
    return evaluate(
        model.eval(),
        tiny_images(200),
        Protocol("p", members),
        runners={"on-the-guess": on_the_guess},
        cascade=True,
    )


def test_a_plain_trades_network_passes_every_line():
    net = tiny_trades()
    members = tuple(
        Member(loss, "apgd", {"eps": EPS, "steps": 25, "loss": loss}) for loss in ("margin", "ce")
    )
    adaptive = evaluate(net, tiny_images(100), Protocol("p", members))
    found = _table(net, sources={"other": tiny_trades(1)}, adaptive=adaptive, standard="margin")
    assert tuple(found) == LINES
    assert {name: check.figures for name, check in found.items() if check.failed is not False} == {}
    assert "transfer other" in found["no gradients against gradients"].figures


def test_huge_logits_fail_by_their_gradients():
    assert _table(Scaled(tiny_trades()), images=60)["gradients"].failed


def test_rounding_fails_by_attacks_without_gradients():
    found = _table(Rounded(tiny_trades()), images=60, sources={"plain": tiny_trades()})
    check = found["no gradients against gradients"]
    assert check.failed
    shares = dict(part.rsplit(" ", 1) for part in check.figures.split(", "))
    for name in ("square", "transfer plain"):
        assert float(shares[name].rstrip("%")) > 1.0


def test_a_mask_chosen_by_argmax_fails_by_an_attack_that_knows_it():
    assert adaptive_check(_guessed(MaskedByArgmax(tiny_trades())), "apgd").failed


class _Repaired(torch.nn.Module):
    """Wrong on natural images, whose pixels are whole 255ths; what is changed it sees as TRADES made it."""

    def __init__(self):
        super().__init__()
        self.net = tiny_trades()

    def forward(self, images):
        levels = images.detach() * 255
        natural = ((levels - levels.round()).abs() < 1e-3).flatten(1).all(dim=1)
        logits = self.net(images)
        return torch.where(natural[:, None], logits.roll(1, dims=1), logits)


def test_accuracy_under_attack_above_natural_accuracy_fails():
    check = _table(_Repaired(), images=40)["natural against PGD"]
    assert check.failed
    assert check.verdict == "FAILS"


def test_one_step_that_beats_many_fails():
    """The gradient's sign at the random start leads out, PGD's later ones lead back."""
    effort = replace(EFFORT, step_size=0.0)
    assert _table(tiny_trades(), images=60, effort=effort)["one step against many"].failed


class _Wavy(torch.nn.Module):
    """Its gradient at whole 255ths, where natural images lie, points elsewhere than between them."""

    def __init__(self):
        super().__init__()
        self.net = tiny_trades()

    def forward(self, images):
        return self.net(images + torch.sin(2 * torch.pi * 255 * images) / 255)


def test_one_step_is_of_the_whole_budget_from_the_image_itself():
    assert _table(_Wavy(), images=60)["one step against many"].failed


def test_a_table_that_was_stopped_goes_on(tmp_path, monkeypatch):
    first = _table(tiny_trades(), images=20, folder=tmp_path)
    (tmp_path / "sanity-1.npz").unlink()
    (tmp_path / "sanity-1.json").unlink()
    attacked = []

    def counted(kind):
        runner = RUNNERS[kind]
        return lambda call: attacked.append(call.purpose) or runner(call)

    for kind in ("pgd", "fgsm", "apgd", "square", "random_corners"):
        monkeypatch.setitem(RUNNERS, kind, counted(kind))
    assert _table(tiny_trades(), images=20, folder=tmp_path) == first
    assert set(attacked) == {"evaluate-pgd", "evaluate-fgsm"}


def test_without_an_adaptive_evaluation_that_line_is_not_checked():
    net = tiny_trades()
    for adaptive in (None, evaluate(net, tiny_images(8), "natural")):
        check = adaptive_check(adaptive, "autoattack")
        assert (check.failed, check.verdict) == (None, "not checked")


def test_checks_are_kept(tmp_path):
    checks = [Check("a", "b", "c", True), Check("d", "e", "f", None)]
    save_checks(tmp_path / "sanity.json", checks)
    assert load_checks(tmp_path / "sanity.json") == checks
    (tmp_path / "sanity.json").write_text('{"checks": [{"name": "a"}]}')
    with pytest.raises(UserError, match="cannot be read"):
        load_checks(tmp_path / "sanity.json")
