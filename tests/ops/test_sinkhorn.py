"""`ops.sinkhorn` against its float64 definition and against other libraries."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from guardcore import ops, reference

# Each shape has its reason: (B, N, C, M)
SHAPES = [
    pytest.param(1, 1, 1, 1, id="one-point-each"),
    pytest.param(3, 1, 2, 3, id="one-patch"),
    pytest.param(2, 49, 8, 1, id="one-prototype-and-N-above-a-multiple-of-16"),
    pytest.param(2, 50, 3, 16, id="ViT-B-32-with-class-token"),
    pytest.param(2, 196, 1, 3, id="N-a-multiple-of-4-not-of-16"),
    pytest.param(1, 197, 8, 16, id="ViT-B-16"),
    pytest.param(1, 577, 1, 64, id="ViT-L-14-336-more-than-one-cache-block"),
    pytest.param(2, 15, 2, 5, id="less-than-a-vector-and-M-not-a-multiple-of-4"),
]
GRID = list(itertools.product((1, 49, 50, 196, 197, 577, 1024), (1, 3, 16, 64), (1, 8, 33)))


def excess(got: Tensor, truth: Tensor) -> float:
    """Largest error over the promised bound, 2e-6 * max(distance, 0.1)."""
    return float(((got - truth).abs() / (2e-6 * truth.clamp_min(0.1))).max())


def assert_matches_definition(
    patches: Tensor, prototypes: Tensor, epsilon: float, max_iterations: int, relaxation: float | None = None
) -> None:
    options = {"epsilon": epsilon, "max_iterations": max_iterations, "tolerance": 0.0, "relaxation": relaxation}
    got = ops.sinkhorn(patches, prototypes, **options)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), **options)
    assert excess(got.distance, truth.distance) <= 1
    assert torch.equal(got.iterations, truth.iterations)
    torch.testing.assert_close(got.patch_score.double(), truth.patch_score, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(got.patch_cost.double(), truth.patch_cost, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(got.objective.double(), truth.objective, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(got.marginal_error.double(), truth.marginal_error, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize(("B", "N", "C", "M"), SHAPES)
def test_matches_the_float64_definition(draw, kind, B, N, C, M):
    for epsilon in (0.01, 0.05):
        assert_matches_definition(*draw(kind, B, N, C, M), epsilon, max_iterations=20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("epsilon", [0.01, 0.03, 0.1])
def test_matches_the_float64_definition_on_the_whole_grid(draw, kind, epsilon):
    for seed, (N, M, C) in enumerate(GRID):
        assert_matches_definition(*draw(kind, 1, N, C, M, seed=seed), epsilon, max_iterations=12)


@pytest.mark.parametrize("D", [1, 3, 100, 1152])
def test_any_width(draw, D):
    assert_matches_definition(*draw("clustered", 2, 33, 2, 6, D=D), epsilon=0.05, max_iterations=30)


@pytest.mark.parametrize("epsilon", [0.1, 0.05, 0.02, 0.01, 0.005])
def test_agrees_with_the_definition_down_to_small_epsilon(draw, epsilon):
    """At 0.005 scalings leave the range of float32 and the kernel tile is centered anew."""
    patches, prototypes = draw("clustered", 2, 40, 3, 9)
    options = {"epsilon": epsilon, "max_iterations": 200, "tolerance": 0.0}
    got = ops.sinkhorn(patches, prototypes, **options)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), **options)
    assert excess(got.distance, truth.distance) <= (1 if epsilon >= 0.01 else 2)


@pytest.mark.parametrize("epsilon", [0.5, 1e-3, 1e-5])
def test_extreme_epsilon_stays_finite_and_close(draw, epsilon):
    patches, prototypes = draw("random", 2, 20, 2, 5)
    options = {"epsilon": epsilon, "max_iterations": 30, "tolerance": 0.0}
    got = ops.sinkhorn(patches, prototypes, **options)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), **options)
    # rounding of the cost, 1e-7, moves a plan by a factor exp(1e-7 / epsilon)
    torch.testing.assert_close(got.distance.double(), truth.distance, atol=1e-6 + 1e-7 / epsilon * 0.2, rtol=0)


@pytest.mark.parametrize("relaxation", [0.0, 0.01, 0.1, 1.0, 100.0])
def test_relaxed_marginals_match_the_definition(draw, relaxation):
    for kind, epsilon in itertools.product(("random", "clustered"), (0.02, 0.1)):
        assert_matches_definition(*draw(kind, 2, 37, 3, 7), epsilon, max_iterations=25, relaxation=relaxation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(draw, dtype):
    """The rounded inputs are the problem: the result is as exact as for float32."""
    patches, prototypes = (tensor.to(dtype) for tensor in draw("clustered", 2, 50, 2, 16))
    assert_matches_definition(patches, prototypes, epsilon=0.05, max_iterations=20)
    assert ops.sinkhorn(patches, prototypes).distance.dtype == torch.float32


def test_weights_match_the_definition(draw):
    patches, prototypes = draw("clustered", 3, 30, 2, 8)
    g = torch.Generator().manual_seed(1)
    a, b = torch.rand(3, 30, generator=g), torch.rand(2, 8, generator=g)
    options = {"epsilon": 0.05, "max_iterations": 40, "tolerance": 0.0}
    got = ops.sinkhorn(patches, prototypes, 7 * a, 0.01 * b, **options)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), a.double(), b.double(), **options)
    assert excess(got.distance, truth.distance) <= 1
    torch.testing.assert_close(got.patch_cost.double(), truth.patch_cost, atol=1e-6, rtol=1e-6)


def test_stops_per_problem_at_the_tolerance(draw):
    patches, prototypes = draw("clustered", 4, 60, 3, 12)
    got = ops.sinkhorn(patches, prototypes, epsilon=0.02, tolerance=1e-3, max_iterations=500)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), epsilon=0.02, tolerance=1e-3, max_iterations=500)
    assert (got.iterations - truth.iterations).abs().max() <= 1  # rounding can move the error across the tolerance
    assert got.iterations.unique().numel() > 1
    assert bool((got.marginal_error <= 1e-3).all())


def test_potentials_give_the_plan(draw):
    """The marginals of the plan that f and g stand for: columns exact, rows off by marginal_error."""
    patches, prototypes = draw("clustered", 2, 25, 3, 6)
    *_, marginal_error, f, g = torch.ops.guardcore.sinkhorn(patches, prototypes, None, None, 0.05, 7, 0.0, None)
    cost = 1 - torch.einsum("bnd,cmd->bcnm", patches, prototypes)
    plan = ((f[..., None] + g[:, :, None] - cost) / 0.05).exp() / (25 * 6)
    torch.testing.assert_close(plan.sum(-2), torch.full((2, 3, 6), 1 / 6), atol=2e-6, rtol=0)
    torch.testing.assert_close((plan.sum(-1) - 1 / 25).abs().sum(-1), marginal_error, atol=2e-6, rtol=1e-3)


def test_agrees_with_pot(draw):
    patches, prototypes = draw("clustered", 1, 40, 1, 10)
    cost = (1 - patches[0].double() @ prototypes[0].double().T).numpy()
    got = ops.sinkhorn(patches, prototypes, epsilon=0.05, tolerance=0, max_iterations=2000)
    plan = ot.sinkhorn([], [], cost, 0.05, stopThr=1e-13, numItermax=10_000)
    assert got.distance.item() == pytest.approx((plan * cost).sum(), abs=1e-6)
    np.testing.assert_allclose(got.patch_cost[0, 0].numpy(), (plan * cost).sum(1), atol=1e-7)


def test_relaxed_problem_agrees_with_pot(draw):
    """POT relaxes both marginals; an infinite weight on the rows leaves the columns' alone."""
    patches, prototypes = draw("clustered", 1, 30, 1, 8)
    cost = (1 - patches[0].double() @ prototypes[0].double().T).numpy()
    got = ops.sinkhorn(patches, prototypes, epsilon=0.05, tolerance=0, max_iterations=1000, relaxation=0.1)
    plan = ot.unbalanced.sinkhorn_unbalanced(
        np.full(30, 1 / 30), np.full(8, 1 / 8), cost, 0.05, (float("inf"), 0.1), stopThr=1e-13, numItermax=10_000
    )
    assert got.distance.item() == pytest.approx((plan * cost).sum(), abs=1e-6)


