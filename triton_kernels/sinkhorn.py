"""Entropic transport of every item's patches to every category's prototypes: the operator `guardcore::sinkhorn`.

Two kernels, both one launch for the whole batch. A problem of at most 256 patches and 32 prototypes is solved in
registers by one program; a larger one by sweeps over a workspace of its scaled cosines, whose size is bounded by
letting a program take several categories in turn. Definition: `guardcore.reference.sinkhorn`; notation: `sweeps`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch import Batch, damping, dense, packed, weights
from .cosine import cosine_tile, product_kind, row_scales
from .readout import dual_value, patch_scores
from .register_solve import solve_in_registers
from .sweeps import (
    LOG2E,
    fill,
    item_span,
    load_rows,
    load_weights,
    solve,
    stream_for,
    total_weight,
)

Plan = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Tile(NamedTuple):
    """A register-resident problem of at most `rows` patches and `width` prototypes."""

    rows: int
    width: int
    warps: int


# q and K take rows x width / (32 warps) registers each: 32 + 32 in the largest two, which no target spills; 256 x 16 at
# 8 warps does on sm_100. Compiled by tests/triton/test_offline_compile.py for five devices, timed on none so far.
TILES = (
    Tile(rows=64, width=16, warps=4),
    Tile(rows=64, width=32, warps=4),
    Tile(rows=256, width=16, warps=4),
    Tile(rows=256, width=32, warps=8),
)
PROGRAMS = 296  # streaming programs wanted at once: 2 on each of 148 processors (B200; H100 has 132)
WORKSPACE_BYTES = 64 << 20  # beyond this, fewer categories run at once; one category of all items always fits


@triton.jit(do_not_specialize=["N", "X", "M", "C", "max_iterations"])
def register_kernel(
    p_x, p_x_scale, p_y, p_y_scale, p_offsets, p_a, p_b,
    p_distance, p_cost, p_score, p_objective, p_iterations, p_error, p_f, p_g,
    N, X, M, C, D, epsilon, max_iterations, tolerance, relaxation, damping,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Solve item i_b against category i_c in registers; items of more than BN patches are left to `stream_kernel`."""
    i_b, i_c = tl.program_id(0), tl.program_id(1)
    start, n = item_span(p_offsets, i_b, N, PACKED)
    if n > BN:
        return
    unit = epsilon / LOG2E
    i_bc = i_b.to(tl.int64) * C + i_c
    o_n, o_m = tl.arange(0, BN), tl.arange(0, BM)
    m_n, m_m = o_n < n, o_m < M
    p_a = p_a + start if p_a is not None else p_a
    p_b = p_b + i_c * M if p_b is not None else p_b
    a_total, b_total = total_weight(p_a, n, BN), total_weight(p_b, M, BM)
    b_a, b_b = load_weights(p_a, o_n, m_n, a_total), load_weights(p_b, o_m, m_m, b_total)  # [BN], [BM]
    b_q = cosine_tile(
        p_x, p_x_scale, start + o_n, m_n, X, p_y, p_y_scale, i_c * M + o_m, m_m, C * M, D, BN, BM, BD, DOT, PRECISION
    )  # [BN, BM]
    poison = (a_total + b_total + tl.sum(tl.sum(b_q * 0.0, 1), 0)) * 0.0
    b_q = tl.where(m_m[None, :], b_q / unit, float("-inf"))

    b_g, b_l, b_growth, iterations, error = solve_in_registers(
        b_q, b_a, m_n, b_b, m_m, poison, max_iterations, tolerance, damping, BM
    )
    b_score = patch_scores(b_q, b_g, b_b, m_m, unit)  # [BN]
    b_r = tl.where(b_a == 0.0, 0.0, b_a * b_growth)
    b_f = 1.0 - unit * b_l + poison
    b_g *= unit
    o_out = (tl.cast(X, tl.int64) * i_c + start if PACKED else i_bc * N) + o_n
    tl.store(p_cost + o_out, b_r * b_score, mask=m_n)
    tl.store(p_score + o_out, b_score, mask=m_n)
    tl.store(p_f + o_out, b_f, mask=m_n)
    tl.store(p_g + i_bc * M + o_m, b_g, mask=m_m)
    rows = tl.sum(b_a * b_f, 0)
    tl.store(p_distance + i_bc, tl.sum(b_r * b_score, 0) + poison)
    tl.store(p_objective + i_bc, dual_value(rows, b_g, b_b, tl.sum(b_r, 0), epsilon, relaxation, damping) + poison)
    tl.store(p_iterations + i_bc, tl.where(poison == 0.0, iterations, 0))
    tl.store(p_error + i_bc, error + poison)


