"""Entropic optimal transport between the patches of an image and the prototypes of a category: the definition.

Minimise <T, C> + epsilon KL(T || a b^T) over plans T with row sums a (patches) and column sums b (prototypes), where
C[n, m] = 1 - <x_n, p_m> / (|x_n| |p_m|). The optimum is T_nm = a_n b_m exp((f_n + g_m - C_nm) / epsilon); Sinkhorn's
iteration alternates between the potentials f and g (Cuturi 2013, arXiv 1306.0895; in the log domain, Peyre & Cuturi
2019, arXiv 1803.00567, equations 4.40 and 4.41; relaxed marginals, Chizat et al. 2018, arXiv 1607.05816, section 3).

Everything is computed in float64 where the device has it, whatever the inputs: in float32, rounding of the cost and of
the potentials over epsilon would miss the promised accuracy.

Bad values spread on purpose: a NaN or inf in an item, or weights that sum to zero, make every float output of that item
NaN, and no other item's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from guardcore.reference.acceleration import Leaps


class Plan(NamedTuple):
    """The solved transport problems of B items and C categories; float64 if the inputs are, else float32.

    The first six fields are those of `guardcore.ops.SinkhornOutput`; the potentials f[B, C, N] and g[B, C, M] give the
    plan itself, T_nm = a_n b_m exp((f_n + g_m - C_nm) / epsilon). Packed calls have [C, T] in place of [B, C, N].
    """

    distance: Tensor
    patch_cost: Tensor
    patch_score: Tensor
    objective: Tensor
    iterations: Tensor
    marginal_error: Tensor
    f: Tensor
    g: Tensor


class Potentials(NamedTuple):
    """Where Sinkhorn's iteration stopped, for problems of any leading shape.

    f[..., N], g[..., M]: the plan's potentials. f_next[..., N]: the row update that would follow, so that the plan's
    row sums are a exp((f - f_next) / epsilon). iterations[...] int32. marginal_error[...]: L1 error of those row sums.
    """

    f: Tensor
    g: Tensor
    f_next: Tensor
    iterations: Tensor
    marginal_error: Tensor


def sinkhorn(
    patches: Tensor,
    prototypes: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
) -> Plan:
    """Solve B * C transport problems: patches[B, N, D] of every item against prototypes[C, M, D] of every category.

    Weights [B, N] and [C, M] are divided by their sums (None: uniform). `relaxation` None keeps the prototype marginal
    exact; a number is the weight rho of KL(T^T 1 || b) in its place. See `guardcore.ops.sinkhorn` for the outputs.
    """
    if len(patches) > 1:  # a batch's temporaries would leave the cache, which costs four times the time
        options = (prototype_weights, epsilon, max_iterations, tolerance, relaxation)
        items = [sinkhorn(own, prototypes, weights, *options) for own, weights in one_by_one(patches, patch_weights)]
        return Plan(*map(torch.cat, zip(*items, strict=True)))
    dtype, patches, prototypes = result_dtype(patches), working(patches), working(prototypes)
    a = simplex(patch_weights, patches)[:, None, :]  # [B, 1, N]
    b = simplex(prototype_weights, prototypes)  # [C, M]
    plan = plan_of(cosine_cost(patches, prototypes), a, b, epsilon, max_iterations, tolerance, relaxation)
    return Plan(*(rounded(field, dtype) for field in plan))


def cosine_cost(patches: Tensor, prototypes: Tensor) -> Tensor:
    """C[b, c, n, m] = 1 - cos(patch n of item b, prototype m of category c): [B, N, D], [C, M, D] -> [B, C, N, M]."""
    with full_precision(patches.device):
        return 1 - torch.einsum("bnd,cmd->bcnm", unit_rows(patches), unit_rows(prototypes))


def plan_of(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    relaxation: float | None,
) -> Plan:
    """Solve cost[B, C, N, M] with the marginals a[B, 1, N] and b[C, M], in their dtype."""
    dual = solve(cost, a, b, epsilon, max_iterations, tolerance, relaxation)
    row_sum = a * log_excess(a, dual.f, dual.f_next, epsilon).exp()  # [B, C, N]
    patch_score = (conditional_plan(cost, b, dual, epsilon) * cost).sum(-1)
    patch_cost = row_sum * patch_score
    nothing = dual.marginal_error.isnan()  # an empty sum is no distance
    return Plan(
        distance=patch_cost.sum(-1).masked_fill(nothing, torch.nan),
        patch_cost=patch_cost,
        patch_score=patch_score,
        objective=_dual_value(dual, a, b, row_sum.sum(-1), epsilon, relaxation).masked_fill(nothing, torch.nan),
        iterations=dual.iterations,
        marginal_error=dual.marginal_error,
        f=dual.f,
        g=dual.g,
    )


def sinkhorn_packed(
    patches: Tensor,
    cu_seqlens: Tensor,
    prototypes: Tensor,
    patch_weights: Tensor | None = None,
    prototype_weights: Tensor | None = None,
    epsilon: float = 0.05,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    relaxation: float | None = None,
) -> Plan:
    """Solve `sinkhorn` for items of different lengths: item i owns rows cu_seqlens[i] : cu_seqlens[i + 1] of [T, D]."""
    options = (prototype_weights, epsilon, max_iterations, tolerance, relaxation)
    nothing = sinkhorn(patches[None, :0].expand(0, -1, -1), prototypes, None, *options)  # gives zero items their shapes
    items = [nothing]
    for own in spans(cu_seqlens, patches.shape[0]):
        weights = None if patch_weights is None else patch_weights[None, own]
        items.append(sinkhorn(patches[None, own], prototypes, weights, *options))
    packed = {"patch_cost", "patch_score", "f"}
    fields = zip(Plan._fields, zip(*items, strict=True), strict=True)
    return Plan(*(pack(parts) if name in packed else torch.cat(parts) for name, parts in fields))


def solve(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    relaxation: float | None,
) -> Potentials:
    """Iterate on problems of any leading shape: cost[..., N, M], row marginal a[..., N], column marginal b[..., M].

    One iteration is a row update, then a column update; each problem freezes after the iteration whose row error is at
    most `tolerance` (0: after exactly max_iterations). A problem with a bad value is NaN and counts zero iterations.

    With a tolerance and exact marginals, iterations may put a leap (`guardcore.reference.acceleration`) in the place of
    the column update. They count like any other; the last one never does.
    """
    log_a, log_b = a.log().unsqueeze(-1), b.log().unsqueeze(-2)
    damping = 1.0 if relaxation is None else relaxation / (relaxation + epsilon)

    def row_update(g: Tensor) -> Tensor:
        return -epsilon * torch.logsumexp(log_b + (g.unsqueeze(-2) - cost) / epsilon, dim=-1)

    def column_update(f: Tensor) -> Tensor:
        log_sum = torch.logsumexp(log_a + (f.unsqueeze(-1) - cost) / epsilon, dim=-2)
        return missing.unsqueeze(-1) - epsilon * damping * log_sum

    missing = torch.where(a.sum(-1) > 0, 0.0, torch.nan).to(cost.dtype)  # no mass, no plan: NaN throughout
    g = missing.unsqueeze(-1).expand(cost.shape[:-2] + cost.shape[-1:])
    leaps = Leaps(b.expand_as(g), max_iterations, tolerance) if tolerance > 0 and relaxation is None else None
    f = f_next = row_update(g)
    iterations = torch.zeros(cost.shape[:-2], dtype=torch.int32, device=cost.device)
    error = torch.full_like(f.sum(-1), torch.nan)
    active = torch.ones_like(iterations, dtype=torch.bool)
    leapt = torch.zeros_like(active)
    for iteration in range(1, max_iterations + 1):
        f = torch.where(active.unsqueeze(-1), f_next, f)
        target = column_update(f)
        if leaps is not None:
            leapt, step = leaps((g - target) / epsilon, iteration)
            target = torch.where(leapt.unsqueeze(-1), g + epsilon * step, target)
        g = torch.where(active.unsqueeze(-1), target, g)
        f_next = row_update(g)
        error = missing + (a * torch.expm1(log_excess(a, f, f_next, epsilon)).abs()).sum(-1)
        iterations = iterations + (active & ~error.isnan())
        active = active & (leapt | (error > tolerance if tolerance > 0 else ~error.isnan()))
        if not bool(active.any()):
            break
    return Potentials(f, g, f_next, iterations, error)


def log_excess(a: Tensor, f: Tensor, f_next: Tensor, epsilon: float) -> Tensor:
    """Log of row sum over a, of the plan before the row update from f to f_next; 0 where a is, lest 0 inf be NaN."""
    return ((f - f_next) / epsilon).masked_fill(a == 0, 0.0)


def conditional_plan(cost: Tensor, b: Tensor, dual: Potentials, epsilon: float) -> Tensor:
    """p(m | n) = softmax_m(log b_m + (g_m - C_nm) / epsilon)[..., N, M]: T_nm / its row sum, also where a_n = 0."""
    return torch.softmax(b.log().unsqueeze(-2) + (dual.g.unsqueeze(-2) - cost) / epsilon, dim=-1)


def unit_rows(rows: Tensor) -> Tensor:
    """Divide rows[..., D] by their Euclidean length; a zero row stays zero, its gradient too; NaN and inf give NaN."""
    largest = rows.detach().abs().amax(-1, keepdim=True)  # scaling first keeps huge and tiny squares in range
    zero = largest == 0
    scaled = rows / largest.masked_fill(zero, 1.0)
    length = scaled.square().sum(-1, keepdim=True).masked_fill(zero, 1.0).sqrt()
    return torch.where(zero, torch.zeros_like(rows), scaled / length)


def simplex(weights: Tensor | None, points: Tensor) -> Tensor:
    """Weights[..., N] over their sum, uniform for None, for points[..., N, D]; negative or no mass gives NaN."""
    if weights is None:
        return points.new_full(points.shape[:-1], 1 / max(points.shape[-2], 1))
    weights = weights.to(points.dtype)
    weights = weights.masked_fill(weights < 0, torch.nan)
    return weights / weights.sum(-1, keepdim=True)


def one_by_one(patches: Tensor, weights: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of one: every item's patches[1, N, D] with its weights[1, N]."""
    places = [slice(i, i + 1) for i in range(len(patches))]
    return ((patches[own], None if weights is None else weights[own]) for own in places)