def test_bounded_by_exact_transport_and_tends_to_it(draw):
    """emd <= <T, C> for a converged plan, and the gap closes as epsilon falls."""
    patches, prototypes = draw("clustered", 1, 32, 1, 8)
    cost = (1 - patches[0].double() @ prototypes[0].double().T).numpy()
    exact = float(ot.emd2(np.full(32, 1 / 32), np.full(8, 1 / 8), cost))
    gaps = []
    for epsilon in (0.2, 0.05, 0.01, 0.003):
        options = {"epsilon": epsilon, "tolerance": 1e-6, "max_iterations": 5000}
        gaps.append(ops.sinkhorn(patches, prototypes, **options).distance.item() - exact)
    assert min(gaps) > -2e-6
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3


def test_relaxed_word_movers_distance_is_a_lower_bound(draw):
    """A row-only or column-only plan costs no more than one that keeps both marginals."""
    patches, prototypes = draw("clustered", 3, 50, 4, 9)
    cost = 1 - torch.einsum("bnd,cmd->bcnm", patches, prototypes)
    bound = torch.maximum(cost.amin(-1).mean(-1), cost.amin(-2).mean(-1))
    got = ops.sinkhorn(patches, prototypes, tolerance=0, max_iterations=300)
    assert bool((got.distance >= bound - 1e-6).all())


def test_packed_items_equal_a_loop_of_single_ones(draw):
    patches, prototypes = draw("clustered", 1, 90, 3, 7)
    patches, lengths = patches[0], [1, 16, 0, 49, 24]
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    weights = torch.rand(90, generator=torch.Generator().manual_seed(2))
    got = ops.sinkhorn_packed(patches, offsets, prototypes, weights, epsilon=0.03)
    assert got.patch_cost.shape == got.patch_score.shape == (3, 90)
    for i, (first, last) in enumerate(itertools.pairwise(offsets.tolist())):
        alone = ops.sinkhorn(patches[None, first:last], prototypes, weights[None, first:last], epsilon=0.03)
        for name in ("distance", "objective", "iterations", "marginal_error"):
            torch.testing.assert_close(getattr(got, name)[i], getattr(alone, name)[0], equal_nan=True, atol=0, rtol=0)
        for name in ("patch_cost", "patch_score"):
            torch.testing.assert_close(getattr(got, name)[:, first:last], getattr(alone, name)[0], atol=0, rtol=0)
    assert got.distance[2].isnan().all()  # no patches, no distance


def test_result_does_not_depend_on_the_number_of_threads(draw):
    patches, prototypes = draw("clustered", 3, 50, 5, 16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.sinkhorn(patches, prototypes)
        torch.set_num_threads(3)
        three = ops.sinkhorn(patches, prototypes)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(left, right) for left, right in zip(one, three, strict=True))