@triton.jit(do_not_specialize=["N", "X", "M", "C", "max_iterations", "ABOVE"])
def stream_kernel(
    p_x, p_x_scale, p_y, p_y_scale, p_offsets, p_a, p_b, p_q, p_l,
    p_distance, p_cost, p_score, p_objective, p_iterations, p_error, p_f, p_g,
    N, X, M, C, D, epsilon, max_iterations, tolerance, relaxation, damping, ABOVE,
    BN: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Solve item i_b, if it has more than ABOVE patches, against categories i_s, i_s + S, ... over a workspace."""
    i_b, i_s, S = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    start, n = item_span(p_offsets, i_b, N, PACKED)
    if n <= ABOVE:
        return
    unit = epsilon / LOG2E
    o_m = tl.arange(0, BM)
    m_m = o_m < M
    p_q += (i_s.to(tl.int64) * X + start) * BM
    p_l += (i_s.to(tl.int64) * X + start) * 2
    p_a = p_a + start if p_a is not None else p_a
    a_total = total_weight(p_a, n, BT)
    for i_c in range(i_s, C, S):
        i_bc = i_b.to(tl.int64) * C + i_c
        p_w = p_b + i_c * M if p_b is not None else p_b
        b_total = total_weight(p_w, M, BM)
        b_b = load_weights(p_w, o_m, m_m, b_total)  # [BM]
        tl.debug_barrier()  # the last category's workspace is read no more
        poison = fill(
            p_x, p_x_scale, start, n, X, p_y, p_y_scale, i_c * M, M, C * M, D, p_q, 1.0 / unit,
            BN, BC, BM, BD, DOT, PRECISION,
        )  # fmt: skip
        poison += (a_total + b_total) * 0.0
        tl.debug_barrier()
        b_g, iterations, error = solve(
            p_q, p_l, p_a, a_total, n, b_b, m_m, poison, max_iterations, tolerance, damping, BT, BM
        )
        p_plan, p_next = p_l + (iterations + 1) % 2 * n, p_l + iterations % 2 * n
        base = tl.cast(X, tl.int64) * i_c + start if PACKED else i_bc * N
        distance, mass, rows = 0.0, 0.0, 0.0
        for i_n in range(0, n, BT):
            o_n = i_n + tl.arange(0, BT)
            m_n = o_n < n
            b_q = load_rows(p_q, o_n, m_n, BM)  # [BT, BM]
            b_a = load_weights(p_a, o_n, m_n, a_total)  # [BT]
            b_l, b_next = tl.load(p_plan + o_n, mask=m_n, other=0.0), tl.load(p_next + o_n, mask=m_n, other=0.0)  # [BT]
            b_score = patch_scores(b_q, b_g, b_b, m_m, unit)  # [BT]
            b_r = tl.where(b_a == 0.0, 0.0, b_a * tl.exp2(b_next - b_l))
            tl.store(p_cost + base + o_n, b_r * b_score, mask=m_n)
            tl.store(p_score + base + o_n, b_score, mask=m_n)
            tl.store(p_f + base + o_n, 1.0 - unit * b_l + poison, mask=m_n)
            distance += tl.sum(b_r * b_score, 0)
            mass += tl.sum(b_r, 0)
            rows += tl.sum(b_a * (1.0 - unit * b_l), 0)
        b_g *= unit
        tl.store(p_g + i_bc * M + o_m, b_g, mask=m_m)
        tl.store(p_distance + i_bc, distance + poison)
        tl.store(p_objective + i_bc, dual_value(rows, b_g, b_b, mass, epsilon, relaxation, damping) + poison)
        tl.store(p_iterations + i_bc, tl.where(poison == 0.0, iterations, 0))
        tl.store(p_error + i_bc, error + poison)


def sinkhorn(
    patches: Tensor,
    prototypes: Tensor,
    patch_weights: Tensor | None,
    prototype_weights: Tensor | None,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    relaxation: float | None,
) -> Plan:
    """Launch `guardcore::sinkhorn`, patches[B, N, D] and prototypes[C, M, D]: see `guardcore.ops.sinkhorn`."""
    batch = dense(patches)
    per_patch = (batch.B, prototypes.shape[0], batch.N)
    numbers = (epsilon, max_iterations, tolerance, relaxation or 0.0, damping(relaxation, epsilon))
    return _launch(batch, prototypes, patch_weights, prototype_weights, numbers, per_patch)


def sinkhorn_packed(
    patches: Tensor,
    cu_seqlens: Tensor,
    prototypes: Tensor,
    patch_weights: Tensor | None,
    prototype_weights: Tensor | None,
    epsilon: float,
    max_iterations: int,
    tolerance: float,
    relaxation: float | None,
) -> Plan:
    """Launch `guardcore::sinkhorn_packed`, patches[T, D] and cu_seqlens[B + 1]: see `guardcore.ops.sinkhorn_packed`.

    Lengths stay on the device: both kernels run, and each takes the items of its size.
    """
    batch = packed(patches, cu_seqlens)
    per_patch = (prototypes.shape[0], batch.N)
    numbers = (epsilon, max_iterations, tolerance, relaxation or 0.0, damping(relaxation, epsilon))
    return _launch(batch, prototypes, patch_weights, prototype_weights, numbers, per_patch)


def tile_for(rows: int, width: int) -> Tile | None:
    """The smallest register tile for problems of `rows` x `width`, or None."""
    return next((tile for tile in TILES if rows <= tile.rows and width <= tile.width), None)


def categories_at_once(B: int, C: int, rows: int, width: int) -> int:
    """Programs an item: enough to fill the device, as few as the workspace's bound asks."""
    return max(1, min(C, triton.cdiv(PROGRAMS, B), WORKSPACE_BYTES // max(1, rows * width * 4)))


def _launch(
    batch: Batch,
    prototypes: Tensor,
    patch_weights: Tensor | None,
    prototype_weights: Tensor | None,
    numbers: tuple[float, int, float, float, float],
    per_patch: tuple[int, ...],
) -> Plan:
    """Allocate the results and run the kernels that the sizes ask for."""
    C, M, D = prototypes.shape
    bank = prototypes.reshape(C * M, D).contiguous()
    floats = {"dtype": torch.float32, "device": bank.device}
    distance, objective, error = (torch.empty(batch.B, C, **floats) for _ in range(3))
    cost, score, f = (torch.empty(per_patch, **floats) for _ in range(3))
    g = torch.empty(batch.B, C, M, **floats)
    iterations = torch.empty(batch.B, C, dtype=torch.int32, device=bank.device)
    plan = (distance, cost, score, objective, iterations, error, f, g)
    if batch.B * C == 0:
        return plan
    with torch.cuda.device_of(bank):
        inputs = (batch.rows, row_scales(batch.rows), bank, row_scales(bank), batch.offsets)
        inputs = (*inputs, weights(patch_weights), weights(prototype_weights))
        _run_kernels(batch, inputs, plan, (batch.N, len(batch.rows), M, C, D, *numbers))
    return plan


def _run_kernels(batch: Batch, inputs: tuple[Tensor | None, ...], plan: Plan, numbers: tuple[float, ...]) -> None:
    rows, _, bank = inputs[:3]
    X, M, C = numbers[1:4]
    kinds = product_kind(rows, bank) | {"PACKED": batch.offsets is not None}
    tile = tile_for(min(batch.N, TILES[-1].rows) if batch.offsets is not None else batch.N, M)
    if tile is not None:
        shape = {"BN": tile.rows, "BM": tile.width, "num_warps": tile.warps, "num_stages": 2}
        register_kernel[(batch.B, C)](*inputs, *plan, *numbers, **kinds, **shape)
    if tile is None or tile.rows < batch.N:
        above = -1 if tile is None else tile.rows
        stream = stream_for(M, "prototypes")
        S = categories_at_once(batch.B, C, X, stream.width)
        q = torch.empty(S, X, stream.width, dtype=torch.float32, device=rows.device)
        row_logs = torch.empty(S, X, 2, dtype=torch.float32, device=rows.device)
        shape = {"BN": stream.fill_rows, "BC": stream.fill_width, "BT": stream.rows, "BM": stream.width}
        shape |= {"num_warps": stream.warps, "num_stages": 2}
        stream_kernel[(batch.B, S)](*inputs, q, row_logs, *plan, *numbers, above, **kinds, **shape)
