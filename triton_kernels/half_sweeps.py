"""Sinkhorn's iteration over K = 2^(q - top) stored as bfloat16: for bfloat16 inputs.

A sweep reads half the bytes of the float32 q and takes no exponential; sums stay float32. Rounding K moves the
potentials by epsilon 2^-8 at most, and less the more rows a column sums: below what rounding the inputs has done to the
costs. The cosines stay in q, from which results are read off, and a problem whose K underflows is solved again.
Notation as in `sweeps`.
"""

import triton
import triton.language as tl

from .marginals import load_weights
from .register_solve import inverse_power
from .sweeps import FLOOR, load_rows, row_error, solve_log_domain


@triton.jit
def store_half(p_q, p_k, p_top, n, BT: tl.constexpr, BM: tl.constexpr):
    """Write top[n], the largest q of a row, and K[n, BM] = 2^(q - top)."""
    o_m = tl.arange(0, BM)
    for i_n in range(0, n, BT):
        o_n = i_n + tl.arange(0, BT)
        m_n = o_n < n
        b_q = load_rows(p_q, o_n, m_n, BM)  # [BT, BM]
        b_top = tl.max(b_q, 1)
        b_k = tl.exp2(b_q - b_top[:, None]).to(tl.bfloat16)
        tl.store(p_k + o_n.to(tl.int64)[:, None] * BM + o_m[None, :], b_k, mask=m_n[:, None])
        tl.store(p_top + o_n, b_top, mask=m_n)


@triton.jit
def sweep_half(p_k, p_top, p_l_old, p_l, p_a, a_factor, a_sum, n, b_bv, BT: tl.constexpr, BM: tl.constexpr):
    """Write l[n] under v. Return the column sums under it [BM], the row error of the plan (l_old, v) and the least row
    sum; b_bv = weights x v.
    """
    o_m = tl.arange(0, BM)
    b_column = tl.zeros([BM], tl.float32)
    error = 0.0
    least = float("inf")
    for i_n in range(0, n, BT):
        o_n = i_n + tl.arange(0, BT)
        m_n = o_n < n
        p_rows = p_k + o_n.to(tl.int64)[:, None] * BM + o_m[None, :]
        b_k = tl.load(p_rows, mask=m_n[:, None], other=1.0).to(tl.float32)  # [BT, BM]
        b_a = load_weights(p_a, o_n, m_n, a_factor, a_sum)  # [BT]
        b_sum = tl.where(m_n, tl.sum(b_k * b_bv[None, :], 1), float("inf"))
        b_l = tl.load(p_top + o_n, mask=m_n, other=0.0) + tl.log2(b_sum)
        b_old = tl.load(p_l_old + o_n, mask=m_n, other=0.0)
        tl.store(p_l + o_n, b_l, mask=m_n)
        error += row_error(b_a, tl.exp2(b_l - b_old))
        least = tl.minimum(least, tl.min(b_sum, 0))
        b_column += tl.sum(b_k * (b_a / b_sum)[:, None], 0)
    tl.debug_barrier()  # l, written by other threads, is read from here on
    return b_column, error, least


@triton.jit
def solve_half(
    p_q, p_k, p_top, p_l, p_a, a_factor, a_sum, n, b_b, m_m, limit, tolerance, damping,
    BT: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """As `sweeps.solve_log_domain`, and whether nothing underflowed: if not, the problem has to be solved from q."""
    store_half(p_q, p_k, p_top, n, BT, BM)
    tl.debug_barrier()
    b_v = tl.full([BM], 1.0, tl.float32)
    iterations = 0
    error = 0.0
    sound = limit >= 0
    going = limit >= 0
    while going:
        p_old, p_new = p_l + (iterations + 1) % 2 * n, p_l + iterations % 2 * n
        b_column, error, least = sweep_half(p_k, p_top, p_old, p_new, p_a, a_factor, a_sum, n, b_b * b_v, BT, BM)
        # what fell below 2^-126 in K stays under 1e-7 of every column sum and row sum; false for NaN and inf
        columns = least * tl.min(tl.where(m_m, b_column, 1.0), 0) > FLOOR
        sound = columns & (least > 1e-29 * tl.max(b_v, 0))
        unmet = (iterations == 0) | (error > tolerance) | (tolerance == 0.0)
        going = (iterations < limit) & sound & unmet
        b_v = tl.where(going & m_m, inverse_power(b_column, damping), b_v)
        iterations += going.to(tl.int32)
    return tl.log2(b_v), iterations, error, sound


@triton.jit
def solve_streamed(
    p_q, p_k, p_top, p_l, p_a, a_factor, a_sum, n, b_b, m_m, limit, tolerance, damping,
    BT: tl.constexpr, BM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Solve q[n, BM], over K in bfloat16 if HALF: see `sweeps.solve_log_domain`."""
    sound = limit < 0
    b_g = tl.zeros([BM], tl.float32)
    iterations = 0
    error = 0.0
    if HALF:
        b_g, iterations, error, sound = solve_half(
            p_q, p_k, p_top, p_l, p_a, a_factor, a_sum, n, b_b, m_m, limit, tolerance, damping, BT, BM
        )
    if not sound:
        b_g, iterations, error = solve_log_domain(
            p_q, p_l, p_a, a_factor, a_sum, n, b_b, m_m, limit, tolerance, damping, BT, BM
        )
    return b_g, iterations, error
