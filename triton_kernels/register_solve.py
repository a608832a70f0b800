"""Sinkhorn's iteration over a tile of scaled cosines that stays in registers. Notation as in `sweeps`."""

import triton
import triton.language as tl

from .sweeps import FLOOR, add_column_terms, row_error, row_update


@triton.jit
def inverse_power(b_t, damping):
    """t^-damping."""
    return tl.where(damping == 1.0, 1.0 / b_t, tl.exp2(-damping * tl.log2(b_t)))


@triton.jit
def iterate_kernel_domain(
    b_q, b_a, m_n, b_b, m_m, limit, tolerance, damping, BM: tl.constexpr
):  # fmt: skip
    """Iterate on K = 2^(q - top) with scalings v = 2^G: no exponential after the first.

    Return G, l, the growth of row sums 2^(l_next - l), iterations, row error, and whether nothing underflowed.
    """
    b_top = tl.max(b_q, 1)  # [BN]
    b_k = tl.exp2(b_q - b_top[:, None])  # [BN, BM]
    b_v = tl.full([BM], 1.0, tl.float32)
    b_sum = tl.sum(b_k * b_b[None, :], 1)  # [BN]
    b_old = b_sum
    iterations = 0
    error = float("inf")
    sound = limit >= 0
    going = limit > 0
    while going:
        b_column = tl.sum(b_k * (b_a / b_sum)[:, None], 0)  # [BM]
        b_v = tl.where(m_m, inverse_power(b_column, damping), 1.0)
        b_old = b_sum
        b_sum = tl.sum(b_k * (b_b * b_v)[None, :], 1)
        error = row_error(b_a, b_sum / b_old)
        iterations += 1
        # what fell below 2^-126 in K stays under 1e-7 of every column sum and row sum; false for NaN and inf
        columns = tl.min(tl.where(m_n, b_old, 1.0), 0) * tl.min(tl.where(m_m, b_column, 1.0), 0) > FLOOR
        rows = tl.min(tl.where(m_n, b_sum, float("inf")), 0) > 1e-29 * tl.max(b_v, 0)
        sound = columns & rows
        going = sound & (iterations < limit) & ((error > tolerance) | (tolerance == 0.0))
    return tl.log2(b_v), b_top + tl.log2(b_old), b_sum / b_old, iterations, error, sound


@triton.jit
def iterate_log_domain(
    b_q, b_a, b_b, m_m, limit, tolerance, damping, BM: tl.constexpr
):  # fmt: skip
    """The same iteration in logarithms, for costs of any spread. Return as above, less the last."""
    b_g = tl.zeros([BM], tl.float32)
    _, _, b_l = row_update(b_q, b_g, b_b)
    b_old = b_l
    b_none = tl.full([BM], float("-inf"), tl.float32)
    iterations = 0
    error = float("inf")
    going = limit > 0
    while going:
        b_large, b_column = add_column_terms(b_q, b_l, b_a, b_none, tl.zeros([BM], tl.float32))
        b_g = tl.where(m_m, -damping * (b_large + tl.log2(b_column)), 0.0)
        b_old = b_l
        _, _, b_l = row_update(b_q, b_g, b_b)
        error = row_error(b_a, tl.exp2(b_l - b_old))
        iterations += 1
        going = (iterations < limit) & ((error > tolerance) | ((tolerance == 0.0) & (error >= 0.0)))
    return b_g, b_old, tl.exp2(b_l - b_old), iterations, error


@triton.jit
def solve_in_registers(
    b_q, b_a, m_n, b_b, m_m, limit, tolerance, damping, BM: tl.constexpr
):  # fmt: skip
    """Solve q[BN, BM]: return G[BM], l[BN], growth[BN], iterations, row error."""
    b_g, b_l, b_growth, iterations, error, sound = iterate_kernel_domain(
        b_q, b_a, m_n, b_b, m_m, limit, tolerance, damping, BM
    )
    if not sound:
        b_g, b_l, b_growth, iterations, error = iterate_log_domain(b_q, b_a, b_b, m_m, limit, tolerance, damping, BM)
    return b_g, b_l, b_growth, iterations, error
