"""Each refusal of the attacks, with its message."""

import pytest
import torch
from small_nets import ConvNet

from robust_core.attacks import apgd, mma, pgd
from robust_core.attacks.objectives import dlr, targeted_dlr
from robust_core.errors import UserError

NAN = float("nan")


def call(attack=pgd, model=None, **changes):
    arguments = {
        "images": torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.arange(4),
        "eps": 0.1,
    }
    if attack is not apgd:
        arguments |= {"step_size": 0.02, "steps": 2}
    arguments |= changes
    images, labels = arguments.pop("images"), arguments.pop("labels")
    return attack(model or ConvNet(), images, labels, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 4 * torch.rand(4, 3, 8, 8) - 2}, r"lie in \[-.*expected \[0, 1\]: give images that are not norm"),
        ({"images": torch.full((4, 3, 8, 8), 200.0)}, r"\[200, 200\], expected \[0, 1\]: divide 8-bit images by 255"),
        ({"images": torch.full((4, 3, 8, 8), 1.5)}, r"not normalised; normalisation is the first layer"),
        ({"images": torch.full((4, 3, 8, 8), NAN)}, "images hold NaN"),
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, r"uint8: give float32 .*/ 255"),
        ({"images": torch.zeros(4, 3, 8, 8).half()}, r"torch\.float16: .*images\.float\(\)"),
        ({"images": torch.zeros(0, 3, 8, 8)}, "batch of images is empty"),
        ({"images": torch.zeros(4)}, r"shape \(4,\): give a tensor \(N, C, H, W\)"),
        ({"images": [[0.0]]}, "images are list: give a tensor"),
        ({"labels": torch.arange(4) + 2}, "label is 5, but the model has 5 classes, counted from 0"),
        ({"labels": torch.tensor([0, -1, 2, 3])}, "label is -1, expected class numbers from 0"),
        ({"labels": torch.arange(4).float()}, r"labels are torch\.float32, expected int64.*labels\.long\(\)"),
        ({"labels": [0, 1, 2, 3]}, "labels are list, expected int64"),
        ({"labels": torch.arange(3)}, r"labels have shape \(3,\), expected \(4,\): give one class"),
        ({"labels": torch.eye(4, dtype=torch.int64)}, r"labels have shape \(4, 4\), expected \(4,\)"),
        ({"labels": torch.arange(4, device="meta")}, r"labels are on meta, the images on cpu: use labels\.to"),
        ({"eps": -0.1}, r"eps is -0\.1, expected at least 0"),
        ({"eps": NAN}, "eps is nan, expected a finite number"),
        ({"eps": torch.tensor([0.1, NAN, 0.1, 0.1])}, "eps is nan, expected a finite number"),
        ({"eps": torch.tensor([0.1, -0.2, 0.1, 0.1])}, r"eps is -0\.2, expected at least 0"),
        ({"eps": float("inf")}, "eps is inf, expected a finite number"),
        ({"eps": 8}, "eps is 8, expected at most 1: .*write 8/255, not 8"),
        ({"eps": "8/255"}, "eps is '8/255', expected a number"),
        ({"eps": torch.full((3,), 0.1)}, r"eps has shape \(3,\), which does not fit images \(4, 3, 8, 8\)"),
        ({"eps": torch.full((4, 3, 7, 8), 0.1)}, r"eps has shape \(4, 3, 7, 8\), which does not fit"),
        ({"eps": torch.full((1, 4, 3, 8, 8), 0.1)}, "does not fit"),
        ({"eps": torch.full((4,), 0.1, device="meta")}, r"eps is on meta, the images on cpu: use eps\.to"),
        ({"eps": torch.full((4, 1, 8, 8), 0.1), "norm": "l2"}, "eps per pixel has no meaning in the L2 norm"),
        ({"step_size": -1.0}, r"step_size is -1, expected at least 0"),
        ({"step_size": NAN}, "step_size is nan, expected a finite number"),
        ({"steps": -1}, "steps is -1, expected a whole number of at least 0"),
        ({"steps": 2.5}, r"steps is 2\.5, expected a whole number"),
        ({"restarts": 0}, "restarts is 0, expected a whole number of at least 1"),
        ({"norm": "l1"}, r"Unknown norm 'l1'\. Known: l2, linf"),
        ({"loss": "dlrr"}, "Unknown loss 'dlrr'; did you mean 'dlr'"),
        ({"loss": "kl", "targeted": True}, "loss='kl' has no target"),
        ({"loss": lambda logits, labels: logits.sum()}, r"loss returned shape \(\), expected \(4,\)"),
        ({"keep": "beste"}, "Unknown keep 'beste'; did you mean 'best'"),
        ({"random_start": "unifrom"}, "Unknown random start 'unifrom'; did you mean 'uniform'"),
        ({"start": torch.zeros(4, 3, 8, 7)}, r"start has shape \(4, 3, 8, 7\), expected the images' \(4, 3, 8, 8\)"),
        ({"start": 0.0}, "start has shape float, expected"),
        ({"start": torch.zeros(4, 3, 8, 8, device="meta")}, r"start is on meta.*use start\.to"),
        ({"model": 3}, "model must be a module or a function"),
        ({"model": lambda images: images}, r"model returned shape \(4, 3, 8, 8\), expected logits \(4, classes\)"),
        ({"attack": mma, "targets": 0}, "targets is 0, expected a whole number of at least 1"),
        ({"attack": mma, "model": lambda images: images.flatten(1)[:, :1], "labels": torch.zeros(4).long()},
         "model has one class, expected at least two"),
        ({"attack": apgd, "loss": "dlr-target"}, "Unknown loss 'dlr-target'; did you mean 'dlr-targeted'"),
        ({"attack": apgd, "targets": -1}, "targets is -1"),
        ({"attack": apgd, "loss": "dlr", "model": lambda images: images.flatten(1)[:, :2],
          "labels": torch.zeros(4).long()}, "dlr objective needs at least 3 classes, the network has 2: use the"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_told(changes, message):
    with pytest.raises(UserError, match=message):
        call(**changes)


def test_objectives_name_the_classes_that_they_need():
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match="dlr objective needs at least 3 classes, the network has 2"):
        dlr(torch.zeros(2, 2), labels)
    with pytest.raises(UserError, match="targeted dlr objective needs at least 4 classes, the network has 3"):
        targeted_dlr(torch.zeros(2, 3), labels, labels + 1)


def test_limits_are_allowed():
    images = torch.zeros(2, 3, 8, 8)
    images[1] = 1.0
    assert torch.isfinite(call(images=images, labels=torch.tensor([0, 4]), eps=1, step_size=1)).all()
    assert torch.equal(call(images=images, labels=torch.tensor([0, 4]), eps=0, steps=0), images)
    call(eps=torch.tensor(0.1), norm="l2")
    call(eps=torch.full((4, 1, 1, 1), 2.0), norm="l2")
