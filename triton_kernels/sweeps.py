"""Sinkhorn's iteration over a matrix of scaled cosines too large for registers: row tiles stream from a workspace.

Everything is in base-2 logarithms and scaled by 1 / (epsilon ln 2): q = cos / (epsilon ln 2), G = g / (epsilon ln 2),
l_n = log2 sum_m b_m 2^(G_m + q_nm), so that f_n = 1 - epsilon ln 2 l_n. One sweep reads q once: it makes the rows exact
under G, and returns the column sums that the next G needs and the row error of the plan before it.

A row is shifted by its own maximum, so it can't underflow. A column can, where a prototype is far from every patch;
then its logarithmic sum is taken with the column's own maximum, in a second pass of that sweep only.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .cosine import cosine_tile
from .marginals import load_weights

LOG2E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(1e-31)  # (least row sum) x (least column sum): terms lost below 2^-126 stay under 1e-7 of the sums


class Stream(NamedTuple):
    """How a workspace of `width` columns is filled by [fill_rows, fill_width] products and swept by `rows`."""

    width: int
    rows: int
    fill_rows: int
    fill_width: int
    warps: int


# A swept tile is 8192 elements, 32 registers a thread at 8 warps: with exponentials and column sums 190 to 250 of 255.
# Half of it is no gain: ptxas then aims at 128 and spills on some device. Fills of 64 x 64 spill on sm_80 in fp32, of
# 128 x 64 on sm_100 and sm_120, too. Compiled by tests/triton/test_offline_compile.py for five devices, timed on none.
STREAMS = (
    Stream(width=16, rows=512, fill_rows=128, fill_width=16, warps=8),
    Stream(width=32, rows=256, fill_rows=128, fill_width=32, warps=8),
    Stream(width=64, rows=128, fill_rows=64, fill_width=32, warps=8),
    Stream(width=128, rows=64, fill_rows=64, fill_width=32, warps=8),
    Stream(width=256, rows=32, fill_rows=64, fill_width=32, warps=8),
    Stream(width=512, rows=16, fill_rows=64, fill_width=32, warps=8),
    Stream(width=1024, rows=8, fill_rows=64, fill_width=32, warps=8),
)


@triton.jit
def fill(
    p_x, p_x_scale, start, n, X, p_y, p_y_scale, first, M, Y, D, p_q, scale,
    BN: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write q[n, BM] = scale x cosines, -inf in columns beyond M."""
    M_blocks = tl.cdiv(M, BC) * BC  # known at run time only: a constant loop would be unrolled, which spills on gfx942
    for i_n in range(0, n, BN):
        o_n = i_n + tl.arange(0, BN)
        m_n = o_n < n
        p_rows = p_q + o_n.to(tl.int64)[:, None] * BM
        for i_m in range(0, M_blocks, BC):
            o_m = i_m + tl.arange(0, BC)
            m_m = o_m < M
            b_q = cosine_tile(
                p_x, p_x_scale, start + o_n, m_n, X, p_y, p_y_scale, first + o_m, m_m, Y, D, BN, BC, BD, DOT, PRECISION
            )  # [BN, BC]
            b_q = tl.where(m_m[None, :], b_q * scale, float("-inf"))
            tl.store(p_rows + o_m[None, :], b_q, mask=m_n[:, None])
        for i_m in range(M_blocks, BM, BC):
            o_m = i_m + tl.arange(0, BC)
            tl.store(p_rows + o_m[None, :], tl.full([BN, BC], float("-inf"), tl.float32), mask=m_n[:, None])


@triton.jit
def load_rows(p_q, o_n, m_n, BM: tl.constexpr):
    """Rows o_n of the workspace q[n, BM]; zeros where the mask is off."""
    o_m = tl.arange(0, BM)
    return tl.load(p_q + o_n.to(tl.int64)[:, None] * BM + o_m[None, :], mask=m_n[:, None], other=0.0)


@triton.jit
def row_update(b_q, b_g, b_b):
    """2^(q + G - top)[BN, BM], its row sums by the weights b, and l = top + log2 of them; top is the row's maximum."""
    b_z = b_q + b_g[None, :]  # [BN, BM]
    m_b = (b_b > 0.0)[None, :]
    b_top = tl.max(tl.where(m_b, b_z, float("-inf")), 1)  # [BN]
    b_e = tl.exp2(b_z - b_top[:, None])
    b_sum = tl.sum(tl.where(m_b, b_e * b_b[None, :], 0.0), 1)  # [BN]
    return b_e, b_sum, b_top + tl.log2(b_sum)


@triton.jit
def row_error(b_a, b_growth):
    """sum_n a_n |growth_n - 1|; a row without mass counts nothing, however far it grew."""
    return tl.sum(tl.where(b_a == 0.0, 0.0, b_a * tl.abs(b_growth - 1.0)), 0)


