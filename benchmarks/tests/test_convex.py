import json
from itertools import product

import numpy as np
import pytest
from benchmarks.convex.__main__ import main
from benchmarks.convex.descent import RESET_EVERY, Column, ColumnWeights, descend
from benchmarks.convex.measures import duality_gap, fitted_slope, smallest_combination, stationarity
from benchmarks.convex.oracles import FullGradient, OneSample
from benchmarks.convex.problem import (
    adversarial_term,
    bounded_simplex,
    group_values,
    kl_term,
    make_problem,
    natural_term,
    simplex,
)
from benchmarks.convex.reference import inner_minimum, optimum, value_of
from benchmarks.convex.study import active_tolerance
from benchmarks.convex.weights import (
    RULES,
    Bounds,
    projected,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

SETS = [bounded_simplex(), simplex()]
TERMS = [natural_term, adversarial_term, kl_term]
LOSSES = st.lists(st.floats(-3, 3), min_size=4, max_size=4).map(np.array)


@pytest.fixture(scope="module")
def problem():
    return make_problem(2)


@pytest.fixture(scope="module")
def points():
    return 0.8 * np.random.default_rng(0).standard_normal((2, 3, 20))


def rule(name):
    return next(item for item in RULES if item.name == name)


def test_the_groups_have_waterbirds_proportions(problem):
    assert problem.counts == (219, 12, 4, 66)
    assert problem.signed.shape == (2, 301, 20)
    assert np.allclose(problem.indicator().sum(1), 1)
    assert make_problem(2).signed.tobytes() == problem.signed.tobytes()


@pytest.mark.parametrize(("term", "base"), [(adversarial_term, "logistic"), (kl_term, "kl")])
def test_the_terms_are_the_largest_within_the_ball(problem, points, term, base):
    """No point of the ball does more, and the point in the direction of w (or against it) does as much."""
    rng, w = np.random.default_rng(1), points[0, 0]
    norm = np.linalg.norm(w)
    margins = problem.signed[0] @ w

    def loss(moved):
        if base == "logistic":
            return np.log1p(np.exp(-moved))
        p, other = 1 / (1 + np.exp(-margins)), 1 / (1 + np.exp(-moved))
        return p * np.log(p / other) + (1 - p) * np.log((1 - p) / (1 - other))

    claimed = term(margins, np.float64(problem.eps * norm))[0]
    directions = rng.standard_normal((200, 20))
    directions *= problem.eps / np.linalg.norm(directions, axis=1, keepdims=True)
    tried = np.stack([loss(margins + d @ w) for d in directions])
    assert (tried.max(0) <= claimed + 1e-12).all()
    along = np.stack([loss(margins + sign * problem.eps * norm) for sign in (-1, 1)])
    assert np.abs(along.max(0) - claimed).max() < 1e-9
    # gradient ascent on the perturbation, from nowhere in particular, finds it too
    if base == "logistic":
        delta = directions[0] / 10
        for _ in range(50):
            delta = delta - 0.1 * w / norm
            delta *= min(1, problem.eps / np.linalg.norm(delta))
        assert np.abs(loss(margins + delta @ w) - claimed).max() < 1e-9


@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_finite_differences(problem, points, term):
    w, small = points[1, 1], 1e-6
    gradients = group_values(problem, 1, w, term)[1]
    for axis in range(0, 20, 5):
        step = small * np.eye(20)[axis]
        ends = [group_values(problem, 1, w + sign * step, term)[0] for sign in (1, -1)]
        assert np.abs((ends[0] - ends[1]) / (2 * small) - gradients[:, axis]).max() < 1e-6


def test_the_kl_term_is_not_convex(problem):
    along = np.eye(20)[
        1
    ]  # for a group whose place speaks for its label, sureness makes the divergence vanish
    values = [group_values(problem, 0, size * along, kl_term)[0][3] for size in (0.0, 2.0, 4.0)]
    assert values[1] > (values[0] + values[2]) / 2 + 1e-3


@settings(max_examples=60, deadline=None)
@given(LOSSES)
def test_the_maximum_over_q_is_that_of_a_linear_program(losses):
    for within in SETS:
        ends = (0, 1) if within.bounds is None else (within.bounds.low, within.bounds.high)
        found = linprog(-losses, A_eq=np.ones((1, 4)), b_eq=[1], bounds=[ends] * 4)
        assert abs(within.maximum(losses) + found.fun) < 1e-9
        assert abs((within.vertices() @ losses).max() + found.fun) < 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-6, 3), min_size=4, max_size=4), st.sampled_from([0.05, 0.2, 0.9]))
