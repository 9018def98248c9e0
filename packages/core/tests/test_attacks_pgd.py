"""PGD against closed-form answers and against itself."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import ConvNet, linear_net, prototypes, trained_net

from robust_core.attacks import ascend, draw_start, fgsm, margin_pgd, objectives, pgd
from robust_core.attacks.checks import check_images
from robust_core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def two_classes(shape, count, seed=0):
    """A linear model of two classes, images, labels, and the direction that each image's label fears."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    weight = torch.randn(2, size, generator=generator, dtype=torch.float64)
    images = torch.rand(count, *shape, generator=generator, dtype=torch.float64)
    labels = torch.arange(count) % 2
    towards = (weight[1 - labels] - weight[labels]).view(count, *shape)
    return linear_net(weight, torch.zeros(2)), images, labels, towards


shapes = pytest.mark.parametrize("shape", [(5,), (2, 7), (3, 4, 4)])
counts = pytest.mark.parametrize("count", [1, 3, 8])


@shapes
@counts
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_linf_reaches_the_worst_corner_of_a_linear_model(shape, count, loss):
    net, images, labels, towards = two_classes(shape, count)
    result = pgd(net, images, labels, eps=0.2, step_size=0.05, steps=12, loss=loss)
    assert torch.allclose(result, (images + 0.2 * towards.sign()).clamp(0, 1), atol=1e-12)


@shapes
@counts
def test_l2_reaches_the_worst_point_of_a_linear_model(shape, count):
    net, images, labels, towards = two_classes(shape, count)
    images = 0.4 + 0.2 * images
    result = pgd(net, images, labels, eps=0.3, step_size=0.1, steps=300, norm="l2")
    worst = images + 0.3 * towards / towards.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
    assert torch.allclose(result, worst, atol=1e-6)


@counts
@pytest.mark.parametrize("targeted", [False, True])
def test_a_target_is_approached_where_a_label_is_left(count, targeted):
    net, images, labels, towards = two_classes((3, 4, 4), count)
    aim = 1 - labels if targeted else labels
    for loss in ("ce", "margin", lambda z, y: z.sum(1) - 2 * z.gather(1, y[:, None])[:, 0]):
        result = pgd(net, images, aim, eps=0.1, step_size=0.05, steps=8, loss=loss, targeted=targeted)
        assert torch.allclose(result, (images + 0.1 * towards.sign()).clamp(0, 1), atol=1e-12)


def test_budget_per_pixel_in_closed_form():
    net, images, labels, towards = two_classes((3, 4, 4), 3)
    for shape in [(3, 3, 4, 4), (3, 1, 4, 4), (1, 4, 4), (3, 1, 1), (4,) * 2]:
        eps = 0.2 * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        result = pgd(net, images, labels, eps=eps, step_size=0.05, steps=12)
        assert torch.allclose(result, (images + eps * towards.sign()).clamp(0, 1), atol=1e-12)


def test_one_fast_step_reaches_the_corner():
    net, images, labels, towards = two_classes((3, 4, 4), 3)
    eps = torch.tensor([0.1, 0.2, 0.0])
    result = fgsm(net, images, labels, eps=eps)
    expected = (images + eps.double().view(-1, 1, 1, 1) * towards.sign()).clamp(0, 1)
    assert torch.allclose(result, expected, atol=1e-7)


