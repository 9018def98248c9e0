"""What every attack promises, one table and one body each."""

import functools

import pytest
import torch
from purity import unchanged
from small_nets import ConvNet

from robust_core import attacks
from robust_core.errors import UserError
from robust_core.models import FrozenView

pytestmark = pytest.mark.usefixtures("one_thread")


def budgeted(attack, model, images, labels, *, eps, **settings):
    return attack(model, images, labels, budget=lambda cam: eps, **settings).images


def three_steps(attack, model, images, labels, *, eps, **settings):
    return attack(model, images, labels, eps=eps, step_size=0.02, steps=3, **settings)


def autoattack(model, images, labels, *, eps, **settings):
    pytest.importorskip("pyautoattack")
    return attacks.autoattack(model, images, labels, eps=eps, **settings).images


STEPS = {"step_size": 0.02, "steps": 3}
ATTACKS = {
    "fgsm": attacks.fgsm,
    "fgsm-l2": functools.partial(attacks.fgsm, norm="l2"),
    "pgd": functools.partial(three_steps, attacks.pgd),
    "pgd-l2": functools.partial(three_steps, attacks.pgd, norm="l2"),
    "pgd-normal": functools.partial(three_steps, attacks.pgd, random_start="normal"),
    "pgd-kl": functools.partial(three_steps, attacks.pgd, loss="kl"),
    "pgd-dlr": functools.partial(three_steps, attacks.pgd, loss="dlr"),
    "pgd-best": functools.partial(three_steps, attacks.pgd, keep="best", restarts=2),
    "square": functools.partial(attacks.square, queries=20),
    "rays": functools.partial(attacks.rays, queries=20),
    "random_corners": functools.partial(attacks.random_corners, draws=5),
    "pgd-early": functools.partial(three_steps, attacks.pgd, early_stop=True, restarts=2),
    "pgd-targeted": functools.partial(three_steps, attacks.pgd, targeted=True),
    "margin_pgd": functools.partial(three_steps, attacks.margin_pgd),
    "mma": functools.partial(three_steps, attacks.mma),
    "mma-l2": functools.partial(three_steps, attacks.mma, norm="l2"),
    "apgd-ce": functools.partial(attacks.apgd, steps=5),
    "apgd-dlr": functools.partial(attacks.apgd, steps=5, loss="dlr", restarts=2),
    "apgd-dlr-targeted": functools.partial(attacks.apgd, steps=5, loss="dlr-targeted"),
    "apgd-l2": functools.partial(attacks.apgd, steps=5, norm="l2"),
    "pgd_under_cam": functools.partial(budgeted, attacks.pgd_under_cam, **STEPS),
    "mma_under_cam": functools.partial(budgeted, attacks.mma_under_cam, cam_method="layercam", **STEPS),
}
table = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
with_autoattack = pytest.mark.parametrize(
    "attack", [*ATTACKS.values(), autoattack], ids=[*ATTACKS, "autoattack"]
)


def batch(dtype=torch.float32, count=5):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 3, 8, 8, generator=generator).to(dtype)
    images[:, :, :2] = 0.0
    images[:, :, -2:] = 1.0
    return images, torch.arange(count) % 5


def traced_net():
    """A network in a state that a careless attack would change."""
    net = ConvNet()
    net.train()
    net.drop.eval()
    net.conv.bias.requires_grad_(False)
    net.conv.weight.grad = torch.full_like(net.conv.weight, 7.0)
    net.register_forward_hook(lambda *_: None)
    return net


@with_autoattack
def test_no_trace_is_left(attack):
    net = traced_net()
    images, labels = batch()
    before = images.clone(), labels.clone(), images._version
    with unchanged(net):
        attack(net, images, labels, eps=0.5)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert images._version == before[2]
    assert not images.requires_grad


@table
def test_no_trace_is_left_on_a_frozen_view_nor_without_gradients(attack):
    view = FrozenView(ConvNet())
    images, labels = batch()
    with unchanged(view), torch.no_grad():
        result = attack(view, images, labels, eps=0.1)
    assert not result.requires_grad


class Failing(ConvNet):
    """Fails when the passes are used up; they are counted by the class, because attacks run on a copy."""

    passes_left = 0

    def forward_features(self, images):
        type(self).passes_left -= 1
        if self.passes_left < 0:
            raise RuntimeError("power cut")
        return super().forward_features(images)


