"""Leaps between Sinkhorn's iterations: the same answers, by the same criterion, in fewer sweeps and never many more."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guardcore import ops, reference
from guardcore.reference.acceleration import LONGEST, Leaps

solve = sys.modules["guardcore.reference.sinkhorn"].solve  # the package hands out the function of the same name
few = settings(max_examples=30, deadline=None)


def plain(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, tolerance: float, most: int) -> tuple[Tensor, int, float]:
    """Sinkhorn's iteration alone on one problem: its plan, the iterations, the row error; an oracle of a few lines."""
    log_kernel, v, iteration, error = -cost / epsilon, torch.zeros_like(b), 0, float("inf")
    while error > tolerance and iteration < most:
        iteration += 1
        u = a.log() - torch.logsumexp(log_kernel + v, 1)
        v = b.log() - torch.logsumexp(log_kernel + u[:, None], 0)
        plan = (u[:, None] + v + log_kernel).exp()
        error = float((plan.sum(1) - a).abs().sum())
    return plan, iteration, error


def plan_of(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, dual: reference.Plan) -> Tensor:
    return a[:, None] * b * ((dual.f[:, None] + dual.g - cost) / epsilon).exp()


@st.composite
def hard_problems(draw) -> tuple[Tensor, Tensor, Tensor, float]:
    """Cost, marginals and epsilon: clusters down to a thousandth apart, duplicates, zero weights, weights e^8 apart."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    N, M, D = draw(st.integers(1, 60)), draw(st.integers(1, 24)), draw(st.integers(2, 16))
    centers = torch.randn(draw(st.integers(1, 12)), D, generator=g, dtype=torch.float64)
    noise = draw(st.sampled_from([1e-3, 1e-2, 0.1, 1.0]))

    def points(count: int) -> Tensor:
        chosen = centers[torch.randint(len(centers), (count,), generator=g)]
        rows = chosen + noise * torch.randn(count, D, generator=g, dtype=torch.float64)
        rows[1:] = torch.where(torch.rand(count - 1, 1, generator=g) < 0.1, rows[:-1], rows[1:])
        return torch.nn.functional.normalize(rows, dim=-1)

    def weights(count: int, spread: float) -> Tensor:
        drawn = torch.exp(-spread * torch.rand(count, generator=g, dtype=torch.float64))
        return drawn / drawn.sum()

    a, b = (weights(count, draw(st.sampled_from([0.0, 1.0, 8.0]))) for count in (N, M))
    a[1 : 1 + draw(st.integers(0, N // 4))] = 0.0
    cost = 1 - points(N) @ points(M).T
    return cost, a / a.sum(), b, draw(st.sampled_from([0.5, 0.1, 0.05, 0.02, 0.01, 0.005]))


@few
@given(hard_problems(), st.sampled_from([1e-3, 1e-4, 1e-6]))
def test_never_many_more_sweeps_and_the_error_is_kept(problem, tolerance):
    cost, a, b, epsilon = problem
    _, needed, error = plain(cost, a, b, epsilon, tolerance, most=1500)
    dual = solve(cost, a, b, epsilon, 1500, tolerance, None)
    if error > tolerance:  # neither may promise what the other cannot keep in time
        assert int(dual.iterations) <= 1500
        return
    assert int(dual.iterations) <= 1.5 * needed + 16
    plan = plan_of(cost, a, b, epsilon, dual)
    torch.testing.assert_close(plan.sum(0), b, atol=1e-9, rtol=1e-9)
    assert float((plan.sum(1) - a).abs().sum()) <= tolerance * (1 + 1e-6)
    assert float(dual.marginal_error) == pytest.approx(float((plan.sum(1) - a).abs().sum()), rel=1e-3, abs=1e-12)


@few
@given(hard_problems())
def test_converges_to_the_plan_of_plain_iterations(problem):
    """Row sums within 1e-11 leave the plan undetermined by that times the condition number, which may be 10,000."""
    cost, a, b, epsilon = problem
    expected, _, error = plain(cost, a, b, epsilon, 1e-11, most=4000)
    if error > 1e-11:
        return
    plan = plan_of(cost, a, b, epsilon, solve(cost, a, b, epsilon, 4000, 1e-11, None))
    torch.testing.assert_close(plan, expected, atol=1e-6, rtol=0)
    assert float((plan * cost).sum()) == pytest.approx(float((expected * cost).sum()), abs=1e-7)


@few
@given(hard_problems(), st.integers(1, 12))
def test_whatever_the_limit_the_last_step_is_plain(problem, limit):
    """A plan that a leap ended would have wrong columns and an error of something else."""
    cost, a, b, epsilon = problem
    dual = solve(cost, a, b, epsilon, limit, 1e-12, None)
    plan = plan_of(cost, a, b, epsilon, dual)
    assert int(dual.iterations) <= limit
    torch.testing.assert_close(plan.sum(0), b, atol=1e-9, rtol=1e-9)
    assert float(dual.marginal_error) == pytest.approx(float((plan.sum(1) - a).abs().sum()), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("tolerance", "relaxation"), [(0.0, None), (1e-4, 0.5), (1e-4, 0.0)])
def test_without_a_tolerance_or_with_relaxed_marginals_nothing_leaps(draw, monkeypatch, tolerance, relaxation):
    def refuse(*args: object) -> None:
        raise AssertionError("leaps were made")

    monkeypatch.setattr(sys.modules["guardcore.reference.sinkhorn"], "Leaps", refuse)
    reference.sinkhorn(*draw("clustered", 1, 20, 2, 5), epsilon=0.01, tolerance=tolerance, relaxation=relaxation)


def test_at_small_epsilon_a_third_of_the_sweeps_is_enough(draw):
    epsilon = 0.01
    patches, prototypes = (tensor.double() for tensor in draw("clustered", 2, 100, 3, 16))
    a, b = torch.full((100,), 0.01, dtype=torch.float64), torch.full((16,), 1 / 16, dtype=torch.float64)
    cost = 1 - torch.einsum("bnd,cmd->bcnm", patches, prototypes)
    needed = [plain(each, a, b, epsilon, 1e-4, most=5000)[1] for each in cost.flatten(0, 1)]
    for definition_or_kernel in (reference.sinkhorn, ops.sinkhorn):
        out = definition_or_kernel(patches.float(), prototypes.float(), epsilon=epsilon, max_iterations=5000)
        assert bool((out.marginal_error <= 1e-4).all())
        assert int(out.iterations.sum()) <= sum(needed) / 3
        assert int((out.iterations.flatten() - torch.tensor(needed)).max()) <= 2


@pytest.mark.parametrize(("epsilon", "tolerance"), [(0.05, 1e-5), (0.01, 1e-3), (0.01, 1e-5), (0.003, 1e-4)])
def test_the_kernel_takes_the_same_leaps(draw, epsilon, tolerance):
    """Rounding may turn a decision, so counts are compared roughly, and results by what the tolerance implies.

    At 0.003 most problems leave the range of float32, so that leaps cross changes of the center.
    """
    patches, prototypes = draw("clustered", 2, 70, 4, 12, D=24)
    options = {"epsilon": epsilon, "max_iterations": 2000, "tolerance": tolerance}
    got = ops.sinkhorn(patches, prototypes, **options)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), **options)
    assert bool((got.marginal_error <= tolerance).all())
    assert bool((truth.marginal_error <= tolerance).all())
    assert abs(float(got.iterations.double().mean() / truth.iterations.double().mean()) - 1) <= 0.25
    # moving the missing mass costs at most the largest difference of costs, 2, times it, and epsilon log of its size
    torch.testing.assert_close(got.distance.double(), truth.distance, atol=4 * tolerance, rtol=0)


def test_a_patch_without_weight_spoils_nothing_at_tiny_epsilon(draw):
    """Its row may move by more than exp can say, and 0 times infinity would be NaN."""
    patches, prototypes = draw("clustered", 1, 20, 2, 5, D=4)
    weights = torch.ones(1, 20)
    weights[0, 3:9] = 0
    out = reference.sinkhorn(patches, prototypes, weights, epsilon=1e-4, max_iterations=50, tolerance=0.0)
    assert out.iterations.tolist() == [[50, 50]]
    assert bool(out.distance.isfinite().all())
    assert bool((out.patch_cost[..., 3:9] == 0).all())


def leaping(M: int = 4) -> tuple[Leaps, Tensor, Tensor]:
    """One problem that has made a plain step and then leapt: the decisions, log w where it leapt, and the leap."""
    leaps = Leaps(torch.full((M,), 1 / M, dtype=torch.float64), max_iterations=1000, tolerance=1e-9)
    start = torch.linspace(-0.3, 0.3, M, dtype=torch.float64)
    assert not bool(leaps(start, 1)[0])
    moved, step = leaps(0.9 * start, 2)
    assert bool(moved)
    return leaps, 0.9 * start, step


def test_a_leap_follows_the_slow_direction():
    """The plain step left 0.9 of the error, so that it should have been ten times as long."""
    _, log_w, step = leaping()
    assert float((step / -log_w).mean()) == pytest.approx(10, rel=0.15)


def test_a_leap_that_overshoots_is_shortened_then_undone_then_there_is_a_pause():
    leaps, log_w, step = leaping()
    moved, back = leaps(-3 * log_w, 3)
    taken = float((step + back).norm() / step.norm())
    assert bool(moved)
    assert 0.1 <= taken <= 0.5  # the slope turned to three times itself: a quarter of the way is where it vanishes
    moved, back = leaps(-3 * log_w, 4)
    assert bool(moved)
    torch.testing.assert_close(taken * step + back, -log_w)  # where the plain step would have gone
    assert [bool(leaps(0.9**k * log_w, 4 + k)[0]) for k in range(1, 5)] == [False, False, True, True]


def test_a_leap_into_nowhere_is_undone():
    leaps, log_w, step = leaping()
    moved, back = leaps(torch.full_like(log_w, torch.nan), 3)
    assert bool(moved)
    torch.testing.assert_close(step + back, -log_w)


def test_a_leap_is_never_longer_than_it_may_and_the_next_one_knows():
    """The secant equation: where the last step took two thirds of the gap, half of it takes the rest."""
    leaps = Leaps(torch.full((2,), 0.5, dtype=torch.float64), max_iterations=1000, tolerance=1e-9)
    start = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    leaps(start, 1)
    slow = start * (1 - 1e-4)
    moved, step = leaps(slow, 2)
    assert bool(moved)
    assert float(step.abs().max()) == pytest.approx(LONGEST)
    moved, again = leaps(((2 + slow.exp()) / 3).log(), 3)
    assert bool(moved)
    torch.testing.assert_close(again, step / 2)


def test_on_a_plateau_the_leap_is_as_long_as_it_may():
    """Far from the other side of a flat dual the gap stays as it is, and plain iterations creep by its logarithm."""
    leaps = Leaps(torch.full((2,), 0.5, dtype=torch.float64), max_iterations=1000, tolerance=1e-9)
    start = torch.tensor([0.3, -0.4], dtype=torch.float64)
    assert not bool(leaps(start, 1)[0])
    moved, step = leaps(start, 2)
    assert bool(moved)
    torch.testing.assert_close(step, -start * LONGEST / 0.4)


def test_a_plateau_of_hundreds_of_epsilons_is_crossed():
    """Two clusters that must trade mass through costs 400 epsilon apart: plain iterations need more than 300."""
    a, b = torch.full((6,), 1 / 6, dtype=torch.float64), torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    costs = [[1.28, 1.14], [0.73, 1.11], [0.42, 0.60], [1.28, 1.17], [0.90, 1.16], [0.39, 0.47]]
    cost = torch.tensor(costs, dtype=torch.float64)
    _, needed, error = plain(cost, a, b * torch.tensor([0.99, 1.005]), 0.002, 1e-4, most=3000)
    dual = solve(cost, a, b * torch.tensor([0.99, 1.005]), 0.002, 3000, 1e-4, None)
    assert error <= 1e-4
    assert float(dual.marginal_error) <= 1e-4
    assert int(dual.iterations) < needed / 3


def test_problems_of_a_batch_decide_for_themselves():
    b = torch.full((3, 4), 0.25, dtype=torch.float64)
    leaps = Leaps(b, max_iterations=1000, tolerance=1e-9)
    start = torch.linspace(-0.3, 0.3, 4, dtype=torch.float64).repeat(3, 1)
    assert leaps(start, 1)[0].tolist() == [False] * 3
    share = torch.tensor([[0.9], [0.01], [torch.nan]], dtype=torch.float64)  # slow, swift, broken
    assert leaps(share * start, 2)[0].tolist() == [True, False, False]
