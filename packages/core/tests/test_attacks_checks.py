"""Each refusal of the attacks, with its message."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from small_nets import ConvNet

from robust_core.attacks import apgd, mma, pgd, pgd_under_cam
from robust_core.attacks.objectives import dlr, targeted_dlr
from robust_core.errors import UserError
from robust_core.models import FrozenView, build_model

NAN = float("nan")
KL = {"loss": "kl"}


class Returning(torch.nn.Module):
    """A network whose logits go through ``change``."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = ConvNet(), change

    def forward(self, images):
        return self.change(self.net(images))


def ours():
    return build_model("resnet8-s2", 10, seed=0).eval()


def under_cam(model, images, labels, *, eps, **settings):
    return pgd_under_cam(model, images, labels, budget=eps, **settings)


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
        ({"model": Returning(lambda logits: (logits, 0))}, r"model returned a tuple, expected logits \(4, classes\)"),
        ({"model": FrozenView(Returning(lambda logits: {"logits": logits})), "keep": "best", "steps": 0},
         "model returned a dict, expected logits"),
        ({"model": lambda images: (images, 0)}, "model returned a tuple, expected logits"),
        ({"attack": mma, "model": Returning(lambda logits: [logits])}, "model returned a list, expected logits"),
        ({"attack": apgd, "model": lambda images: (images, 0), **KL}, "model returned a tuple, expected logits"),
        ({"model": ours(), "images": torch.rand(4, 1, 8, 8)}, r"\(4, 1, 8, 8\), but resnet8-s2 takes \(N, 3, H, W\)"),
        ({"model": ours(), "images": torch.rand(4, 4, 8, 8)}, r"\(4, 4, 8, 8\), but resnet8-s2 takes \(N, 3, H, W\)"),
        ({"model": FrozenView(ours()), "images": torch.rand(4, 192)}, r"shape \(4, 192\), but resnet8-s2 takes"),
        ({"attack": apgd, "model": ours(), "images": torch.rand(4, 1, 3, 8, 8)}, "takes \\(N, 3, H, W\\)"),
        ({"attack": mma, "model": ours(), "images": torch.rand(4, 3, 8)}, "takes \\(N, 3, H, W\\)"),
        (KL | {"reference_logits": torch.zeros(4, 7)}, r"reference logits have shape \(4, 7\), the model's \(4, 5\)"),
        (KL | {"reference_logits": torch.zeros(4, 1)}, r"reference logits have shape \(4, 1\), the model's \(4, 5\)"),
        (KL | {"reference_logits": torch.zeros(3, 5)}, r"reference_logits is shape \(3, 5\), expected a tensor \(4, "),
        (KL | {"reference_logits": "natural"}, "reference_logits is str, expected a tensor"),
        (KL | {"reference_logits": torch.full((4, 5), NAN)}, "reference_logits holds NaN"),
        (KL | {"reference_logits": torch.zeros(4, 5).long()}, r"reference_logits holds torch\.int64"),
        (KL | {"reference_logits": torch.zeros(4, 5, device="meta")}, "reference_logits is on meta"),
        ({"attack": mma, "reference_logits": "natural"}, "reference_logits is str, expected a tensor"),
        ({"loss": lambda logits, labels: logits.detach().sum(1)}, "loss has no gradient with respect to the logits"),
        ({"loss": lambda logits, labels: 3.0}, r"loss returned a float, expected \(4,\)"),
        ({"model": lambda images: torch.zeros(4, 5)}, "logits have no gradient with respect to the images"),
        ({"model": lambda images: torch.zeros(4, 5, requires_grad=True)}, "logits have no gradient with respect"),
        ({"model": Returning(torch.Tensor.detach), "attack": apgd}, "logits have no gradient with respect"),
        ({"model": Returning(lambda logits: logits * NAN)}, "model's logits are NaN"),
        ({"model": Returning(lambda logits: logits * NAN), "early_stop": True}, "model's logits are NaN"),
        ({"attack": mma, "model": Returning(lambda logits: logits * NAN)}, "model's logits are NaN"),
        ({"attack": apgd, "loss": "dlr-targeted", "model": Returning(lambda logits: logits * NAN)}, "logits are NaN"),
        ({"loss": lambda logits, labels: (logits.sum(1) - 1e9).log()}, "loss is NaN although the logits are numbers"),
        ({"start": torch.full((4, 3, 8, 8), NAN)}, "start holds .*NaN"),
        ({"generator": 7}, r"generator is 7, expected a torch\.Generator"),
        ({"attack": apgd, "generator": 7}, r"generator is 7, expected a torch\.Generator"),
        ({"eps": torch.full((4,), 0.1 + 0j)}, r"eps is a tensor of torch\.complex64, expected numbers"),
        ({"eps": torch.ones(4, dtype=torch.bool)}, r"eps is a tensor of torch\.bool, expected numbers"),
        ({"eps": True}, "eps is True, expected a number"),
        ({"steps": np.float64(2)}, "expected a whole number"),
        ({"attack": under_cam, "eps": 8 / 255}, "budget is 0.03.*, expected a function from the CAM to eps"),
        ({"attack": under_cam, "eps": lambda cam: "8/255"}, "eps is '8/255', expected a number"),
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


@pytest.mark.parametrize("attack", [pgd, mma])
def test_numbers_of_other_libraries_are_numbers(attack):
    expected = call(attack, eps=0.125, step_size=0.25, steps=2)
    changes = {"eps": np.float32(0.125), "step_size": Fraction(1, 4), "steps": np.int64(2)}
    if attack is mma:
        changes["targets"] = np.int32(3)
    assert torch.equal(call(attack, **changes), expected)
    assert torch.equal(call(apgd, eps=np.float64(0.125), steps=np.int64(3)), call(apgd, eps=0.125, steps=3))


def test_masked_classes_are_no_fault():
    def without_the_last(logits):
        return torch.cat([logits[:, :4], torch.full((4, 1), -torch.inf)], dim=1)

    assert call(model=Returning(without_the_last)).isfinite().all()


def test_an_attribute_error_of_the_model_stays_its_own():
    class Unfinished(torch.nn.Module):
        def forward(self, images):
            return self.missing(images)

    with pytest.raises(AttributeError, match="missing"):
        call(model=Unfinished())


def test_nan_is_looked_for_once_a_call():
    """The later passes may not wait for the device."""
    passes = []

    def loss(logits, labels):
        passes.append(len(passes))
        return logits.sum(1) * (1.0 if len(passes) == 1 else NAN)

    call(loss=loss, steps=3)
    assert len(passes) == 3
