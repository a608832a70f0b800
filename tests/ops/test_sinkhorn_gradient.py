"""The gradient of `objective`, by the envelope theorem, and nothing else's."""

from __future__ import annotations

import math

import pytest
import torch

from guardcore import ops, reference


def test_the_definition_passes_gradcheck_at_convergence(draw):
    patches, prototypes = (tensor.double().requires_grad_() for tensor in draw("clustered", 2, 5, 2, 3, D=4))

    def objective(patches, prototypes):
        return reference.sinkhorn(patches, prototypes, epsilon=0.2, max_iterations=150, tolerance=0.0).objective

    assert torch.autograd.gradcheck(objective, (patches, prototypes))


@pytest.mark.parametrize("relaxation", [None, 0.0, 0.1])
def test_the_kernel_has_the_gradient_of_the_definition(draw, relaxation):
    patches, prototypes = draw("clustered", 3, 20, 2, 6)
    patches, prototypes = 3 * patches, 0.1 * prototypes  # lengths are part of the chain rule
    a, b = torch.rand(3, 20), torch.rand(2, 6)
    weights = torch.randn(3, 2)
    options = {"epsilon": 0.1, "max_iterations": 300, "tolerance": 0.0, "relaxation": relaxation}
    exact = [tensor.double().requires_grad_() for tensor in (patches, prototypes)]
    truth = reference.sinkhorn(*exact, a.double(), b.double(), **options).objective
    expected = torch.autograd.grad((truth * weights).sum(), exact)
    inputs = [tensor.requires_grad_() for tensor in (patches, prototypes)]
    got = torch.autograd.grad((ops.sinkhorn(*inputs, a, b, **options).objective * weights).sum(), inputs)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left.double(), right, atol=2e-6, rtol=1e-5)


