"""Transport of every item's patches to all prototypes at once: the operator `guardcore::joint_sinkhorn`.

A fixed sequence of launches: the rows' lengths; the scaled cosines q of all patches and prototypes, one matrix product
over the whole device; the solution, one program an item sweeping over its q; and the shares of the groups, products of
the conditional plan with the groups' one-hot matrix. Notation and launch classes: `sweeps`; definition:
`guardcore.reference.joint_sinkhorn`; why one problem is not split over programs: docs/decisions/0011.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch import Batch, batch_of, damping, rows, shape_of, streams_half, weights
from .cosine import cosine_tile, fp32_precision, product_kind, write_row_scales
from .half_sweeps import solve_streamed
from .marginals import broken_rows, item_span, load_weights, simplex
from .sweeps import LOG2E, stream_for
from .workspace import carve, numel

JointPlan = tuple[Tensor, ...]

# Tiles of the cosines, and of the shares: 32 patches x 32 prototypes x 32 groups, more groups in turns.
COSINES = {"BN": 64, "BC": 64}
READ = {"BR": 32, "BS": 32, "BG": 32}
READ_WEIGHTS = 64  # prototype weights summed at a time
WARPS = 4
# The sweeping kernel has few programs, so each takes half a processor. At 8 warps ptxas keeps to 128 registers
# of 255 and spills a dozen bytes.
SOLVE_WARPS = 16
READERS = 592  # programs wanted for the shares: 4 on each of 148 processors


@triton.jit(do_not_specialize=["X", "M"])
def cosine_kernel(
    p_x, p_x_scale, p_y, p_y_scale, p_q, X, M, D, scale,
    BN: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q[X, BM] = scale x cosines, -inf in columns beyond M, by tiles [BN, BC]."""
    i_t = tl.program_id(0)
    columns: tl.constexpr = BM // BC
    o_n = (i_t // columns).to(tl.int64) * BN + tl.arange(0, BN)
    o_m = i_t % columns * BC + tl.arange(0, BC)
    m_n, m_m = o_n < X, o_m < M
    b_q = tl.full([BN, BC], float("-inf"), tl.float32)
    if i_t % columns * BC < M:
        b_cosine = cosine_tile(p_x, p_x_scale, o_n, m_n, X, p_y, p_y_scale, o_m, m_m, M, D, BN, BC, BD, DOT, PRECISION)
        b_q = tl.where(m_m[None, :], b_cosine * scale, float("-inf"))
    tl.store(p_q + o_n[:, None] * BM + o_m[None, :], b_q, mask=m_n[:, None])


@triton.jit
def foreign_groups(p_group, M, G, BM: tl.constexpr):
    """0, or NaN if a group id is outside 0 ... G - 1."""
    o_m = tl.arange(0, BM)
    b_group = tl.load(p_group + o_m, mask=o_m < M, other=0)  # [BM]
    foreign = tl.max(((b_group < 0) | (b_group >= G)).to(tl.int32), 0)
    return tl.where(foreign > 0, float("nan"), 0.0)


@triton.jit
def group_shares(
    p_q, p_next, p_g, p_b, b_factor, b_sum, p_group, i_n, i_g, n, M, unit,
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
        b_b = load_weights(p_b, o_m, m_m, b_factor, b_sum)  # [BC]
        b_group = tl.load(p_group + o_m, mask=m_m, other=-1)  # [BC]
        b_share = tl.where((b_b > 0.0)[None, :], tl.exp2(b_q + b_g[None, :] - b_next[:, None]) * b_b[None, :], 0.0)
        b_onehot = (b_group[:, None] == o_g[None, :]).to(tl.float32)  # [BC, BG]
        b_mass = tl.dot(b_share, b_onehot, b_mass, input_precision=PRECISION)
        b_cost = tl.dot(b_share * (1.0 - unit * b_q), b_onehot, b_cost, input_precision=PRECISION)
    return b_mass, b_cost


@triton.jit(do_not_specialize=["N", "X", "M", "G", "max_iterations"])
def joint_kernel(
    p_x_scale, p_y_scale, p_offsets, p_a, p_b, p_group, p_q, p_k, p_top, p_l, p_g, p_iterations, p_error,
    N, X, M, G, max_iterations, tolerance, damping,
    BT: tl.constexpr, BM: tl.constexpr, PACKED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Solve item i_b over its rows of q; leave its potentials, p_g[B, BM] and p_l, to `share_kernel`."""
    i_b = tl.program_id(0)
    start, n = item_span(p_offsets, i_b, N, PACKED)
    o_m = tl.arange(0, BM)
    m_m = o_m < M
    p_a = p_a + start if p_a is not None else p_a
    a_factor, a_sum = simplex(p_a, n, BT)
    b_factor, b_sum = simplex(p_b, M, BM)
    b_b = load_weights(p_b, o_m, m_m, b_factor, b_sum)  # [BM]
    poison = broken_rows(p_x_scale + X + start, n, BT) + broken_rows(p_y_scale + M, M, BM)
    poison += (a_sum + b_sum) * 0.0 + foreign_groups(p_group, M, G, BM)
    sound = poison == 0.0
    b_g, iterations, error = solve_streamed(
        p_q + start * BM, p_k + start * BM, p_top + start, p_l + start * 2, p_a, a_factor, a_sum,
        tl.where(sound, n, 0), b_b, m_m, tl.where(sound, max_iterations, 0), tolerance, damping, BT, BM, HALF,
    )  # fmt: skip
    tl.store(p_g + i_b.to(tl.int64) * BM + o_m, b_g)
    tl.store(p_iterations + i_b, iterations)
    tl.store(p_error + i_b, error + poison)


@triton.jit(do_not_specialize=["N", "X", "M", "G"])
def share_kernel(
    p_offsets, p_b, p_group, p_q, p_l, p_g, p_iterations, p_error, p_mass, p_cost, N, X, M, G, epsilon,
    BR: tl.constexpr, BS: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
    PRECISION: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Sum the conditional plan of item i_b by group, for groups i_g ... and patches i_r, i_r + R, ... by BR."""
    i_b, i_r, R, i_g = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2) * BG
    start, n = item_span(p_offsets, i_b, N, PACKED)
    p_q += start * BM
    b_factor, b_sum = simplex(p_b, M, BT)
    p_next = p_l + start * 2 + tl.load(p_iterations + i_b) % 2 * n
    poison = tl.load(p_error + i_b) * 0.0
    base = start if PACKED else start * G
    stride = X if PACKED else N
    o_g = i_g + tl.arange(0, BG)
    for i_n in range(i_r * BR, n, R * BR):
        o_n = i_n + tl.arange(0, BR)
        b_mass, b_cost = group_shares(
            p_q, p_next, p_g + i_b.to(tl.int64) * BM, p_b, b_factor, b_sum, p_group, i_n, i_g, n, M, epsilon / LOG2E,
            BR, BS, BM, BG, PRECISION,
        )  # fmt: skip
        p_out = base + o_g.to(tl.int64)[None, :] * stride + o_n[:, None]  # [BR, BG]
        m_out = (o_n < n)[:, None] & (o_g < G)[None, :]
        tl.store(p_mass + p_out, b_mass + poison, mask=m_out)
        tl.store(p_cost + p_out, b_cost + poison, mask=m_out)


def joint_sinkhorn(patches: Tensor, prototypes: Tensor, group: Tensor, *rest: Any) -> JointPlan:
    """Launch `guardcore::joint_sinkhorn`, patches[B, N, D] and prototypes[M, D]: see `guardcore.ops.joint_sinkhorn`."""
    B, N, _ = patches.shape
    return _with_workspace(patches, None, prototypes, group, rest, B, (B, rest[2], N))


def joint_sinkhorn_packed(
    patches: Tensor, cu_seqlens: Tensor, prototypes: Tensor, group: Tensor, *rest: Any
) -> JointPlan:
    """Launch `guardcore::joint_sinkhorn_packed`, patches[T, D]: see `guardcore.ops.joint_sinkhorn_packed`."""
    B, T = len(cu_seqlens) - 1, len(patches)
    return _with_workspace(patches, cu_seqlens, prototypes, group, rest, B, (rest[2], T))


def joint_sinkhorn_out(patches: Tensor, prototypes: Tensor, group: Tensor, *rest: Any) -> None:
    """`joint_sinkhorn` into the operator's results and a workspace, which come last: allocates and awaits nothing."""
    _run(batch_of(patches, None), prototypes, group, rest[:7], rest[7:11], rest[11])


def joint_sinkhorn_packed_out(
    patches: Tensor, cu_seqlens: Tensor, prototypes: Tensor, group: Tensor, *rest: Any
) -> None:
    """`joint_sinkhorn_packed` as `joint_sinkhorn_out`."""
    _run(batch_of(patches, cu_seqlens), prototypes, group, rest[:7], rest[7:11], rest[11])


def workspace_numel(
    patches: Tensor,
    prototypes: Tensor,
    num_groups: int,  # noqa: ARG001 - what every workspace may depend on
    cu_seqlens: Tensor | None = None,
) -> int:
    """Float32 numbers that a launch on tensors of these shapes and dtypes needs as its workspace."""
    return numel(_sections(shape_of(patches, cu_seqlens), prototypes))


def _with_workspace(
    patches: Tensor,
    cu_seqlens: Tensor | None,
    prototypes: Tensor,
    group: Tensor,
    rest: tuple[Any, ...],
    B: int,
    per_patch: tuple[int, ...],
) -> JointPlan:
    """Run into results and a workspace of its own; rest: two weights and the numbers."""
    batch, prototypes = batch_of(rows(patches), cu_seqlens), rows(prototypes)
    shapes = (per_patch, per_patch, (B,), (B,), (numel(_sections(batch, prototypes)),))
    dtypes = (torch.int32 if i == 2 else torch.float32 for i in range(5))
    *plan, workspace = (torch.empty(s, dtype=d, device=patches.device) for s, d in zip(shapes, dtypes, strict=True))
    numbers = (weights(rest[0]), weights(rest[1]), *rest[2:])
    _run(batch, prototypes, group.to(torch.int64).contiguous(), numbers, tuple(plan), workspace)
    return tuple(plan)


def _sections(batch: Batch, prototypes: Tensor) -> tuple[int, ...]:
    """Sizes of the workspace's sections: scales of both inputs, q, K, its tops, row logarithms, potentials."""
    X, M = len(batch.rows), len(prototypes)
    width, half = stream_for(M, "prototypes").width, streams_half(batch, prototypes)
    return (2 * X, 2 * M, X * width, X * width // 2 if half else 0, X if half else 0, 2 * X, batch.B * width)


def _run(
    batch: Batch, prototypes: Tensor, group: Tensor, rest: tuple[Any, ...], plan: JointPlan, workspace: Tensor
) -> None:
    """Launch the kernels; rest: two weights, the number of groups, and the options."""
    if batch.B == 0:
        return
    a, b, G, epsilon, max_iterations, tolerance, relaxation = rest
    M, X = len(prototypes), len(batch.rows)
    x_scale, y_scale, q, k, tops, logs, g = carve(workspace, _sections(batch, prototypes))
    stream, kind = stream_for(M, "prototypes"), {"PACKED": batch.offsets is not None}
    blocks = {"BT": stream.rows, "BM": stream.width}
    mass, cost, iterations, error = plan
    with torch.cuda.device_of(prototypes):
        write_row_scales(batch.rows, x_scale, prototypes, y_scale)
        _fill(batch.rows, x_scale, prototypes, y_scale, q, 1.4426950408889634 / epsilon, stream.width)
        joint_kernel[(batch.B,)](
            x_scale, y_scale, batch.offsets, a, b, group, q, k.view(torch.bfloat16), tops, logs, g, iterations, error,
            batch.N, X, M, G, max_iterations, tolerance, damping(relaxation, epsilon),
            **kind, **blocks, HALF=len(k) > 0, num_warps=SOLVE_WARPS,
        )  # fmt: skip
        readers = max(1, min(triton.cdiv(batch.N, READ["BR"]), triton.cdiv(READERS, batch.B)))
        share_kernel[(batch.B, readers, triton.cdiv(G, READ["BG"]))](
            batch.offsets, b, group, q, logs, g, iterations, error, mass, cost, batch.N, X, M, G, epsilon,
            **kind, **READ, BT=READ_WEIGHTS, BM=stream.width, PRECISION=fp32_precision(), num_warps=WARPS, num_stages=2,
        )  # fmt: skip


def _fill(x: Tensor, x_scale: Tensor, y: Tensor, y_scale: Tensor, q: Tensor, scale: float, width: int) -> None:
    (X, D), M = x.shape, len(y)
    kinds = product_kind(x, y) | COSINES | {"BC": min(COSINES["BC"], width), "BM": width}
    tiles = triton.cdiv(X, COSINES["BN"]) * (width // kinds["BC"])
    if tiles > 0:
        cosine_kernel[(tiles,)](
            x, x_scale, y, y_scale, q, X, M, D, scale, **kinds, num_warps=WARPS, num_stages=2
        )  # fmt: skip
