"""Transport of every item's patches to all prototypes at once: the operator `guardcore::joint_sinkhorn`.

One launch, one program an item: sweeps over a workspace of the item's scaled cosines, then the shares of the groups as
matrix products of the conditional plan with the groups' one-hot matrix. Notation and launch classes: `sweeps`;
definition: `guardcore.reference.joint_sinkhorn`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch import Batch, damping, dense, packed, weights
from .cosine import product_kind, row_scales
from .sweeps import LOG2E, fill, item_span, load_weights, solve, stream_for, total_weight

JointPlan = tuple[Tensor, Tensor, Tensor, Tensor]

# Shares are read out by products of 32 patches x 32 prototypes x 32 groups, more groups in turns; 64 x 64 spills.
READ = {"BR": 32, "BS": 32, "BG": 32}


@triton.jit
def foreign_groups(p_group, M, G, BM: tl.constexpr):
    """0, or NaN if a group id is outside 0 ... G - 1."""
    o_m = tl.arange(0, BM)
    b_group = tl.load(p_group + o_m, mask=o_m < M, other=0)  # [BM]
    foreign = tl.max(((b_group < 0) | (b_group >= G)).to(tl.int32), 0)
    return tl.where(foreign > 0, float("nan"), 0.0)


@triton.jit
def group_shares(
    p_q, p_next, p_g, p_b, b_total, p_group, i_n, i_g, n, M, unit,
    BR: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, BG: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Mass and cost [BR, BG] that patches i_n ... give to groups i_g ... by p(m|n) = b 2^(G + q - l_next)."""
    o_n, o_g = i_n + tl.arange(0, BR), i_g + tl.arange(0, BG)
    m_n = o_n < n
    b_next = tl.load(p_next + o_n, mask=m_n, other=0.0)  # [BR]
    b_mass = tl.zeros([BR, BG], tl.float32)
    b_cost = tl.zeros([BR, BG], tl.float32)
    for i_m in range(0, M, BC):
        o_m = i_m + tl.arange(0, BC)
        m_m = o_m < M
        m_nm = m_n[:, None] & m_m[None, :]
        b_q = tl.load(p_q + o_n.to(tl.int64)[:, None] * BM + o_m[None, :], mask=m_nm, other=0.0)  # [BR, BC]
        b_g = tl.load(p_g + o_m, mask=m_m, other=0.0)  # [BC]
        b_b = load_weights(p_b, o_m, m_m, b_total)  # [BC]
        b_group = tl.load(p_group + o_m, mask=m_m, other=-1)  # [BC]
        b_share = tl.where((b_b > 0.0)[None, :], tl.exp2(b_q + b_g[None, :] - b_next[:, None]) * b_b[None, :], 0.0)
        b_onehot = (b_group[:, None] == o_g[None, :]).to(tl.float32)  # [BC, BG]
        b_mass = tl.dot(b_share, b_onehot, b_mass, input_precision=PRECISION)
        b_cost = tl.dot(b_share * (1.0 - unit * b_q), b_onehot, b_cost, input_precision=PRECISION)
    return b_mass, b_cost


