"""APGD: its checkpoints, its strength, and the reference implementation's counts."""

import functools

import pytest
import torch
from small_nets import CLASSES, ConvNet, prototypes, trained_net

from robust_core.attacks import apgd, objectives, pgd
from robust_core.attacks.apgd import checkpoints
from robust_core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 200


@functools.cache
def problem():
    return trained_net(), *prototypes(COUNT, 12345)


def robust_count(images):
    net, _, labels = problem()
    with torch.no_grad():
        return (net(images).argmax(1) == labels).sum().item()


@functools.cache
def ours(loss, eps, norm="linf"):
    net, images, labels = problem()
    return robust_count(apgd(net, images, labels, eps=eps, loss=loss, norm=norm))


def test_checkpoints_as_published():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in (0, 1, 5, 20, 1000):
        found = checkpoints(steps)
        assert found == sorted(set(found))
        assert all(0 <= step <= steps for step in found)


@pytest.mark.parametrize("eps", [0.1, 0.12])
def test_it_is_never_weaker_than_pgd_100(eps):
    net, images, labels = problem()
    strong = robust_count(pgd(net, images, labels, eps=eps, step_size=eps / 4, steps=100, early_stop=True))
    # One run on the cross-entropy varies by 1% with its start, the reference implementation's just as much.
    assert ours("ce", eps) <= strong + 3
    assert ours("dlr-targeted", eps) <= strong
    assert robust_count(apgd(net, images, labels, eps=eps, restarts=4)) <= strong
    assert 0 < strong < COUNT


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
@pytest.mark.parametrize("eps", [0.1, 0.12])
def test_the_robust_count_equals_pyautoattacks(loss, eps):
    package = pytest.importorskip("pyautoattack")
    net, images, labels = problem()
    member = {"ce": "apgd-ce", "dlr": "apgd-dlr", "dlr-targeted": "apgd-t"}[loss]
    with torch.random.fork_rng():
        attack = package.AutoAttack(net, eps=eps, version="custom", attacks=[member], seed=0)
        attack.apgd.n_restarts = 1
        attack.apgd_targeted.n_target_classes = CLASSES - 1
        theirs, _ = attack.run_standard_evaluation(images, labels, batch_size=COUNT)
    assert abs(ours(loss, eps) - robust_count(theirs)) <= COUNT // 100
    assert 0 < ours(loss, eps) < COUNT


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_l2_is_as_strong_as_pgd_100(loss):
    net, images, labels = problem()
    strong = pgd(
        net, images, labels, eps=1.2, step_size=0.15, steps=100, norm="l2", loss=loss, early_stop=True
    )
    assert ours(loss, 1.2, "l2") <= robust_count(strong) + 1
    assert 0 < ours(loss, 1.2, "l2") < COUNT


def test_more_restarts_never_break_fewer():
    net, images, labels = problem()
    counts = [
        robust_count(apgd(net, images, labels, eps=0.12, steps=10, loss="dlr", restarts=restarts))
        for restarts in (1, 3)
    ]
    assert counts[1] <= counts[0]


def test_more_steps_never_lower_the_objective_where_all_run_to_the_end():
    net, images, labels = problem()
    start = images[:50]

    def objective(steps):
        result = apgd(net, start, labels[:50], eps=0.1, steps=steps, start=start, early_stop=False)
        return torch.nn.functional.cross_entropy(net(result), labels[:50], reduction="none")

    # The same checkpoints for the same number of steps only: fewer steps are a prefix up to the first one.
    values = [objective(steps) for steps in (0, 1, 3)]
    assert (values[1] >= values[0] - 1e-6).all()
    assert (values[2] > values[0]).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eps_per_image_and_one_by_one(norm):
    net = ConvNet(6).double()
    images, labels = prototypes(6, 3)
    images = images.double()
    eps = torch.linspace(0.01, 0.2, 6, dtype=torch.float64)
    settings = {"steps": 12, "norm": norm, "random_start": False, "loss": "margin", "early_stop": False}
    together = apgd(net, images, labels, eps=eps, **settings)
    for i, radius in enumerate(eps.tolist()):
        one = slice(i, i + 1)
        assert torch.allclose(
            apgd(net, images[one], labels[one], eps=radius, **settings), together[one], atol=1e-9
        )


