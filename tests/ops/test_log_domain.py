"""The C++ log domain, which takes over where float32 underflows: against the float64 definition, relaxed too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guardcore import ops, reference


def far_prototype() -> tuple[Tensor, Tensor]:
    """Patches around a center and a prototype opposite to it: cost 2, exp(-2 / 0.005) = 1e-174."""
    g = torch.Generator().manual_seed(5)
    center = torch.randn(16, generator=g)
    patches = center + 0.3 * torch.randn(2, 21, 16, generator=g)
    prototypes = center + torch.randn(3, 6, 16, generator=g)
    prototypes[:, 0] = -center
    return patches, prototypes


OPTIONS = {"max_iterations": 20, "tolerance": 0.0}


@pytest.mark.parametrize("epsilon", [0.005, 0.001])
@pytest.mark.parametrize("relaxation", [None, 0.0, 0.02, 1.0])
def test_matches_the_float64_definition(relaxation, epsilon):
    """A cost is rounded by 1e-7, which at epsilon = 0.001 moves an entry of the plan by 1e-4 of itself."""
    args, options = (None, None, epsilon, 20, 0.0, relaxation), {"atol": 2e-6, "rtol": 4e-7 / epsilon}
    patches, prototypes = far_prototype()
    got = torch.ops.guardcore.sinkhorn(patches, prototypes, *args)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), *args)
    for field, left, right in zip(reference.Plan._fields, got, truth, strict=True):
        torch.testing.assert_close(left.to(right.dtype), right, **options, msg=lambda text, field=field: field + text)


@pytest.mark.parametrize("epsilon", [0.005, 0.001])
@pytest.mark.parametrize("relaxation", [None, 0.0, 0.02, 1.0])
def test_joint_matches_the_float64_definition(relaxation, epsilon):
    patches, prototypes = far_prototype()
    group = torch.tensor([0, 1, 2, 0, 1, 2])
    options = {"num_groups": 3, "epsilon": epsilon, **OPTIONS, "relaxation": relaxation}
    got = ops.joint_sinkhorn(patches, prototypes[0], group, **options)
    truth = reference.joint_sinkhorn(patches.double(), prototypes[0].double(), group, **options)
    for left, right in zip(got, truth, strict=True):
        torch.testing.assert_close(left.to(right.dtype), right, atol=4e-7 / epsilon, rtol=0)


@pytest.mark.parametrize("epsilon", [0.1, 0.02, 0.002])
def test_a_score_never_undershoots_the_smallest_cost(draw, epsilon):
    """Categories are cleared by this bound, so rounding has no say. Four equal prototypes: the cost is the score."""
    patches, prototypes = draw("random", 8, 200, 4, 1, D=33)
    options = {"epsilon": epsilon, **OPTIONS}
    cost = ops.sinkhorn(patches, prototypes, **options)
    again = ops.sinkhorn(patches, prototypes.repeat(1, 7, 1), **options)
    assert bool((cost.patch_score >= (1 - torch.einsum("bnd,cmd->bcn", patches, prototypes)) - 5e-7).all())
    assert bool((again.patch_score >= cost.patch_score).all())