budgets = st.sampled_from(["number", "image", "pixel", "channel"])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    kind=budgets,
    norm=st.sampled_from(["linf", "l2"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    start=st.sampled_from(["uniform", "normal", False]),
    keep=st.sampled_from(["last", "best"]),
    size=st.floats(0, 0.5),
)
def test_the_result_lies_in_ball_and_box(seed, kind, norm, dtype, start, keep, size):
    generator = torch.Generator().manual_seed(seed)
    images = (2 * torch.rand(3, 3, 8, 8, generator=generator) - 0.5).clamp(0, 1).to(dtype)
    shape = {"number": (), "image": (3,), "pixel": (3, 1, 8, 8), "channel": (3, 1, 1)}[kind]
    if norm == "l2" and kind in ("pixel", "channel"):
        shape = (3,)
    eps = size * torch.rand(shape, generator=generator, dtype=torch.float64)
    result = pgd(
        ConvNet(), images, torch.arange(3), eps=eps if shape else float(eps), step_size=0.1, steps=3,
        norm=norm, random_start=start, keep=keep, generator=generator,
    )  # fmt: skip
    assert result.min() >= 0
    assert result.max() <= 1
    offset = result - images
    bound = eps.view(3, 1, 1, 1) if shape == (3,) else eps
    ulp = torch.finfo(dtype).eps
    if norm == "l2":
        assert (offset.flatten(1).norm(dim=1) <= bound.flatten() + 20 * ulp).all()
    else:
        assert (offset.abs() <= bound + ulp).all()


def some_images(count=6, dtype=torch.float64):
    images, labels = prototypes(count, 99)
    return images.to(dtype), labels


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "kl", "margin", "dlr"])
def test_a_batch_is_attacked_as_its_images_one_by_one(norm, loss):
    net, (images, labels) = ConvNet(6).double(), some_images()
    start = draw_start(images, eps=0.1, kind="uniform", generator=torch.Generator().manual_seed(0), norm=norm)
    settings = {"eps": 0.1, "step_size": 0.03, "steps": 5, "loss": loss, "norm": norm}
    together = pgd(net, images, labels, start=start, **settings)
    alone = [
        pgd(net, images[i : i + 1], labels[i : i + 1], start=start[i : i + 1], **settings)
        for i in range(len(images))
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-10)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = pgd(net, images[order], labels[order], start=start[order], **settings)
    assert torch.allclose(permuted, together[order], atol=1e-10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_per_image_equals_that_number_for_each(norm):
    net, (images, labels) = ConvNet(6).double(), some_images()
    eps = torch.linspace(0, 0.3, len(images), dtype=torch.float64)
    settings = {"step_size": 0.05, "steps": 5, "norm": norm, "random_start": False}
    together = pgd(net, images, labels, eps=eps, **settings)
    for i, radius in enumerate(eps.tolist()):
        alone = pgd(net, images[i : i + 1], labels[i : i + 1], eps=radius, **settings)
        assert torch.allclose(together[i : i + 1], alone, atol=1e-10)


def objective_of(net, images, labels):
    with torch.no_grad():
        return objectives.cross_entropy(net(images), labels)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_never_lower_the_best_objective(norm):
    net, (images, labels) = trained_net(), some_images(32, torch.float32)
    found = []
    for steps in range(8):
        result = pgd(net, images, labels, eps=0.1, step_size=0.08, steps=steps, norm=norm, keep="best")
        found.append(objective_of(net, result, labels))
    for fewer, more in itertools.pairwise(found):
        assert (more >= fewer - 1e-6).all()
    assert (found[-1] > found[0] + 1e-3).any()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_more_restarts_never_lower_the_objective(keep):
    net, (images, labels) = ConvNet(6).eval(), some_images(16, torch.float32)
    found = []
    for restarts in (1, 2, 4):
        result = pgd(
            net, images, labels, eps=0.2, step_size=0.05, steps=3, keep=keep, restarts=restarts,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        found.append(objective_of(net, result, labels))
    for fewer, more in itertools.pairwise(found):
        assert (more >= fewer - 1e-5).all()
    assert (found[-1] > found[0] + 1e-3).any()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_early_stop_finds_what_a_look_at_every_iterate_finds(targeted, loss):
    net, (images, labels) = trained_net().double(), some_images(64)
    aim = (labels + 1) % 6 if targeted else labels
    settings = {"eps": 0.12, "step_size": 0.02, "steps": 12, "loss": loss, "targeted": targeted}
    broken = torch.zeros(len(images), dtype=torch.bool)

    def look(iterate, rows):
        hits = net(iterate).argmax(1) == aim[rows]
        broken[rows] |= hits if targeted else ~hits

    pgd(net, images, aim, observe=look, **settings)
    stopped = pgd(net, images, aim, early_stop=True, **settings)
    hits = net(stopped).argmax(1) == aim
    assert torch.equal(hits if targeted else ~hits, broken)
    assert 0 < broken.sum() < len(images)


def test_early_stop_keeps_per_image_data_with_their_images():
    net, (images, labels) = trained_net().double(), some_images(64)
    eps = torch.linspace(0.02, 0.2, 64, dtype=torch.float64)
    start = draw_start(images, eps=0.02, kind="uniform", generator=torch.Generator().manual_seed(0))
    settings = {"step_size": 0.02, "steps": 10, "loss": "kl"}
    whole = pgd(net, images, labels, eps=eps, early_stop=True, start=start, **settings)
    assert 0 < (net(whole).argmax(1) != labels).sum() < 64
    for i in range(0, 64, 7):
        one = slice(i, i + 1)
        alone = pgd(
            net, images[one], labels[one], eps=eps[one], early_stop=True, start=start[one], **settings
        )
        assert torch.allclose(whole[one], alone, atol=1e-10)


def test_the_observer_sees_every_iterate_and_who_is_left():
    net, (images, labels) = trained_net().double(), some_images(32)
    seen = []
    settings = {"eps": 0.12, "step_size": 0.02, "steps": 4, "restarts": 1}
    result = pgd(net, images, labels, observe=lambda x, rows: seen.append((x.clone(), rows)), **settings)
    assert len(seen) == 5
    assert all(torch.equal(rows, torch.arange(32)) for _, rows in seen)
    assert torch.equal(seen[-1][0], result)
    for steps in range(5):
        assert torch.equal(pgd(net, images, labels, **{**settings, "steps": steps}), seen[steps][0])

    sizes = []
    settings = {"eps": 0.2, "step_size": 0.05, "steps": 8}
    pgd(net, images, labels, early_stop=True, observe=lambda x, rows: sizes.append(len(rows)), **settings)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 32


def test_a_start_outside_is_used_but_not_counted():
    net, images, labels, towards = two_classes((3, 4, 4), 4)
    images[0] = 0.5
    start = images + 0.01 * torch.randn(
        images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    start[1] += 3.0
    start[0] = images[0]
    assert torch.equal(pgd(net, images, labels, eps=0.1, step_size=0.02, steps=0, start=start), start)
    once = pgd(net, images, labels, eps=0.1, step_size=0.02, steps=1, start=start)
    expected = torch.minimum(torch.maximum(start + 0.02 * towards.sign(), images - 0.1), images + 0.1).clamp(
        0, 1
    )
    assert torch.allclose(once, expected, atol=1e-12)
    rows = []
    pgd(
        net,
        images,
        labels,
        eps=0.1,
        step_size=0.02,
        steps=1,
        start=start,
        observe=lambda x, r: rows.append(r),
    )
    inside = ((start - images).abs() <= 0.1) & (start >= 0) & (start <= 1)
    assert torch.equal(rows[0], inside.flatten(1).all(1).nonzero().squeeze(1))
    assert 0 in rows[0]
    assert 1 not in rows[0]
    for keep, early_stop in (("best", False), ("last", True)):
        result = pgd(
            net,
            images,
            labels,
            eps=0.1,
            step_size=0.02,
            steps=2,
            start=start,
            keep=keep,
            early_stop=early_stop,
        )
        assert (result - images).abs().max() <= 0.1 + 1e-12


def test_the_generator_decides_the_start_and_nothing_else_does():
    net, (images, labels) = ConvNet(6), some_images(4, torch.float32)
    settings = {"eps": 0.1, "step_size": 0.01, "steps": 1}

    def run(seed):
        torch.manual_seed(seed + 1)
        return pgd(net, images, labels, generator=torch.Generator().manual_seed(seed), **settings)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(pgd(net, images, labels, **settings), run(0))
    shared = torch.Generator().manual_seed(5)
    first, second = (pgd(net, images, labels, generator=shared, **settings) for _ in range(2))
    assert not torch.equal(first, second)


def test_starts_are_drawn_where_they_should_be():
    images = 0.3 + 0.4 * torch.rand(500, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    uniform = draw_start(images, eps=0.1, kind="uniform", generator=generator) - images
    assert uniform.abs().max() <= 0.1 + 1e-7
    assert abs(uniform.mean()) < 1e-3
    assert abs(uniform.std() - 0.1 / 3**0.5) < 1e-3
    normal = draw_start(images, eps=0.1, kind="normal", generator=generator) - images
    assert abs(normal.std() - 0.001) < 2e-5
    length = (
        (draw_start(images, eps=0.1, kind="uniform", generator=generator, norm="l2") - images)
        .flatten(1)
        .norm(dim=1)
    )
    assert length.max() <= 0.1 + 1e-7
    # The share of a ball within r/R is (r/R)^D.
    assert abs((length < 0.1 * 0.5 ** (1 / 48)).float().mean() - 0.5) < 0.1
    dark = torch.zeros(2, 3, 4, 4)
    assert draw_start(dark, eps=0.1, kind="uniform", generator=generator).min() >= 0
    assert draw_start(dark, eps=0.1, kind="uniform", generator=generator, clip=False).min() < 0
    both = [
        draw_start(dark.to(dtype) + 0.5, eps=0.25, kind="uniform", generator=torch.Generator().manual_seed(3))
        for dtype in (torch.float32, torch.float64)
    ]
    assert torch.allclose(both[0].double(), both[1], atol=1e-7)


class Counted:
    def __init__(self, net):
        self.net, self.passes, self.with_gradient = net, 0, 0

    def __call__(self, images):
        self.passes += 1
        self.with_gradient += images.requires_grad
        return self.net(images)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 5),
        ({"loss": "kl"}, 6),
        ({"loss": "kl", "reference_logits": torch.zeros(4, 6)}, 5),
        ({"observe": lambda x, rows: None}, 5),
        ({"keep": "best"}, 6),
        ({"restarts": 3}, 18),
    ],
)
def test_passes_are_not_wasted(settings, passes):
    net, (images, labels) = Counted(ConvNet(6).eval()), some_images(4, torch.float32)
    pgd(net, images, labels, eps=0.001, step_size=0.001, steps=5, **settings)
    assert net.passes == passes
    assert net.with_gradient == 5 * settings.get("restarts", 1)


def test_ascend_is_pgd_without_checks():
    net, (images, labels) = ConvNet(6).eval(), some_images(4, torch.float32)
    settings = {"eps": 0.1, "step_size": 0.02, "steps": 4, "start": images}
    assert torch.equal(
        ascend(net, images, labels, objective=objectives.margin, **settings),
        margin_pgd(lambda x: net(x), images, labels, **settings),
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_gradients_of_any_size_give_a_step(norm, scale):
    images = torch.full((2, 3, 2, 2), 0.5)
    result = pgd(
        lambda x: scale * x.flatten(1)[:, :2] + 0.0 * x.flatten(1).sum(1, keepdim=True),
        images, torch.zeros(2, dtype=torch.int64), eps=0.1, step_size=0.1, steps=2, norm=norm,
        random_start=False, loss="margin",
    )  # fmt: skip
    assert torch.isfinite(result).all()
    assert torch.equal(result, images) == (scale == 0.0)


def test_inference_mode_is_refused():
    images = torch.rand(1, 3, 2, 2)
    with torch.inference_mode(), pytest.raises(UserError, match=r"use torch\.no_grad"):
        check_images(images)