@table
def test_no_trace_is_left_after_an_exception(attack, monkeypatch):
    net = Failing()
    net.train()
    images, labels = batch()
    monkeypatch.setattr(Failing, "passes_left", 1000)
    attack(net, images, labels, eps=0.1)
    needed = 1000 - Failing.passes_left
    for allowed in {0, needed // 2, needed - 1}:
        Failing.passes_left = allowed
        with unchanged(net), pytest.raises(RuntimeError, match="power cut"):
            attack(net, images, labels, eps=0.1)


@with_autoattack
def test_a_user_mistake_leaves_no_trace(attack):
    net = traced_net()
    images, labels = batch()
    with unchanged(net), pytest.raises(UserError):
        attack(net, images, labels + 3, eps=0.1)


@table
def test_the_same_call_gives_the_same_bits(attack):
    net, (images, labels) = ConvNet(), batch()
    assert torch.equal(attack(net, images, labels, eps=0.1), attack(net, images, labels, eps=0.1))


@table
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_eps_gives_the_images_back_to_the_bit(attack, dtype):
    images, labels = batch(dtype)
    result = attack(ConvNet().to(dtype), images, labels, eps=0.0)
    assert torch.equal(result, images)
    assert result is not images
    assert result.data_ptr() != images.data_ptr()


@table
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_dtype_shape_and_layout_of_the_images(attack, dtype):
    images, labels = batch(dtype)
    result = attack(ConvNet(), images, labels, eps=0.1)
    assert result.dtype == dtype
    assert result.shape == images.shape
    assert result.is_contiguous()
    assert not torch.equal(result, images)


@table
def test_the_result_lies_in_ball_and_box(attack, request):
    net, (images, labels) = ConvNet(), batch()
    result = attack(net, images, labels, eps=0.05)
    assert result.min() >= 0
    assert result.max() <= 1
    if "-l2" in request.node.callspec.id:
        assert (result - images).flatten(1).norm(dim=1).max() <= 0.05 * (1 + 1e-6)
    else:
        assert (result - images).abs().max() <= 0.05 + torch.finfo(torch.float32).eps


@table
def test_a_low_precision_view_leaves_pixels_in_float32(attack):
    view = FrozenView(ConvNet(), dtype=torch.bfloat16)
    images, labels = batch()
    result = attack(view, images, labels, eps=8 / 255)
    assert result.dtype == torch.float32
    assert (result - images).abs().max() <= 8 / 255 + 1e-6
    assert torch.equal(attack(view, images, labels, eps=0.0), images)
    assert not torch.equal(result[:, :, 3:-3].bfloat16().float(), result[:, :, 3:-3])


@table
def test_every_attack_refuses_normalised_images(attack):
    images, labels = batch()
    with pytest.raises(UserError, match="normalised"):
        attack(ConvNet(), 4 * images - 2, labels, eps=0.1)


@table
def test_every_attack_refuses_labels_that_the_model_does_not_have(attack):
    images, labels = batch()
    with pytest.raises(UserError, match=r"label is 6, but the model has 5 classes"):
        attack(ConvNet(), images, labels + 2, eps=0.1)


@table
def test_every_attack_refuses_a_negative_eps(attack):
    images, labels = batch()
    with pytest.raises(UserError, match=r"eps is -0\.1"):
        attack(ConvNet(), images, labels, eps=-0.1)


def test_a_module_a_view_and_a_function_give_the_same():
    net = ConvNet().eval()
    images, labels = batch(torch.float64)
    net = net.double()
    results = [
        attacks.pgd(model, images, labels, eps=0.1, step_size=0.02, steps=3)
        for model in (net, FrozenView(net), lambda x: net(x))
    ]
    assert torch.allclose(results[0], results[1], atol=1e-12)
    assert torch.allclose(results[0], results[2], atol=1e-12)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.drop.eval(),
        lambda net: net.norm.running_mean.add_(1),
        lambda net: net.conv.weight.requires_grad_(False),
        lambda net: setattr(net.conv.weight, "grad", torch.ones_like(net.conv.weight)),
        lambda net: net.conv.register_forward_hook(lambda *_: None),
        lambda net: setattr(net, "last_images", None),
        lambda net: torch.rand(1),
    ],
)
def test_the_purity_check_notices_each_trace(change, fails):
    net = ConvNet()

    def leave_a_trace():
        change(net)
        if fails:
            raise RuntimeError

    with pytest.raises(AssertionError, match="changed"), unchanged(net):
        leave_a_trace()