def test_the_projection_is_the_nearest_in_kullback_leibler(logs, kappa):
    bounds, weights = Bounds.around_uniform(4, kappa), np.exp(logs)
    q = projected(weights, bounds)
    assert abs(q.sum() - 1) < 1e-12
    assert ((q >= bounds.low - 1e-12) & (q <= bounds.high + 1e-12)).all()
    # optimality: moving mass from i to j gains only where a bound forbids it
    pull = np.log(q / weights)
    for i, j in product(range(4), range(4)):
        free = q[i] > bounds.low + 1e-12 and q[j] < bounds.high - 1e-12
        assert not free or pull[i] <= pull[j] + 1e-9
    order = [2, 0, 3, 1]
    assert np.allclose(projected(weights[order], bounds), q[order])
    assert np.allclose(projected(weights, Bounds(0, 1)), weights / weights.sum())


def test_rules_by_hand():
    losses, means = np.log([4.0, 2.0, 1.0, 1.0]), np.log([2.0, 1.0, 1.0, 1.0])
    free, wide, narrow = simplex(), bounded_simplex(0.9), bounded_simplex(0.2)

    def step(name, within):
        """Return q and p after one step of size 1 from uniform weights."""
        start = np.full((1, 1, 4), 0.25)
        columns = ColumnWeights([Column(rule(name), within, 0.1, 1.0)])
        return (found[0, 0] for found in columns.step(start, start, (losses, losses), means))

    # once: 4 2 1 1 over 8; with the bounds 0.2 .. 0.3 two weights end at each
    for found in (*step("corrected", free), *step("no bound", narrow)):
        assert np.allclose(found, [0.5, 0.25, 0.125, 0.125])
    for found in step("corrected", narrow):
        assert np.allclose(found, [0.3, 0.3, 0.2, 0.2])
    _, p = step("minus sign", free)
    assert np.allclose(p, np.array([1, 2, 4, 4]) / 11)
    # three times: 4 4 2, then 2 2 1
    q, _ = step("three multiplications", free)
    assert np.allclose(q, np.array([32, 4, 1, 1]) / 38)
    # clipped first to 0.475 (from 2, 0.5, 0.25, 0.25), then the factors 4 2 1 1 and the sum
    q, _ = step("official", wide)
    clipped = np.array([1.9, 0.95, 0.25, 0.25])
    assert np.allclose(q, clipped / clipped.sum())
    # 1/16, 1/8, 1/4, 1/4 within 0.2 .. 0.3
    _, p = step("official", narrow)
    assert np.allclose(p, np.array([0.2, 0.2, 0.25, 0.25]) / 0.9)
    # the clip leaves uniform weights alone, then 4 2 1 1
    q, _ = step("clip before the last multiplication", narrow)
    assert np.allclose(q, [0.5, 0.25, 0.125, 0.125])
    assert [rule(name).factor(6) for name in ("corrected", "official", "c = K")] == [1, 4, 6]
    _, p = step("p = 1/K", free)
    assert np.allclose(p, 0.25)
    q, p = step("q = p", narrow)
    assert (p == q).all()


def test_columns_side_by_side_are_the_columns_alone():
    rng = np.random.default_rng(0)
    columns = [Column(item, within, 0.1, 0.3) for within in SETS for item in RULES]
    q, p, natural, adversarial, means = rng.uniform(0.2, 0.3, (5, 3, len(columns), 4))
    found = ColumnWeights(columns).step(q, p, (natural, adversarial), means)
    for index, column in enumerate(columns):
        at = (slice(None), slice(index, index + 1))
        alone = ColumnWeights([column]).step(q[at], p[at], (natural[at], adversarial[at]), means[at])
        assert np.allclose(found[0][at], alone[0], atol=1e-12), column
        assert np.allclose(found[1][at], alone[1], atol=1e-12), column


def test_oracles_tell_group_losses_and_their_gradient(problem, points):
    kl = [False, False, True]
    rng = np.random.default_rng(2)
    q, p = rng.uniform(size=(2, 2, 3, 4))
    full = FullGradient(problem, kl)
    natural, adversarial = full.losses(points)
    gradient = full.gradient(q, p)
    for seed, column in product(range(2), range(3)):
        w, at = points[seed, column], (seed, column)
        plain, plain_slopes = group_values(problem, seed, w, natural_term)
        value, slopes = group_values(problem, seed, w, kl_term if kl[column] else adversarial_term)
        assert np.abs(natural[at] - plain).max() < 1e-5
        assert np.abs(adversarial[at] - value).max() < 1e-5
        assert np.abs(gradient[at] - q[at] @ plain_slopes - p[at] @ slopes).max() < 1e-5