def test_budget_per_pixel_is_kept():
    images, labels = prototypes(6, 3)
    eps = 0.2 * torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    result = apgd(ConvNet(6), images, labels, eps=eps, steps=12, early_stop=False)
    assert ((result - images).abs() <= eps + 1e-7).all()
    assert ((result - images).abs() > 0.9 * eps).double().mean() > 0.3


def test_a_broken_image_is_returned_broken_and_leaves():
    net, images, labels = problem()
    sizes, broken = [], torch.zeros(COUNT, dtype=torch.bool)

    def look(iterate, rows):
        sizes.append(len(rows))
        broken[rows] |= net(iterate).argmax(1) != labels[rows]

    result = apgd(net, images, labels, eps=0.12, observe=look)
    assert torch.equal(net(result).argmax(1) != labels, broken)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 101
    assert sizes[-1] < COUNT


def outputs_and_loss(kind):
    """Networks that return several logits, or features, and the margin computed from them."""
    net, _, _ = problem()
    if kind == "several logits":
        return lambda points: torch.stack(
            [-net(points), net(points)], 1
        ), lambda found, labels: objectives.margin(found[:, 1], labels)
    return net[:3], lambda features, labels: objectives.margin(net[3](features), labels)


@pytest.mark.parametrize("kind", ["several logits", "features"])
def test_a_loss_of_ones_own_may_climb_on_any_outputs(kind):
    net, images, labels = problem()
    network, loss = outputs_and_loss(kind)
    settings = {"eps": 0.12, "steps": 10, "loss": loss}
    whole = apgd(network, images, labels, early_stop=False, **settings)
    assert torch.equal(whole, apgd(net, images, labels, early_stop=False, **settings | {"loss": "margin"}))
    everyone = apgd(network, images, labels, early_stop=lambda rows: rows >= 0, **settings)
    assert torch.equal(whole, everyone)
    assert 0 < robust_count(whole) < COUNT


def test_any_outputs_are_refused_where_the_network_decides():
    _, images, labels = problem()
    network, loss = outputs_and_loss("several logits")
    with pytest.raises(UserError, match=r"shape \(200, 2, 6\), expected logits \(200, classes\)"):
        apgd(network, images, labels, eps=0.1, loss=loss)
    with pytest.raises(UserError, match=r"shape \(200, 2, 6\), expected logits \(200, classes\)"):
        apgd(network, images, labels, eps=0.1, loss="margin", early_stop=False)
    with pytest.raises(
        UserError, match=r"shape \(6, 200\), expected \(200, \.\.\.\): give a model whose output"
    ):
        apgd(lambda points: problem()[0](points).T, images, labels, eps=0.1, loss=loss, early_stop=False)
    with pytest.raises(UserError, match="early_stop is 1, expected True, False or a function"):
        apgd(network, images, labels, eps=0.1, early_stop=1)
    with pytest.raises(UserError, match=r"early_stop returned torch\.int64 \(200,\), expected bool \(200,\)"):
        apgd(network, images, labels, eps=0.1, early_stop=lambda rows: rows)


def test_an_image_is_attacked_as_long_as_it_stands():
    net, images, labels = problem()
    stands = torch.arange(COUNT) >= 50
    sizes = []

    def look(iterate, rows):
        sizes.append(len(rows))
        stands[rows] &= net(iterate).argmax(1) == labels[rows]

    result = apgd(
        net, images, labels, eps=0.12, loss="margin", early_stop=lambda rows: stands[rows], observe=look
    )
    assert torch.equal(result[:50], images[:50])
    assert torch.equal(net(result).argmax(1) == labels, stands | (torch.arange(COUNT) < 50))
    assert 0 < stands.sum() < 150
    # The start, and the eight reviews of 100 steps.
    assert sizes[:2] == [150, sizes[1]]
    assert sizes == sorted(sizes, reverse=True)
    changes = [index for index in range(1, 101) if sizes[index] < sizes[index - 1]]
    assert changes
    assert set(changes) <= {1, *(review + 1 for review in checkpoints(100))}
    assert apgd(net, images, labels, eps=0.1, early_stop=lambda rows: rows < 0).equal(images)
