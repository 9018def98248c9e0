"""Attacks on a CUDA device: the same results, and no waiting for the device in the training core."""

import pytest
import torch
from small_nets import ConvNet, prototypes

from robust_core.attacks import apgd, ascend, ascend_targets, draw_start, mma, objectives, pgd
from robust_core.attacks.mma import wrong_classes
from robust_core.models import FrozenView

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def sync_mode():
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


def problem(device, dtype=torch.float64):
    images, labels = prototypes(8, 0)
    return FrozenView(ConvNet(6).to(device, dtype)), images.to(device, dtype), labels.to(device)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [pgd, mma])
def test_both_devices_agree(attack, norm):
    settings = {"eps": 0.1, "step_size": 0.02, "steps": 4, "norm": norm}
    results = [attack(*problem(device), **settings).cpu() for device in ("cpu", "cuda")]
    assert torch.allclose(*results, atol=1e-9)


def test_search_and_apgd_agree():
    for attack, settings in ((pgd, {"step_size": 0.02, "early_stop": True, "restarts": 2}), (apgd, {})):
        results = [attack(*problem(device), eps=0.1, steps=8, **settings).cpu() for device in ("cpu", "cuda")]
        assert torch.allclose(*results, atol=1e-8)


def test_a_generator_of_either_device_serves():
    view, images, labels = problem("cuda", torch.float32)
    for device in ("cpu", "cuda"):
        generator = torch.Generator(device=device).manual_seed(0)
        result = pgd(view, images, labels, eps=0.1, step_size=0.02, steps=1, generator=generator)
        assert result.is_cuda
        assert (result - images).abs().max() <= 0.1 + 1e-6


def test_the_training_core_never_waits_for_the_device(sync_mode):
    view, images, labels = problem("cuda", torch.float32)
    generator = torch.Generator(device="cuda").manual_seed(0)
    logits = view(images).detach()
    sync_mode("error")
    start = draw_start(images, eps=0.1, kind="uniform", generator=generator)
    for objective in (objectives.cross_entropy, objectives.margin, objectives.kl_to(logits)):
        for norm in ("linf", "l2"):
            ascend(
                view, images, labels, start=start, eps=0.1, step_size=0.02, steps=2, objective=objective, norm=norm
            )  # fmt: skip
    ascend_targets(
        view, images, labels, start=start, eps=0.1, step_size=0.02, steps=2,
        target_classes=wrong_classes(logits, labels, 3),
    )  # fmt: skip