def spans(cu_seqlens: Tensor, total: int) -> list[slice]:
    """The slice of packed patches that each item owns; ValueError unless the offsets run from 0 to total."""
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != total or offsets != sorted(offsets):
        raise ValueError(f"cu_seqlens must start at 0, not decrease and end at the {total} packed patches")
    return [slice(first, last) for first, last in pairwise(offsets)]


def pack(items: tuple[Tensor, ...]) -> Tensor:
    """Concatenate per-patch results [B_i, C, N_i] of single items (or of none) to [C, T]."""
    return torch.cat([item.transpose(0, 1).flatten(1) for item in items], dim=-1)


def working(tensor: Tensor) -> Tensor:
    """The tensor in the precision that is computed in: float64, but float32 on MPS, which has no other."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def result_dtype(inputs: Tensor) -> torch.dtype:
    """Results are float64 for float64 inputs, else float32."""
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


def rounded(field: Tensor, dtype: torch.dtype) -> Tensor:
    """A result in its dtype; counts stay integers."""
    return field.to(dtype) if field.is_floating_point() else field


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast from halving the products within."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def _dual_value(
    dual: Potentials, a: Tensor, b: Tensor, plan_mass: Tensor, epsilon: float, relaxation: float | None
) -> Tensor:
    """<a, f> + <b, g>, or with a relaxed marginal <a, f> + rho <b, 1 - exp(-g / rho)> - epsilon (sum T - 1).

    The dual at (f, g), a lower bound of the optimum; its derivative by C at fixed potentials is T. The
    potentials depend on C too: T is the whole derivative at convergence only (envelope theorem).
    """
    rows = (a * dual.f).sum(-1)
    if relaxation is None:  # sum T = 1 after a column update
        return rows + (b * dual.g).sum(-1)
    columns = 0.0 if relaxation == 0 else -relaxation * (b * torch.expm1(-dual.g / relaxation)).sum(-1)
    return rows + columns - epsilon * (plan_mass - 1)
