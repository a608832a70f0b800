"""What is read off a solved problem: patch scores and the dual value. Notation as in `sweeps`."""

import triton
import triton.language as tl

from .sweeps import LOG2E, row_update


@triton.jit
def shortfall(b_x):
    """1 - exp(-x), by its series where the difference would cancel."""
    b_series = b_x * (1.0 - b_x * (0.5 - b_x * (1.0 / 6.0 - b_x * (1.0 / 24.0))))
    return tl.where(tl.abs(b_x) < 0.03, b_series, 1.0 - tl.exp2(-b_x * LOG2E))


@triton.jit
def dual_value(rows, b_g, b_b, plan_mass, epsilon, relaxation, damping):
    """<a, f> + <b, g>, relaxed <a, f> + rho <b, 1 - exp(-g / rho)> - epsilon (sum T - 1); g[BM], rows = <a, f>."""
    b_ratio = b_g / tl.where(relaxation > 0.0, relaxation, 1.0)
    relaxed = relaxation * tl.sum(b_b * shortfall(b_ratio), 0) - epsilon * (plan_mass - 1.0)
    return rows + tl.where(damping == 1.0, tl.sum(b_b * b_g, 0), relaxed)


@triton.jit
def patch_scores(b_q, b_g, b_b, m_m, unit):
    """sum_m p(m|n) C_nm for rows q[BN, BM], C = 1 - unit q; never below the nearest prototype's C."""
    b_e, b_sum, _ = row_update(b_q, b_g, b_b)
    b_cost = 1.0 - tl.where(m_m[None, :], b_q * unit, 0.0)  # [BN, BM]
    m_b = (b_b > 0.0)[None, :]
    b_score = tl.sum(tl.where(m_b, b_e * b_b[None, :], 0.0) * b_cost, 1) / b_sum  # [BN]
    b_near = tl.min(tl.where(m_b, b_cost, float("inf")), 1)
    return tl.where(b_score < b_near, b_near, b_score)  # keeps NaN
