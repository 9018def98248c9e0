"""PART's budgets: own masks that move with their image, fresh masks, masks by batch number, controls."""

from __future__ import annotations

import pytest
import torch
from runs import image_set, small_model

from part.mask import make_mask
from part.masks import MaskRule, StoredMasks
from part.methods import Part
from robust_core.cam import class_activation_map, normalize_map
from robust_core.data import batches, crop_and_flip
from robust_core.models import FrozenView
from robust_core.training import StepContext
from robust_core.training.methods import AtLoss, InnerAttack, TradesLoss

EPS, LOW = 8 / 255, 7 / 255


@pytest.fixture(scope="module")
def view():
    return FrozenView(small_model().eval())


def context(view, step=0, size=16, total=16):
    return StepContext(1, 0, step, step, 10, view, (0, size), total)


def method(outer=None, **changes):
    attack = InnerAttack(EPS, 4 / 255, 2)
    control = changes.pop("control", "none")
    rule = MaskRule("gradcam", changes.pop("rule", "cam"), changes.pop("cam_class", "predicted"), control)
    return Part("PART", attack, outer or AtLoss(), rule, LOW, batch_size=16, **changes)


def first_batch(data, epoch=0):
    return next(iter(batches(data, batch_size=16, seed=1, epoch=epoch)))


def test_each_image_meets_its_own_mask_moved_with_it(view):
    data = image_set()
    part = method()
    part.begin_epoch(data, context(view))
    batch = first_batch(data)
    eps, share, _ = part.budget(batch, context(view))
    maps = class_activation_map(view, data.pixels(batch.indices), method="gradcam").maps
    own = make_mask(normalize_map(maps), (32, 32), "cam")
    expected = crop_and_flip(own, batch.offsets, batch.flips, batch.padding, fill=False)
    assert torch.equal(eps > (EPS + LOW) / 2, expected)
    assert torch.allclose(eps[expected], torch.tensor(EPS))
    assert torch.allclose(eps[~expected], torch.tensor(LOW))
    assert float(share) == pytest.approx(float(expected.float().mean()))


def test_masks_by_batch_number_belong_to_other_images(view):
    data = image_set()
    part = method(refresh="batch")
    part.begin_epoch(data, context(view))
    batch = first_batch(data)
    eps, _, _ = part.budget(batch, context(view))
    own, _ = part.rule.masks(view, batch.images, batch.labels)
    assert not torch.equal(eps > (EPS + LOW) / 2, own)


def test_fresh_masks_are_those_of_the_batch_and_save_a_pass(view):
    part = method(TradesLoss(), refresh="step")
    batch = first_batch(image_set())
    assert part.begin_epoch(image_set(), context(view)) == {}
    eps, _, logits = part.budget(batch, context(view))
    own, seen = part.rule.masks(view, batch.images, batch.labels)
    assert torch.equal(eps > (EPS + LOW) / 2, own)
    assert torch.equal(logits, seen.logits)


@pytest.mark.parametrize("refresh", ["epoch", "step"])
@pytest.mark.parametrize("control", ["random", "shifted", "inverted", "uniform"])
@pytest.mark.parametrize("rule", ["cam", "jet"])
def test_controls_keep_the_density(view, refresh, control, rule):
    data = image_set()
    plain, controlled = method(refresh="step", rule=rule), method(refresh="step", rule=rule, control=control)
    if refresh == "epoch":
        plain, controlled = method(rule=rule), method(rule=rule, control=control)
    for part in (plain, controlled):
        part.begin_epoch(data, context(view))
    batch = next(iter(batches(data, batch_size=16, seed=1, epoch=0, augment=False)))
    before, after = (part.budget(batch, context(view))[0] for part in (plain, controlled))
    mean = [eps.expand(16, 3, 32, 32).flatten(1).mean(1) for eps in (before, after)]
    torch.testing.assert_close(mean[1], mean[0], rtol=1e-6, atol=0)
    assert not torch.equal(*torch.broadcast_tensors(before, after))
    assert (after.shape == (16, 1, 1, 1)) is (control == "uniform")


def test_masks_are_made_anew_every_few_epochs(view):
    part = method(save_weights=3)
    made = [bool(part.begin_epoch(image_set(), context(view, step))) for step in range(7)]
    assert made == [True, False, True, False, False, True, False]


def test_the_map_of_the_label_or_of_the_prediction(view):
    data = image_set(seed=3)
    by_label, by_prediction = MaskRule(cam_class="label"), MaskRule()
    images, labels = data.pixels(slice(0, 32)), data.labels[:32]
    _, seen = by_label.masks(view, images, labels)
    assert torch.equal(seen.classes, labels)
    _, seen = by_prediction.masks(view, images, labels)
    assert torch.equal(seen.classes, seen.logits.argmax(1))


def test_state_goes_on_exactly(view):
    data = image_set()
    first, second = method(save_weights=2), method(save_weights=2)
    first.begin_epoch(data, context(view))
    second.load_state_dict(first.state_dict())
    batch = first_batch(data)
    assert torch.equal(first.budget(batch, context(view))[0], second.budget(batch, context(view))[0])
    assert second.epochs_begun == 1


def test_the_adversarial_images_stay_within_the_budget(view):
    model = small_model().train()
    data = image_set()
    part = method()
    part.begin_epoch(data, context(view))
    batch = first_batch(data)
    eps, _, _ = part.budget(batch, context(view))
    with torch.no_grad():
        adversarial = part.attack(batch.images, batch.labels, context(view), eps=eps)
    assert float(((adversarial - batch.images).abs() - eps).max()) <= 1e-6
    result = part.loss(model, batch, context(view))
    assert torch.isfinite(result.loss)
    assert 0.0 < float(result.metrics["mask_density"]) < 0.5


def test_masks_do_not_depend_on_who_computes_them(view):
    data = image_set()
    whole = StoredMasks(MaskRule(control="random"))
    whole.refresh(data, context(view), batch_size=16)
    again = StoredMasks(MaskRule(control="random"))
    again.refresh(data, context(view), batch_size=8)
    rows = torch.arange(len(data))
    assert torch.equal(whole.store.read(rows), again.store.read(rows))
