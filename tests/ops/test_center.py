"""C++ problems that leave float32's range, where the kernel tile is centered anew: against the float64 definition."""

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


@pytest.mark.parametrize("iterations", [1, 2, 3, 30])
@pytest.mark.parametrize("epsilon", [0.005, 0.002, 1e-4])
def test_whichever_iteration_is_the_last(draw, epsilon, iterations):
    """The first iterations move potentials by hundreds of epsilons: f, g and the row sums must survive each move.

    Sixteen dimensions spread the costs so far that the range is left at once; two give rows that all but one lose.
    """
    for D, relaxation in ((16, None), (2, None), (16, 0.3)):
        patches, prototypes = draw("random", 2, 33, 3, 9, D=D)
        weights = torch.rand(2, 33, generator=torch.Generator().manual_seed(3))
        weights[:, ::7] = 0
        args = (None, epsilon, iterations, 0.0, relaxation)
        got = torch.ops.guardcore.sinkhorn(patches, prototypes, weights, *args)
        truth = reference.sinkhorn(patches.double(), prototypes.double(), weights.double(), *args)
        some = weights > 0
        f, expected = (each.movedim(1, -1)[some] for each in (got[6], truth.f))
        assert bool((got[4] == iterations).all())
        torch.testing.assert_close(f.double(), expected, atol=5e-7, rtol=0)
        torch.testing.assert_close(got[3].double(), truth.objective, atol=5e-7, rtol=0)
        # a rounded cost moves an entry of the plan by this share of itself
        torch.testing.assert_close(got[0].double(), truth.distance, atol=2e-6 + 2e-9 / epsilon, rtol=0)
        torch.testing.assert_close(got[5].double(), truth.marginal_error, atol=2e-8 / epsilon, rtol=0)


def test_small_epsilon_keeps_the_promised_accuracy(draw):
    patches, prototypes = draw("clustered", 1, 197, 4, 32, D=512)
    for epsilon in (0.01, 0.005, 0.002):
        options = {"epsilon": epsilon, "max_iterations": 50, "tolerance": 0.0}
        got = ops.sinkhorn(patches, prototypes, **options)
        truth = reference.sinkhorn(patches.double(), prototypes.double(), **options)
        assert bool(((got.distance - truth.distance).abs() <= 2e-6 * truth.distance.clamp(min=0.1)).all())


def test_weights_of_any_size():
    """A prototype of weight 1e-30 that is the nearest of some patches: their row sums start below what is trusted."""
    patches, prototypes = far_prototype()
    weights = torch.tensor([1e-30, 1.0, 1.0, 1e-12, 1.0, 1.0]).expand(3, 6).contiguous()
    options = {"epsilon": 0.01, "max_iterations": 40, "tolerance": 0.0}
    got = ops.sinkhorn(prototypes[:1, :1].expand(2, 3, 16) + 0.1 * patches[:, :3], prototypes, None, weights, **options)
    truth = reference.sinkhorn(
        prototypes[:1, :1].expand(2, 3, 16).double() + 0.1 * patches[:, :3].double(),
        prototypes.double(),
        None,
        weights.double(),
        **options,
    )
    torch.testing.assert_close(got.distance.double(), truth.distance, atol=4e-6, rtol=0)
    torch.testing.assert_close(got.patch_score.double(), truth.patch_score, atol=4e-6, rtol=0)


@pytest.mark.parametrize("epsilon", [0.1, 0.02, 0.002])
def test_a_score_never_undershoots_the_smallest_cost(draw, epsilon):
    """Categories are cleared by this bound, so rounding has no say. Four equal prototypes: the cost is the score."""
    patches, prototypes = draw("random", 8, 200, 4, 1, D=33)
    options = {"epsilon": epsilon, **OPTIONS}
    cost = ops.sinkhorn(patches, prototypes, **options)
    again = ops.sinkhorn(patches, prototypes.repeat(1, 7, 1), **options)
    assert bool((cost.patch_score >= (1 - torch.einsum("bnd,cmd->bcn", patches, prototypes)) - 5e-7).all())
    assert bool((again.patch_score >= cost.patch_score).all())


def test_a_tiny_share_keeps_the_digits_of_its_scaling():
    """v = b / column would be a subnormal number, whose logarithm is worth little."""
    patches, prototypes = torch.eye(3)[torch.arange(225) % 3][None], torch.eye(3)[:2][None]
    weights = torch.tensor([[1.0, 1.37e-23]])
    args = (0.01, 1, 0.0, None)
    got = torch.ops.guardcore.sinkhorn(patches, prototypes, None, weights, *args)
    truth = reference.sinkhorn(patches.double(), prototypes.double(), None, weights.double(), *args)
    torch.testing.assert_close(got[2].double(), truth.patch_score, atol=2e-6, rtol=0)
