"""Properties of `ops.sinkhorn` that hold for every input."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guardcore import ops

OPTIONS = {"epsilon": 0.05, "max_iterations": 60, "tolerance": 0.0}
SEEDS = st.integers(0, 2**16)
few = settings(max_examples=25, deadline=None)


def problem(seed: int, N: int, M: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    center = torch.randn(8, generator=g)
    patches, prototypes = torch.randn(1, N, 8, generator=g) + center, torch.randn(2, M, 8, generator=g) + center
    return patches, prototypes, torch.rand(1, N, generator=g) + 0.01, torch.rand(2, M, generator=g) + 0.01


@few
@given(SEEDS, st.integers(1, 40), st.integers(1, 12))
def test_patch_costs_sum_to_the_distance_and_scores_lie_between_the_extremes(seed, N, M):
    patches, prototypes, a, b = problem(seed, N, M)
    out = ops.sinkhorn(patches, prototypes, a, b, **OPTIONS)
    torch.testing.assert_close(out.patch_cost.sum(-1), out.distance, atol=1e-6, rtol=0)
    unit = torch.nn.functional.normalize
    cost = 1 - torch.einsum("bnd,cmd->bcnm", unit(patches, dim=-1), unit(prototypes, dim=-1))
    assert bool((out.patch_score >= cost.amin(-1) - 2e-6).all())
    assert bool((out.patch_score <= cost.amax(-1) + 2e-6).all())


@few
@given(SEEDS, st.integers(2, 40), st.integers(2, 12))
def test_order_of_patches_and_prototypes_does_not_matter(seed, N, M):
    patches, prototypes, a, b = problem(seed, N, M)
    g = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(N, generator=g), torch.randperm(M, generator=g)
    out = ops.sinkhorn(patches, prototypes, a, b, **OPTIONS)
    mixed = ops.sinkhorn(patches[:, rows], prototypes[:, columns], a[:, rows], b[:, columns], **OPTIONS)
    torch.testing.assert_close(mixed.distance, out.distance, atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed.patch_score, out.patch_score[..., rows], atol=3e-6, rtol=0)


@few
@given(SEEDS, st.integers(1, 20), st.integers(1, 8), st.floats(0.0, 1.0))
def test_splitting_a_points_weight_changes_nothing(seed, N, M, share):
    patches, prototypes, a, b = problem(seed, N, M)
    out = ops.sinkhorn(patches, prototypes, a, b, **OPTIONS)
    split = torch.cat((a[:, :1] * share, a[:, 1:], a[:, :1] * (1 - share)), 1)
    twins = ops.sinkhorn(torch.cat((patches, patches[:, :1]), 1), prototypes, split, b, **OPTIONS)
    torch.testing.assert_close(twins.distance, out.distance, atol=1e-6, rtol=0)
    torch.testing.assert_close(twins.patch_score[..., -1], out.patch_score[..., 0], atol=3e-6, rtol=0)


@few
@given(SEEDS, st.integers(1, 20), st.integers(1, 8), st.floats(1e-30, 1e30))
def test_length_of_a_vector_does_not_matter(seed, N, M, scale):
    patches, prototypes, a, b = problem(seed, N, M)
    out = ops.sinkhorn(patches, prototypes, a, b, **OPTIONS)
    scaled = ops.sinkhorn(patches * scale, prototypes / scale, a, b, **OPTIONS)
    torch.testing.assert_close(scaled.distance, out.distance, atol=1e-6, rtol=0)


@few
@given(SEEDS, st.integers(1, 30), st.integers(1, 10), st.sampled_from([0.02, 0.1, 1.0, None]))
def test_objective_rises_with_every_iteration(seed, N, M, relaxation):
    """Block-wise ascent on the dual: no update can lower it."""
    patches, prototypes, a, b = problem(seed, N, M)
    values = [
        ops.sinkhorn(
            patches, prototypes, a, b, epsilon=0.05, max_iterations=k, tolerance=0.0, relaxation=relaxation
        ).objective
        for k in (1, 2, 4, 8, 32)
    ]
    for earlier, later in itertools.pairwise(values):
        assert bool((later >= earlier - 1e-6).all())


@few
@given(SEEDS, st.integers(1, 30), st.integers(1, 10))
def test_objective_lies_between_the_distance_and_the_distance_plus_entropy(seed, N, M):
    """At convergence it is <T, C> + epsilon KL(T || a b^T), and KL is at most log of the larger marginal's support."""
    patches, prototypes, a, b = problem(seed, N, M)
    out = ops.sinkhorn(patches, prototypes, a, b, epsilon=0.1, max_iterations=500, tolerance=0.0)
    entropy = -(b / b.sum(-1, keepdim=True)).log().amin(-1)
    assert bool((out.objective >= out.distance - 2e-6).all())
    assert bool((out.objective <= out.distance + 0.1 * entropy + 2e-6).all())