def test_one_sample_per_group_is_right_on_average(problem, points):
    kl = [False, False, True]
    q, p = np.full((2, 2, 3, 4), 0.25)
    full, one = FullGradient(problem, kl), OneSample(problem, kl)
    exact = [*full.losses(points), full.gradient(q, p)]
    draws = []
    for _ in range(4000):
        draws.append([*one.losses(points), one.gradient(q, p)])
    for index, value in enumerate(exact):
        seen = np.stack([draw[index] for draw in draws])
        noise = seen.std(0) / np.sqrt(len(seen))
        assert (np.abs(seen.mean(0) - value) < 5 * noise + 1e-5).all()
    # the losses of one draw are those of samples of their groups
    margins = np.einsum("snd,srd->srn", problem.signed, points)
    ends = np.cumsum((0, *problem.counts))
    for group in range(4):
        known = natural_term(margins[..., ends[group] : ends[group + 1]], np.float64(0))[0]
        assert np.abs(known - draws[0][0][..., group, None]).min(-1).max() < 1e-12


@pytest.mark.parametrize("within", SETS, ids=lambda item: item.name)
def test_references_are_certified_and_nothing_is_below(problem, within):
    found = optimum(problem, 0, within)
    assert 0 <= found.value - found.bound < 1e-8
    assert np.linalg.norm(found.w) <= problem.radius
    for weights in (found.q, found.p):
        assert abs(weights.sum() - 1) < 1e-12
        assert within.bounds is None or weights.min() >= within.bounds.low - 1e-9
    rng = np.random.default_rng(0)
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(20):
            near = found.w + size * rng.standard_normal(20)
            near *= min(1, problem.radius / np.linalg.norm(near))
            assert value_of(problem, 0, within, near) >= found.bound

    # another solver, on the epigraph form, comes to the same value
    corners = within.vertices()

    def room(z):
        values = [corners @ group_values(problem, 0, z[:-2], t)[0] for t in (natural_term, adversarial_term)]
        return np.concatenate([z[-2] - values[0], z[-1] - values[1]])

    def slopes(z):
        rows = np.zeros((2 * len(corners), 22))
        for part, term in enumerate((natural_term, adversarial_term)):
            block = slice(part * len(corners), (part + 1) * len(corners))
            rows[block, :-2] = -corners @ group_values(problem, 0, z[:-2], term)[1]
            rows[block, 20 + part] = 1
        return rows

    solved = minimize(
        lambda z: z[-2] + z[-1],
        np.concatenate([problem.signed[0].mean(0), [3.0, 3.0]]),
        jac=lambda z: np.repeat([0.0, 1.0], [20, 2]),
        constraints={"type": "ineq", "fun": room, "jac": slopes},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert abs(value_of(problem, 0, within, solved.x[:-2]) - found.value) < 1e-6


@pytest.mark.parametrize("within", SETS, ids=lambda item: item.name)
def test_gap_and_stationarity_vanish_at_the_solution_only(problem, points, within):
    found = optimum(problem, 1, within)
    assert 0 <= duality_gap(problem, 1, within, found.w, found.q, found.p) < 1e-8
    assert stationarity(problem, 1, within, found.w, 1e-6) < 1e-4
    uniform = np.full(4, 0.25)
    for w in points[1]:
        gap = duality_gap(problem, 1, within, w, uniform, uniform)
        assert gap >= value_of(problem, 1, within, w) - found.value - 1e-9
        assert stationarity(problem, 1, within, w, 1e-6) > 1e-2
    # weights outside of Q bound nothing: they are projected, and the gap stays a gap
    assert duality_gap(problem, 1, within, found.w, np.array([0.97, 0.01, 0.01, 0.01]), uniform) >= 0


def test_averaged_iterates_miss_no_active_corner(problem):
    """Corners that tie at the solution lie a gap apart there, which may be more than T^-1/2."""
    horizon, within = 10_000, simplex()
    columns = [Column(rule("corrected"), within, 2.5 / horizon**0.5, 1.67 / horizon**0.5)]
    found = descend(problem, columns, OneSample(problem, [False]), [horizon])[horizon].w[:, 0]
    for seed, w in enumerate(found):
        assert stationarity(problem, seed, within, w, active_tolerance(horizon)) < 0.02
    assert max(stationarity(problem, seed, within, w, horizon**-0.5) for seed, w in enumerate(found)) > 0.5
    # what is far from a solution is not made stationary by it
    for w in (0.5 * found, found + 0.1):
        assert stationarity(problem, 0, within, w[0], active_tolerance(horizon)) > 0.05


def test_a_binding_ball_is_handled(problem):
    tight = make_problem(1, radius=0.5)
    within = bounded_simplex()
    found = optimum(tight, 0, within)
    assert np.linalg.norm(found.w) == pytest.approx(0.5, abs=1e-6)
    assert found.value - found.bound < 1e-8
    least = inner_minimum(tight, 0, found.q, found.p, 0.1 * found.w)
    assert least.error < 1e-10
    assert np.linalg.norm(least.w) == pytest.approx(0.5, abs=1e-12)
    assert stationarity(tight, 0, within, found.w, 1e-5) < 1e-4
    # without the ball the same point is not stationary
    assert stationarity(problem, 0, within, found.w, 1e-5) > 1e-2


def test_smallest_combination_by_hand():
    none = np.empty((0, 2))
    assert smallest_combination(np.array([[1.0, 0.0], [0.0, 1.0]]), none) == pytest.approx(np.sqrt(0.5))
    assert smallest_combination(np.array([[3.0, 4.0]]), none) == pytest.approx(5)
    assert smallest_combination(np.array([[1.0, 2.0], [-1.0, 2.0]]), none) == pytest.approx(2)
    assert smallest_combination(np.array([[1.0, 2.0]]), np.array([[0.0, -1.0]])) == pytest.approx(1)


def test_slopes_are_those_of_the_last_decade():
    values = {T: [7.0 * T**-0.5, 2.0 * T**-0.25] for T in (1000, 3000, 10_000)} | {10: [1.0, 1.0]}
    assert fitted_slope(values)["median"] == pytest.approx(-0.375)
    with pytest.raises(ValueError, match="two horizons"):
        fitted_slope({10: [1.0], 1000: [1.0]})


def test_the_mean_is_that_of_the_points_and_the_running_mean_is_reset(problem):
    columns = [Column(rule("official"), SETS[0], 0.05, 0.05), Column(rule("corrected"), SETS[1], 0.05, 0.05)]
    horizons = [1, 2, 3, RESET_EVERY + 2]
    found = descend(problem, columns, FullGradient(problem, [False, False]), horizons)
    assert (found[1].w == 0).all()
    mean = (found[1].last + found[2].last + found[3].last) / 3
    assert np.allclose(found[3].w, mean)
    single = descend(problem, columns[:1], FullGradient(problem, [False]), horizons)
    assert np.allclose(single[horizons[-1]].q, found[horizons[-1]].q[:, :1], atol=1e-6)


@pytest.mark.slow
def test_quick_end_to_end(tmp_path, capsys):
    out, picture = tmp_path / "convex.json", tmp_path / "convex.png"
    assert main(["--quick", "--out", str(out), "--figure", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    record = json.loads(out.read_text())
    assert record["reference"]["certified_to"] < 1e-7
    assert {"numpy", "scipy", "matplotlib"} <= set(record["software"])
    rows = {(row["oracle"], row["steps"], row["weights"], row["rule"]): row for row in record["rows"]}
    assert len(rows) == len(record["rows"])
    assert {key[3] for key in rows} >= {item.name for item in RULES}
    for row in rows.values():
        assert set(row["measures"]) >= (
            {"gap", "excess", "stationarity"} if row["convex"] else {"stationarity"}
        )
        for measure in row["measures"].values():
            assert set(measure["horizons"]) == {"100", "1000"}
            assert all(end["low"] <= end["median"] <= end["high"] for end in measure["horizons"].values())
        for name in ("gap", "excess"):
            if row["convex"]:
                assert all(end["low"] >= -1e-9 for end in row["measures"][name]["horizons"].values())
    full = ("full gradient", "c/sqrt(T)", "simplex")
    assert rows[(*full, "corrected")]["measures"]["gap"]["slope"]["high"] < -0.2
    assert rows[(*full, "official")]["measures"]["gap"]["slope"]["low"] > -0.1
    assert "one sample per group" in capsys.readouterr().out
