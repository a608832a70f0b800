"""Lower bounds of a problem's statistic that need no iteration: a program whose bound clears its threshold skips them.

Every patch score is a mean of its row's costs, so it is at least the row's minimum. A balanced plan's columns are exact
after every iteration, so its distance is at least sum_m b_m min_n C_nm. The bounds returned hold in exact arithmetic,
and for what the kernels compute: see `rounding_slack` and `rounding_share`.
"""

import triton
import triton.language as tl

from .sweeps import load_rows

# What a launch screens by: nothing, the least patch score, or the distance.
NO_SCREENING, PATCH_SCORE, DISTANCE = 0, 1, 2
BY_DISTANCE = tl.constexpr(DISTANCE)
ROUNDING = tl.constexpr(2.0**-23)


def rounding_slack(D: int, M: int) -> float:
    """Bound of the rounding error of a cost, or of a mean of M costs, from rows of D numbers.

    D products, sums that matrix units truncate after 2^-23 of the largest term (three passes for tf32x3, which itself
    drops 2^-22), lengths summed in fp32, and a dozen operations after them: under 2^-22 for each of D + M + 32 steps,
    since no partial sum exceeds the rows' lengths, 1 each.
    """
    return (D + M + 32) * 2.0**-22


def rounding_share(M: int, epsilon: float, half: bool) -> float:
    """Share of a distance that the solver's own rounding can take off, less the sum over N: the sum over M, exponents
    over epsilon, and for K in bfloat16 one rounding of it in a column's sum and one in a row's.
    """
    return (M + 16 / epsilon) * ROUNDING.value + (2.0**-6 if half else 0.0)


@triton.jit
def column_minimum(b_q, m_n, unit):
    """min_n C_nm, [BM], over rows m_n of q[BN, BM]; inf in columns where q is -inf."""
    return tl.min(tl.where(m_n[:, None], 1.0 - unit * b_q, float("inf")), 0)


@triton.jit
def bound_of(b_least, b_b, n, damping, statistic, slack, share):
    """Bound of the statistic from the column minimums [BM]; a relaxed distance has none."""
    m_b = b_b > 0.0
    nearest = tl.min(tl.where(m_b, b_least, float("inf")), 0)
    carried = tl.sum(tl.where(m_b, b_b * b_least, 0.0), 0) * (1.0 - (share + n * ROUNDING))
    distance = tl.where(damping == 1.0, carried, float("-inf"))
    return tl.where(statistic == BY_DISTANCE, distance, nearest) - slack


@triton.jit
def streamed_column_minimum(p_q, n, unit, BT: tl.constexpr, BM: tl.constexpr):
    """`column_minimum` of a workspace q[n, BM]."""
    b_least = tl.full([BM], float("inf"), tl.float32)
    for i_n in range(0, n, BT):
        o_n = i_n + tl.arange(0, BT)
        m_n = o_n < n
        b_least = tl.minimum(b_least, column_minimum(load_rows(p_q, o_n, m_n, BM), m_n, unit))
    return b_least


@triton.jit
def screen(p_threshold, p_cleared, p_bound, i_c, i_bc, bound, poison):
    """Write the bound and whether it clears its category. Return NaN if so, else poison: cleared pairs have no plan."""
    bound += poison
    cleared = bound > tl.load(p_threshold + i_c)
    tl.store(p_bound + i_bc, bound)
    tl.store(p_cleared + i_bc, cleared.to(tl.uint8))
    return tl.where(cleared, float("nan"), poison)
