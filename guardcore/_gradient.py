"""Backward of the transport operators: the envelope theorem for the objective, a refusal for the rest.

At fixed potentials the derivative of the dual value by the cost is the plan, d objective / d C = T, and at the optimum
the potentials' own derivatives vanish (Danskin; Feydy et al. 2019, arXiv 1810.08278, proposition 2). From C the
gradient goes on through the cosine to patches and prototypes.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from guardcore.reference.sinkhorn import simplex, unit_rows


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    patches, prototypes, patch_weights, prototype_weights, epsilon, *_ = inputs
    ctx.save_for_backward(patches, prototypes, patch_weights, prototype_weights, *output[6:])
    ctx.epsilon = epsilon
    _mark(ctx, output)


def _setup_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    patches, cu_seqlens, prototypes, patch_weights, prototype_weights, epsilon, *_ = inputs
    ctx.save_for_backward(patches, cu_seqlens, prototypes, patch_weights, prototype_weights, *output[6:])
    ctx.epsilon = epsilon
    _mark(ctx, output)


def _mark(ctx: Any, output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*(tensor for i, tensor in enumerate(output) if i != 3))
    ctx.set_materialize_grads(False)


@once_differentiable  # the potentials are constants here, so a second derivative would be wrong
def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if grads[3] is None:
        return (None,) * 8
    patches, prototypes, patch_weights, prototype_weights, f, g = ctx.saved_tensors
    B, N, _ = patches.shape
    item = torch.arange(B, device=patches.device).repeat_interleave(N)
    a = simplex(patch_weights, patches.float()).flatten()
    grad_patches, grad_prototypes = plan_gradient(
        grads[3],
        patches.flatten(0, 1),
        item,
        prototypes,
        a,
        prototype_weights,
        f.transpose(0, 1).flatten(1),
        g,
        ctx.epsilon,
    )
    return grad_patches.view_as(patches), grad_prototypes, *(None,) * 6


@once_differentiable
def _backward_packed(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if grads[3] is None:
        return (None,) * 9
    patches, cu_seqlens, prototypes, patch_weights, prototype_weights, f, g = ctx.saved_tensors
    T, B = patches.shape[0], cu_seqlens.shape[0] - 1
    item = torch.searchsorted(
        cu_seqlens[1:], torch.arange(T, device=patches.device, dtype=cu_seqlens.dtype), right=True
    )
    weights = patches.new_ones(T, dtype=torch.float32) if patch_weights is None else patch_weights
    a = weights / weights.new_zeros(B).index_add(0, item, weights)[item]
    grad_patches, grad_prototypes = plan_gradient(
        grads[3], patches, item, prototypes, a, prototype_weights, f, g, ctx.epsilon
    )
    return grad_patches, None, grad_prototypes, *(None,) * 6


def plan_gradient(
    grad: Tensor,
    patches: Tensor,
    item: Tensor,
    prototypes: Tensor,
    a: Tensor,
    prototype_weights: Tensor | None,
    f: Tensor,
    g: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Gradient by patches[T, D] and prototypes[C, M, D] for grad[B, C] of the objective; item[T] is each patch's item.

    a[T] and prototype_weights[C, M] are the marginals (a normalized), f[C, T] and g[B, C, M] the potentials. An item
    that the loss ignores (all its entries of grad are 0) contributes nothing, even if it is NaN.
    """
    b = simplex(prototype_weights, prototypes.float())
    ignored = (grad == 0).all(1)[item]
    x, p = unit_rows(patches.float()).masked_fill(ignored[:, None], 0), unit_rows(prototypes.float())
    similarity = torch.einsum("td,cmd->ctm", x, p)
    exponent = (f[..., None] + g[item].transpose(0, 1) - 1 + similarity) / epsilon
    plan = (a.log()[:, None] + b.log()[:, None] + exponent).exp()
    flow = (plan * grad[item].T[..., None]).masked_fill(ignored[:, None], 0)
    return (
        _through_unit_rows(-torch.einsum("ctm,cmd->td", flow, p), x, patches),
        _through_unit_rows(-torch.einsum("ctm,td->cmd", flow, x), p, prototypes),
    )


def _through_unit_rows(grad: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
    """Gradient by rows[..., D] from that by unit = rows / |rows|: its tangential part over |rows|, 0 for a zero row."""
    largest = rows.float().abs().amax(-1, keepdim=True)
    zero = largest == 0
    length = (rows / largest).float().square().sum(-1, keepdim=True).sqrt() * largest
    tangent = grad - unit * (unit * grad).sum(-1, keepdim=True)
    return (tangent / length).masked_fill(zero, 0).to(rows.dtype)


def _setup_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep nothing: there is no backward."""


def _refuse(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise NotImplementedError("guardcore::joint_sinkhorn is inference only; detach its inputs or use torch.no_grad()")


SINKHORN = (_setup, _backward)
SINKHORN_PACKED = (_setup_packed, _backward_packed)
INFERENCE_ONLY = (_setup_nothing, _refuse)