@triton.jit
def add_column_terms(b_q, b_l, b_a, b_top, b_sum):
    """Add the terms a_n 2^(q_nm - l_n) of more rows to column sums kept as b_sum x 2^b_top, both [BM]."""
    b_y = b_q + tl.where(b_a > 0.0, tl.log2(b_a) - b_l, float("-inf"))[:, None]  # [BN, BM]
    b_new = tl.maximum(b_top, tl.max(b_y, 0))
    b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_sum = b_sum * tl.exp2(b_top - b_shift) + tl.sum(tl.exp2(b_y - b_shift[None, :]), 0)
    return b_new, b_sum


@triton.jit
def far_column_sums(p_q, p_l, p_a, a_factor, a_sum, n, BT: tl.constexpr, BM: tl.constexpr):
    """log2 sum_n a_n 2^(q_nm - l_n), [BM], safe for columns of any distance."""
    b_top = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    for i_n in range(0, n, BT):
        o_n = i_n + tl.arange(0, BT)
        m_n = o_n < n
        b_q = load_rows(p_q, o_n, m_n, BM)  # [BT, BM]
        b_l = tl.load(p_l + o_n, mask=m_n, other=0.0)  # [BT]
        b_a = load_weights(p_a, o_n, m_n, a_factor, a_sum)  # [BT]
        b_top, b_sum = add_column_terms(b_q, b_l, b_a, b_top, b_sum)
    return b_top + tl.log2(b_sum)


@triton.jit
def sweep(p_q, p_l_old, p_l, p_a, a_factor, a_sum, n, b_g, b_b, m_m, BT: tl.constexpr, BM: tl.constexpr):
    """Write l[n] under G. Return log2 of the column sums under it [BM] and the row error of the plan (l_old, G)."""
    b_column = tl.zeros([BM], tl.float32)
    error = 0.0
    least = float("inf")
    for i_n in range(0, n, BT):
        o_n = i_n + tl.arange(0, BT)
        m_n = o_n < n
        b_q = load_rows(p_q, o_n, m_n, BM)  # [BT, BM]
        b_a = load_weights(p_a, o_n, m_n, a_factor, a_sum)  # [BT]
        b_old = tl.load(p_l_old + o_n, mask=m_n, other=0.0)  # [BT]
        b_e, b_sum, b_l = row_update(b_q, b_g, b_b)
        tl.store(p_l + o_n, b_l, mask=m_n)
        error += row_error(b_a, tl.exp2(b_l - b_old))
        least = tl.minimum(least, tl.min(b_sum, 0))
        b_column += tl.sum(b_e * (b_a / b_sum)[:, None], 0)
    b_known = tl.where(m_m, tl.where(b_column < float("inf"), b_column, 0.0), 1.0)  # NaN counts as underflow, too
    near = least * tl.min(b_known, 0) > FLOOR
    b_log = tl.log2(b_column) - b_g
    tl.debug_barrier()  # l, written by other threads, is read from here on
    if not near:
        b_log = far_column_sums(p_q, p_l, p_a, a_factor, a_sum, n, BT, BM)
    return b_log, error


@triton.jit
def solve_log_domain(
    p_q, p_l, p_a, a_factor, a_sum, n, b_b, m_m, limit, tolerance, damping, BT: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """Iterate on q[n, BM] until the row error is at most `tolerance`, or `limit` times if that is 0.

    Return G[BM], the iterations and the row error. After i of them, row (i + 1) % 2 of p_l[2, n] holds the plan's l and
    row i % 2 the one that the next row update would give: the plan's row sums are a 2^(l_next - l).
    """
    b_g = tl.zeros([BM], tl.float32)
    iterations = 0
    error = 0.0
    going = limit >= 0
    while going:
        p_old, p_new = p_l + (iterations + 1) % 2 * n, p_l + iterations % 2 * n
        b_log, error = sweep(p_q, p_old, p_new, p_a, a_factor, a_sum, n, b_g, b_b, m_m, BT, BM)
        # the first sweep's error means nothing; a NaN error stops the problem at once
        unmet = (iterations == 0) | (error > tolerance) | ((tolerance == 0.0) & (error >= 0.0))
        going = (iterations < limit) & unmet
        b_g = tl.where(going & m_m, -damping * b_log, b_g)
        iterations += going.to(tl.int32)
    return b_g, iterations, error


def stream_for(width: int, what: str) -> Stream:
    """The narrowest class that holds `width` prototypes."""
    for stream in STREAMS:
        if width <= stream.width:
            return stream
    raise ValueError(f"{what}: at most {STREAMS[-1].width} prototypes a problem on CUDA, got {width}")
