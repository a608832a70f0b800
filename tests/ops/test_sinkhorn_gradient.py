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