def test_packed_gradient_equals_the_dense_one(draw):
    patches, prototypes = draw("clustered", 3, 20, 2, 6)
    weights = torch.rand(3, 20)
    dense = [tensor.clone().requires_grad_() for tensor in (patches, prototypes)]
    expected = torch.autograd.grad(ops.sinkhorn(*dense, weights).objective.sum(), dense)
    packed = [tensor.clone().requires_grad_() for tensor in (patches.flatten(0, 1), prototypes)]
    offsets = torch.tensor([0, 20, 40, 60])
    out = ops.sinkhorn_packed(packed[0], offsets, packed[1], weights.flatten())
    got = torch.autograd.grad(out.objective.sum(), packed)
    torch.testing.assert_close(got[0].view(3, 20, -1), expected[0], atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(got[1], expected[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_have_the_inputs_dtype(draw, dtype):
    patches, prototypes = (tensor.to(dtype).requires_grad_() for tensor in draw("clustered", 2, 9, 2, 4))
    got = torch.autograd.grad(ops.sinkhorn(patches, prototypes).objective.sum(), (patches, prototypes))
    full = [tensor.detach().float().requires_grad_() for tensor in (patches, prototypes)]
    expected = torch.autograd.grad(ops.sinkhorn(*full).objective.sum(), full)
    for left, right in zip(got, expected, strict=True):
        assert left.dtype == dtype
        torch.testing.assert_close(left.float(), right, atol=1e-3, rtol=1e-2)


def test_zero_vectors_and_zero_weights_have_zero_gradient(draw):
    patches, prototypes = draw("clustered", 1, 6, 1, 4)
    patches[0, 2], prototypes[0, 1] = 0, 0
    weights = torch.ones(1, 6)
    weights[0, 4] = 0
    patches.requires_grad_(), prototypes.requires_grad_()
    by_patches, by_prototypes = torch.autograd.grad(
        ops.sinkhorn(patches, prototypes, weights).objective.sum(), (patches, prototypes)
    )
    assert by_patches.isfinite().all()
    assert bool((by_patches[0, [2, 4]] == 0).all())
    assert bool((by_prototypes[0, 1] == 0).all())


def test_an_item_that_the_loss_ignores_contributes_nothing_even_if_broken(draw):
    patches, prototypes = draw("clustered", 2, 6, 2, 4)
    patches[1, 0, 0] = math.nan
    prototypes.requires_grad_()
    (got,) = torch.autograd.grad(ops.sinkhorn(patches, prototypes).objective[0].sum(), prototypes)
    (expected,) = torch.autograd.grad(ops.sinkhorn(patches[:1], prototypes).objective.sum(), prototypes)
    torch.testing.assert_close(got, expected, atol=1e-7, rtol=0)


def test_only_the_objective_carries_a_gradient(draw):
    patches, prototypes = draw("random", 1, 6, 1, 4)
    out = ops.sinkhorn(patches.requires_grad_(), prototypes)
    assert {name for name, tensor in out._asdict().items() if tensor.requires_grad} == {"objective"}


def test_a_second_derivative_raises_instead_of_being_wrong(draw):
    patches, prototypes = draw("random", 1, 6, 1, 4)
    patches.requires_grad_()
    (first,) = torch.autograd.grad(ops.sinkhorn(patches, prototypes).objective.sum(), patches, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(first.sum(), patches)


def test_a_broken_category_that_the_loss_ignores_spoils_no_gradient(draw):
    patches, prototypes = draw("clustered", 2, 6, 3, 4)
    weights = torch.ones(3, 4)
    weights[2] = 0  # no mass
    broken = prototypes.clone()
    broken[1, 2, 0] = math.nan

    def gradient(bank, b, chosen):
        inputs = [patches.clone().requires_grad_(), bank.clone().requires_grad_()]
        objective = ops.sinkhorn(*inputs, None, b).objective
        return torch.autograd.grad(objective[:, chosen].sum(), inputs)

    expected, got = gradient(prototypes, None, 0), gradient(broken, weights, 0)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, atol=0, rtol=0)
    assert gradient(broken, weights, 1)[0].isnan().all()  # used, it is never silently a number


def test_broken_pairs_are_told_apart_by_item_and_category(draw):
    """Item 0's loss uses category 0, item 1's the broken category 1: only item 1 is lost."""
    patches, prototypes = draw("clustered", 2, 6, 2, 4)
    prototypes[1, 0, 0] = math.inf
    patches.requires_grad_()
    objective = ops.sinkhorn(patches, prototypes).objective
    (got,) = torch.autograd.grad(objective[0, 0] + objective[1, 1], patches)
    assert got[0].isfinite().all()
    assert got[1].isnan().all()


@pytest.mark.parametrize("name", ["patch_weights", "prototype_weights"])
def test_a_gradient_by_weights_is_refused_not_lost(draw, name):
    patches, prototypes = draw("clustered", 2, 6, 2, 4)
    weights = {"patch_weights": torch.ones(2, 6), "prototype_weights": torch.ones(2, 4)}[name].requires_grad_()
    with pytest.raises(NotImplementedError, match=f"{name} carries no gradient"):
        ops.sinkhorn(patches.requires_grad_(), prototypes, **{name: weights})
    with torch.no_grad():
        assert ops.sinkhorn(patches, prototypes, **{name: weights}).distance.isfinite().all()
    assert ops.sinkhorn(patches, prototypes, **{name: weights.detach()}).objective.requires_grad


def test_forward_mode_is_refused_not_zero(draw):
    patches, prototypes = draw("clustered", 2, 6, 2, 4)
    group, tangent = torch.zeros(4, dtype=torch.int64), torch.randn(2, 6, 64)
    with pytest.raises(NotImplementedError, match="patches has a tangent"):
        torch.func.jvp(lambda x: ops.sinkhorn(x, prototypes).objective, (patches,), (tangent,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(patches, tangent)
        with pytest.raises(NotImplementedError, match="use backward"):
            ops.joint_sinkhorn(dual, prototypes[0], group, num_groups=1)


def test_autocast_changes_nothing(draw):
    patches, prototypes = draw("clustered", 2, 20, 2, 6)
    patches.requires_grad_()
    objective = ops.sinkhorn(patches, prototypes).objective
    (expected,) = torch.autograd.grad(objective.sum(), patches)
    definition = reference.sinkhorn(patches.detach(), prototypes).patch_score
    with torch.autocast("cpu", torch.bfloat16):
        inside = ops.sinkhorn(patches, prototypes).objective
        (got,) = torch.autograd.grad(inside.sum(), patches)
        assert torch.equal(reference.sinkhorn(patches.detach(), prototypes).patch_score, definition)
    assert torch.equal(inside, objective)
    assert torch.equal(got, expected)


def test_the_packed_backward_takes_float64_weights(draw):
    """Only torch.ops lets them through to backward."""
    patches, prototypes = draw("clustered", 1, 6, 2, 4)
    patches, weights = patches[0].requires_grad_(), torch.rand(6, dtype=torch.float64)

    def gradient(weights):
        args = (patches, torch.tensor([0, 2, 6]), prototypes, weights, None, 0.05, 50, 0.0, None)
        return torch.autograd.grad(torch.ops.guardcore.sinkhorn_packed(*args)[3].sum(), patches)[0]

    torch.testing.assert_close(gradient(weights), gradient(weights.float()), atol=1e-7, rtol=1e-5)
