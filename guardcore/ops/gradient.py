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

from guardcore.ops.checks import packed_items
from guardcore.reference.sinkhorn import full_precision, simplex, unit_rows


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
    a = simplex(patch_weights, _working(patches)).flatten()
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
    item = packed_items(cu_seqlens, T)
    weights = _working(patches.new_ones(T) if patch_weights is None else patch_weights)
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

    a[T] and prototype_weights[C, M] are the marginals (a normalized), f[C, T] and g[B, C, M] the potentials. A pair of
    item and category that the loss ignores (its entry of grad is 0) contributes nothing, even if it is NaN.
    """
    b = simplex(prototype_weights, _working(prototypes))
    used = (grad != 0)[item].T[..., None]  # [C, T, 1]
    with full_precision(patches.device):
        # bad rows: the potentials of their problems are NaN, which reaches those that the loss uses and no others
        x, p = _finite(unit_rows(_working(patches))), _finite(unit_rows(_working(prototypes)))
        exponent = (_working(f)[..., None] + g[item].transpose(0, 1) - 1 + torch.einsum("td,cmd->ctm", x, p)) / epsilon
        plan = (a.log()[:, None] + b.log()[:, None] + exponent).exp()
        flow = (plan * grad[item].T[..., None]).masked_fill(~used, 0)
        return (
            _through_unit_rows(-torch.einsum("ctm,cmd->td", flow, p), x, patches),
            _through_unit_rows(-torch.einsum("ctm,td->cmd", flow, x), p, prototypes),
        )


def _working(tensor: Tensor) -> Tensor:
    """Float32; on a GPU float64, as TF32, which a user may have allowed, would cost the cosines their digits."""
    return tensor.double() if tensor.is_cuda else tensor.float()


def _finite(rows: Tensor) -> Tensor:
    return rows.masked_fill(~rows.isfinite().all(-1, keepdim=True), 0)


def _through_unit_rows(grad: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
    """Gradient by rows[..., D] from that by unit = rows / |rows|: its tangential part over |rows|, 0 for a zero row.

    A row that takes no part (its grad is 0) gets 0, whatever it holds.
    """
    values = _working(rows)
    largest = values.abs().amax(-1, keepdim=True)
    nothing = (largest == 0) | (grad == 0).all(-1, keepdim=True)
    length = (values / largest).square().sum(-1, keepdim=True).sqrt() * largest
    tangent = grad - unit * (unit * grad).sum(-1, keepdim=True)
    return (tangent / length).masked_fill(nothing, 0).to(rows.dtype)


def _setup_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep nothing: there is no backward."""


def _refuse(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise NotImplementedError("this operator is inference only; detach its inputs or use torch.no_grad()")


SINKHORN = (_setup, _backward)
SINKHORN_PACKED = (_setup_packed, _backward_packed)
INFERENCE_ONLY = (_setup_nothing, _refuse)