@triton.jit(do_not_specialize=["N", "X", "M", "G", "max_iterations"])
def joint_kernel(
    p_x, p_x_scale, p_y, p_y_scale, p_offsets, p_a, p_b, p_group, p_q, p_l, p_g,
    p_mass, p_cost, p_iterations, p_error,
    N, X, M, G, D, epsilon, max_iterations, tolerance, damping,
    BN: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    BR: tl.constexpr, BS: tl.constexpr, BG: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Solve item i_b against all prototypes over its slice of the workspace, and sum its conditional plan by group."""
    i_b = tl.program_id(0)
    start, n = item_span(p_offsets, i_b, N, PACKED)
    unit = epsilon / LOG2E
    o_m = tl.arange(0, BM)
    m_m = o_m < M
    p_q += start * BM
    p_l += start * 2
    p_g += i_b.to(tl.int64) * BM
    p_a = p_a + start if p_a is not None else p_a
    a_total, b_total = total_weight(p_a, n, BT), total_weight(p_b, M, BM)
    b_b = load_weights(p_b, o_m, m_m, b_total)  # [BM]
    poison = fill(
        p_x, p_x_scale, start, n, X, p_y, p_y_scale, 0, M, M, D, p_q, 1.0 / unit, BN, BC, BM, BD, DOT, PRECISION
    )
    poison += (a_total + b_total) * 0.0 + foreign_groups(p_group, M, G, BM)
    tl.debug_barrier()
    b_g, iterations, error = solve(
        p_q, p_l, p_a, a_total, n, b_b, m_m, poison, max_iterations, tolerance, damping, BT, BM
    )
    tl.store(p_g + o_m, b_g)
    tl.store(p_iterations + i_b, tl.where(poison == 0.0, iterations, 0))
    tl.store(p_error + i_b, error + poison)
    tl.debug_barrier()
    p_next = p_l + iterations % 2 * n
    base = start if PACKED else start * G
    stride = X if PACKED else N
    for i_n in range(0, n, BR):
        for i_g in range(0, G, BG):
            b_mass, b_cost = group_shares(
                p_q, p_next, p_g, p_b, b_total, p_group, i_n, i_g, n, M, unit, BR, BS, BM, BG, PRECISION
            )  # [BR, BG]
            o_n, o_g = i_n + tl.arange(0, BR), i_g + tl.arange(0, BG)
            p_out = base + o_g.to(tl.int64)[None, :] * stride + o_n[:, None]
            m_out = (o_n < n)[:, None] & (o_g < G)[None, :]
            tl.store(p_mass + p_out, b_mass + poison, mask=m_out)
            tl.store(p_cost + p_out, b_cost + poison, mask=m_out)


def joint_sinkhorn(
    patches: Tensor,
    prototypes: Tensor,
    group: Tensor,
    patch_weights: Tensor | None,
    prototype_weights: Tensor | None,
    num_groups: int,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    relaxation: float | None,
) -> JointPlan:
    """Launch `guardcore::joint_sinkhorn`, patches[B, N, D] and prototypes[M, D]: see `guardcore.ops.joint_sinkhorn`."""
    batch = dense(patches)
    bank = (prototypes, group, patch_weights, prototype_weights)
    numbers = (epsilon, max_iterations, tolerance, damping(relaxation, epsilon))
    return _launch(batch, bank, num_groups, numbers, (batch.B, num_groups, batch.N))


def joint_sinkhorn_packed(
    patches: Tensor,
    cu_seqlens: Tensor,
    prototypes: Tensor,
    group: Tensor,
    patch_weights: Tensor | None,
    prototype_weights: Tensor | None,
    num_groups: int,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    relaxation: float | None,
) -> JointPlan:
    """Launch `guardcore::joint_sinkhorn_packed`, patches[T, D]: see `guardcore.ops.joint_sinkhorn_packed`."""
    batch = packed(patches, cu_seqlens)
    bank = (prototypes, group, patch_weights, prototype_weights)
    numbers = (epsilon, max_iterations, tolerance, damping(relaxation, epsilon))
    return _launch(batch, bank, num_groups, numbers, (num_groups, batch.N))


def _launch(
    batch: Batch,
    bank: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    G: int,
    numbers: tuple[float, int, float, float],
    per_patch: tuple[int, ...],
) -> JointPlan:
    """Allocate results and workspace and run the kernel."""
    prototypes, group, patch_weights, prototype_weights = bank
    (M, D), X = prototypes.shape, len(batch.rows)
    stream = stream_for(M, "prototypes")
    floats = {"dtype": torch.float32, "device": prototypes.device}
    mass, cost = torch.empty(per_patch, **floats), torch.empty(per_patch, **floats)
    iterations = torch.empty(batch.B, dtype=torch.int32, device=prototypes.device)
    plan = (mass, cost, iterations, torch.empty(batch.B, **floats))
    if batch.B == 0:
        return plan
    workspace = (torch.empty(shape, **floats) for shape in ((X, stream.width), (X, 2), (batch.B, stream.width)))
    blocks = {"BN": stream.fill_rows, "BC": stream.fill_width, "BT": stream.rows, "BM": stream.width}
    kinds = product_kind(batch.rows, prototypes) | {"PACKED": batch.offsets is not None}
    with torch.cuda.device_of(prototypes):
        rows = prototypes.contiguous()
        inputs = (batch.rows, row_scales(batch.rows), rows, row_scales(rows), batch.offsets)
        inputs = (*inputs, weights(patch_weights), weights(prototype_weights), group.contiguous())
        sizes = (batch.N, X, M, G, D)
        joint_kernel[(batch.B,)](
            *inputs,
            *workspace,
            *plan,
            *sizes,
            *numbers,
            **blocks,
            **READ,
            **kinds,
            num_warps=stream.warps,
            num_stages=2,
        )
    return plan
