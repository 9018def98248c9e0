"""Square Attack: its stripes, squares and schedule, its strength, and objectives of one's own."""

import functools
import itertools

import pytest
import torch
from linear_problems import linear_problem, problem, standing_count

from robust_core.attacks import objectives, square
from robust_core.attacks.square import square_side
from robust_core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_square_breaks_a_linear_network_at_little_more_than_its_distance():
    net, images, labels, distance = linear_problem(12, (3, 4, 4))
    found = square(net, images, labels, eps=1.25 * distance, queries=600)
    assert (net(found).argmax(1) != labels).all()
    missed = square(net, images, labels, eps=0.99 * distance, queries=50)
    assert (net(missed).argmax(1) == labels).all()


def test_the_schedule_is_the_published_one_for_any_number_of_queries():
    places = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)
    shares = [
        square_side(index, 10_000, 0.8, 1000, 1000) ** 2 / 1e6 for index in (1, *(i + 1 for i in places))
    ]
    assert shares == pytest.approx([0.8 / 2**k for k in range(9)], rel=0.02)
    for index in range(1, 5000, 7):
        assert square_side(index, 5000, 0.5, 32, 32) == square_side(2 * index, 10_000, 0.5, 32, 32)
    assert square_side(1, 10, 1.0, 4, 100) == 4
    assert square_side(9999, 10_000, 0.1, 2, 2) == 1


def test_square_starts_from_stripes_and_changes_one_square_a_query():
    net, images, labels = problem(10)
    last, query = {}, itertools.count()
    sides, places = set(), torch.zeros(8, 8)

    class Numbered:
        def __call__(self, points):
            self.number = next(query)
            return net(points)

    network = Numbered()

    def look(points, rows):
        signs = (points - images[rows]).sign()
        assert torch.allclose((points - images[rows]).abs(), torch.tensor(0.1))
        for row, sign in zip(rows.tolist(), signs, strict=True):
            if network.number == 0:
                assert (sign == sign[:, :1]).all()
                assert 0.2 < (sign > 0).double().mean() < 0.8
            else:
                side = square_side(network.number, 300, 0.8, 8, 8)
                changed = (sign != last[row]).any(0)
                down, across = changed.nonzero().T
                assert down.max() - down.min() < side
                assert across.max() - across.min() < side
                assert (sign == sign[:, down[:1], across[:1]][..., None])[:, changed].all()
                sides.add(side)
                places.add_(changed)
            last[row] = sign

    square(network, images, labels, eps=0.1, queries=300, early_stop=False, observe=look)
    assert sides == {5, 4, 3, 2, 1}
    assert (places > 0).all()


def test_more_restarts_break_more():
    net, images, labels = problem()
    once, often = (
        standing_count(square(net, images, labels, eps=0.03, queries=20, restarts=restarts))
        for restarts in (1, 4)
    )
    assert 0 < often < once


def test_square_is_as_strong_as_pyautoattacks():
    """Its squares never reach the last row and column: it is given images with one more of both, unused."""
    package = pytest.importorskip("pyautoattack")
    net, images, labels = problem(200)

    class Cropped(torch.nn.Module):
        def forward(self, wide):
            return net(wide[:, :, :8, :8])

    wide = torch.nn.functional.pad(images, (0, 1, 0, 1), value=0.5)
    with torch.random.fork_rng():
        attack = package.AutoAttack(Cropped(), eps=0.04, version="custom", attacks=["square"], seed=0)
        attack.square.n_queries, attack.square.rescale_schedule = 50, True
        theirs, _ = attack.run_standard_evaluation(wide, labels, batch_size=200)
    theirs = standing_count(theirs[:, :, :8, :8])
    ours = standing_count(square(net, images, labels, eps=0.04, queries=50))
    assert abs(ours - theirs) <= 14
    assert 0 < ours < 100


@pytest.mark.parametrize("outputs", ["logits", "features"])
def test_square_climbs_on_any_outputs(outputs):
    net, images, labels = problem()
    stands = torch.ones(60, dtype=torch.bool)

    def several(points):
        logits = net(points)
        return torch.stack([logits, 2 * logits], 1) if outputs == "logits" else points.flatten(1)

    def objective(found, given):
        if outputs == "features":
            return found.sum(1)
        return torch.stack([objectives.margin(part, given) for part in found.unbind(1)]).amin(0)

    def look(points, rows):
        stands[rows] &= net(points).argmax(1) == labels[rows]

    run = functools.partial(square, several, images, labels, eps=0.1, queries=200, loss=objective)
    result = run(early_stop=lambda rows: stands[rows], observe=look)
    assert stands.sum() < 60
    if outputs == "logits":
        assert torch.equal(net(result).argmax(1) == labels, stands)
        assert stands.sum() == 0
    else:
        # With no end but the queries' most pixels are driven up, from stripes with a mean of about 0.
        assert (run(early_stop=False) - images).mean() > 0.05
        return
    with pytest.raises(UserError, match=r"\(60, 2, 6\), expected logits \(60, classes\)"):
        run()
