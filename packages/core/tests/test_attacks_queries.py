"""Attacks without gradients (Square Attack, RayS, random corners): what all promise, and RayS' own."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_problems import linear_problem, problem, seeded, standing_count
from purity import unchanged
from small_nets import ConvNet, linear_net, prototypes
from toy_evaluation import EPS, image_set, labelled_by, linear

from robust_core.attacks import objectives, pgd, random_corners, rays, square
from robust_core.attacks.balls import make_ball
from robust_core.attacks.rays import TOLERANCE
from robust_core.errors import UserError
from robust_core.evaluation import Member, Protocol, evaluate
from robust_core.models import FrozenView

pytestmark = pytest.mark.usefixtures("one_thread")

ATTACKS = {
    "square": functools.partial(square, queries=25, restarts=2),
    "rays": functools.partial(rays, queries=40),
    "random_corners": functools.partial(random_corners, draws=10),
}
table = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
drawn = pytest.mark.parametrize(
    "attack", [ATTACKS["square"], ATTACKS["random_corners"]], ids=["square", "corners"]
)


class Counted:
    """A network that adds up the images that it is asked about, and keeps the sizes of its batches."""

    def __init__(self, network):
        self.network, self.sizes = network, []

    def __call__(self, images):
        self.sizes.append(len(images))
        return self.network(images)


@table
def test_no_trace_is_left(attack):
    net, (images, labels) = ConvNet(), prototypes(5, 0)
    net.drop.eval()
    net.conv.weight.grad = torch.full_like(net.conv.weight, 7.0)
    before = images.clone()
    with unchanged(net):
        attack(net, images, labels % 5, eps=0.3)
    with unchanged(net), pytest.raises(UserError, match="but the model has 5 classes"):
        attack(net, images, labels + 5, eps=0.3)
    assert torch.equal(images, before)
    with unchanged(net), torch.no_grad():
        assert not attack(FrozenView(net), images, labels % 5, eps=0.3).requires_grad


@table
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_layout_and_zero_eps(attack, dtype):
    images, labels = prototypes(5, 0)
    net, images, labels = ConvNet().to(dtype), images.to(dtype), labels % 5
    result = attack(net, images, labels, eps=0.1)
    assert (result.dtype, result.shape, result.is_contiguous()) == (dtype, images.shape, True)
    assert not torch.equal(result, images)
    unmoved = attack(net, images, labels, eps=0.0)
    assert torch.equal(unmoved, images)
    assert unmoved.data_ptr() != images.data_ptr()


@drawn
def test_the_generator_alone_decides(attack):
    net, images, labels = problem()
    run = functools.partial(attack, net, images, labels, eps=0.02)
    assert torch.equal(run(), run(generator=seeded(0)))
    first, again, other = (run(generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rays_does_not_depend_on_the_other_images():
    net, images, labels = problem(6)
    eps = torch.linspace(0.05, 0.3, 6)
    together = rays(net, images, labels, eps=eps, queries=60)
    for i, radius in enumerate(eps.tolist()):
        one = slice(i, i + 1)
        assert torch.equal(rays(net, images[one], labels[one], eps=radius, queries=60), together[one])


@table
@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 4),
    size=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    eps=st.floats(0, 1),
    per=st.sampled_from(["number", "image", "pixel"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    early_stop=st.booleans(),
    seed=st.integers(0, 99),
)
def test_all_points_lie_in_ball_and_box(attack, count, size, eps, per, dtype, early_stop, seed):
    draw = functools.partial(torch.rand, generator=seeded(seed), dtype=dtype)
    # A third of the pixels on each side of the box, where a step leaves it.
    images = (3 * draw(count, *size) - 1).clamp(0, 1)
    net = linear_net(draw(3, images[0].numel()) - 0.5, draw(3))
    if per == "image":
        eps = eps * draw(count)
    elif per == "pixel" and attack.func is not rays:
        eps = eps * draw(count, 1, *size[1:])
    ball = make_ball(images, eps)
    shown = []

    def look(points, rows):
        assert ball.select(rows).contains(points).all()
        shown.append(len(points))

    labels = net(images).argmax(1)
    settings = {"eps": eps, "early_stop": early_stop, "observe": look, "generator": seeded(seed)}
    result = attack(net, images, labels, **settings)
    assert ball.contains(result).all()
    if attack.func is not rays:
        assert shown[0] == count


def test_rays_finds_the_distance_of_a_linear_network():
    net, images, labels, distance = linear_problem(12, (3, 4, 4))
    found = rays(net, images, labels, eps=0.3, queries=400, early_stop=False)
    assert (net(found).argmax(1) != labels).all()
    reached = (found - images).flatten(1).abs().amax(1)
    assert (reached >= distance - 1e-9).all()
    assert (reached <= 1.05 * distance + 2 * TOLERANCE).all()


def test_random_corners_finds_the_corner_that_there_is():
    net, images, labels, distance = linear_problem(40, (1, 1, 3))
    eps = 0.1
    found = random_corners(net, images, labels, eps=eps, draws=100)
    broken = net(found).argmax(1) != labels
    assert torch.equal(broken, distance < eps)
    assert 0 < broken.sum() < 40
    assert torch.allclose((found - images).abs(), torch.full_like(images, eps))


@pytest.mark.parametrize("early_stop", [False, True])
@drawn
def test_the_result_is_the_first_success_else_the_largest_margin(attack, early_stop):
    net, images, labels = problem()
    best = torch.full((60,), -torch.inf)
    expected = images.clone()

    def look(points, rows):
        margin = objectives.margin(net(points), labels[rows]).detach()
        assert (margin > best[rows]).all()
        if early_stop:
            assert (best[rows] < 0).all()
        best[rows], expected[rows] = margin, points

    several = attack.keywords | ({"restarts": 1} if attack.func is square else {})
    result = attack.func(net, images, labels, **several, eps=0.03, early_stop=early_stop, observe=look)
    assert torch.equal(result, expected)
    assert (best > 0).any()
    assert (best < 0).any()


@drawn
def test_what_an_image_gets_does_not_depend_on_which_others_have_left(attack):
    net, images, labels = problem()
    targets = (labels + 1 + torch.arange(60) % 5) % 6
    loss = {} if attack.func is random_corners else {"loss": objectives.dlr_towards(targets)}
    stopped, whole = (
        attack(net, images, labels, eps=0.03, early_stop=early_stop, **loss) for early_stop in (True, False)
    )
    stands = net(stopped).argmax(1) == labels
    assert 0 < stands.sum() < 60
    assert torch.equal(stopped[stands], whole[stands])
    assert not torch.equal(stopped, whole)


@table
def test_early_stopping_spends_fewer_passes(attack):
    _, images, labels = problem()

    def sizes(**changes):
        network = Counted(problem()[0])
        attack(network, images, labels, eps=0.1, **changes)
        return network.sizes

    queries = {square: 50, rays: 40, random_corners: 10}[attack.func]
    assert sizes(early_stop=False) == [60] * queries
    stopped = sizes()
    assert stopped[0] == 60
    assert stopped == sorted(stopped, reverse=True)
    assert sum(stopped) < 60 * queries - 100


@table
def test_an_image_is_attacked_as_long_as_it_stands(attack):
    net, images, labels = problem()
    asked, shown = torch.zeros(60), torch.zeros(60)

    def standing(rows):
        asked[rows] += 1
        return (rows >= 20) & (asked[rows] <= rows // 10)

    def look(points, rows):
        shown[rows] += 1

    network = Counted(net)
    result = attack(network, images, labels, eps=0.9, early_stop=standing, observe=look)
    # Asked once before the run, and again after each query.
    assert network.sizes[:7] == [40, 40, 30, 20, 10][: len(network.sizes[:7])]
    assert shown[:20].sum() == 0
    assert (shown[20:] > 0).any()
    if attack.func is not rays:
        assert torch.equal(result[:20], images[:20])


def rounding(images):
    return problem()[0](torch.round(images * 15) / 15)


def test_rays_breaks_what_has_no_gradient():
    _, images, labels = problem()
    blind = pgd(rounding, images, labels, eps=0.1, step_size=0.02, steps=20, random_start=False)
    assert standing_count(blind, rounding) == standing_count(images, rounding) > 40
    found = rays(rounding, images, labels, eps=0.1, queries=300)
    assert standing_count(found, rounding) < 20


def test_rays_sees_nothing_but_the_predicted_class():
    net, images, labels = problem()

    def decided(points):
        return torch.nn.functional.one_hot(net(points).argmax(1), 6).float()

    shown = []
    first, second = (
        rays(model, images, labels, eps=0.03, queries=100, observe=lambda *_: shown.append(0))
        for model in (net, decided)
    )
    assert torch.equal(first, second)
    assert 0 < standing_count(first) < 60
    assert shown


def test_rays_returns_the_radius_within_eps_and_otherwise_the_direction_cut_at_eps():
    net, images, labels = problem()
    wrong = labels.clone()
    wrong[:5] = (labels[:5] + 1) % 6
    fell = torch.zeros(60, dtype=torch.bool)

    def look(points, rows):
        assert (net(points).argmax(1) != wrong[rows]).all()
        fell[rows] = True

    found = rays(net, images, wrong, eps=0.03, queries=100, observe=look)
    assert torch.equal(found[:5], images[:5])
    assert torch.equal(net(found).argmax(1) != wrong, fell)
    assert 0 < fell[5:].sum() < 55
    at_eps = make_ball(images, 0.03)
    corner = (found == at_eps.lower) | (found == at_eps.upper)
    assert corner[~fell].all()


@pytest.mark.parametrize(
    ("attack", "changes", "message"),
    [
        (square, {"queries": 0}, "queries is 0, expected a whole number of at least 1"),
        (square, {"restarts": 0.5}, r"restarts is 0\.5"),
        (square, {"p_init": 0.0}, r"p_init is 0\.0, expected a share of the pixels in \(0, 1\]"),
        (square, {"p_init": True}, "p_init is True"),
        (square, {"p_init": 1.5}, r"p_init is 1\.5"),
        (square, {"p_init": "0.8"}, r"p_init is '0\.8'"),
        (square, {"loss": "marign"}, "Unknown loss 'marign'; did you mean 'margin'"),
        (square, {"images": torch.rand(4, 192)}, r"shape \(4, 192\), but squares need rows and columns"),
        (square, {"generator": 7}, r"generator is 7, expected a torch\.Generator"),
        (square, {"early_stop": "yes"}, "early_stop is 'yes', expected True, False or a function"),
        (square, {"early_stop": lambda rows: rows}, r"early_stop returned torch\.int64 \(4,\), expected bool \(4,\)"),
        (square, {"model": lambda x: x.flatten(1) * float("nan")}, "logits are NaN"),
        (random_corners, {"draws": 0}, "draws is 0, expected a whole number of at least 1"),
        (random_corners, {"early_stop": lambda rows: True}, "early_stop returned bool, expected bool"),
        (random_corners, {"eps": 8}, "write 8/255, not 8"),
        (rays, {"queries": -1}, "queries is -1"),
        (rays, {"eps": torch.full((4, 3, 8, 8), 0.1)}, r"eps has shape \(4, 3, 8, 8\), but RayS searches one"),
        (rays, {"eps": torch.full((3, 1, 1), 0.1)}, r"eps has shape \(3, 1, 1\), but RayS .*number or \(4,\)"),
        (rays, {"generator": 7}, r"generator is 7, expected a torch\.Generator"),
        (rays, {"early_stop": 1}, "early_stop is 1, expected True, False"),
        (rays, {"early_stop": lambda rows: rows[:1] > 0}, r"early_stop returned torch\.bool \(1,\)"),
        (rays, {"model": lambda x: x}, r"model returned shape \(4, 3, 8, 8\), expected logits"),
        (rays, {"model": lambda x: x.flatten(1) * float("nan")}, "logits are NaN"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_told(attack, changes, message):
    arguments = {"model": ConvNet(), "images": torch.rand(4, 3, 8, 8), "labels": torch.arange(4), "eps": 0.1}
    with pytest.raises(UserError, match=message):
        attack(**(arguments | changes))


MEMBERS = (
    Member("square", "square", {"eps": EPS, "queries": 20, "p_init": 0.5, "loss": "ce"}),
    Member("rays", "rays", {"eps": EPS, "queries": 20}),
    Member("corners", "random_corners", {"eps": EPS, "draws": 20, "early_stop": False}),
)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_the_evaluation_runs_each_of_them(member):
    model = linear()
    dataset = labelled_by(model, image_set(count=40))
    strong = Member(member.name, member.kind, {**member.settings, "eps": 0.1})
    weak, broken, again = (
        evaluate(model, dataset, Protocol("own", (given,)), batch_size=16).summary()["members"][member.name]
        for given in (member, strong, strong)
    )
    assert broken["robust_accuracy"] == again["robust_accuracy"] < weak["robust_accuracy"]
    assert broken["judging_per_image"] > 0
    assert broken["forward_per_image"] <= 20
    assert broken["backward_per_image"] == 0
    assert broken["forward_per_image"] == (20 if member.name == "corners" else pytest.approx(10, abs=9.5))


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("square", "norm"),
        ("square", "querys"),
        ("rays", "loss"),
        ("random_corners", "queries"),
        ("rays", "observe"),
    ],
)
def test_the_evaluation_refuses_settings_that_they_do_not_take(kind, setting):
    member = Member("one", kind, {"eps": EPS, setting: 1})
    with pytest.raises(UserError, match=rf"Unknown setting of member 'one' \({kind}\) '{setting}'"):
        evaluate(linear(), image_set(), Protocol("own", (member,)))
    with pytest.raises(UserError, match="has no setting 'eps'"):
        evaluate(linear(), image_set(), Protocol("own", (Member("one", kind, {}),)))
