"""The two kernels of `guardcore::sinkhorn` and `guardcore::sinkhorn_screen`: a problem in registers, or streamed.

Screening is a number at run time, not a variant: a pair that is not cleared runs the very code that solves it without.
Notation: `sweeps`.
"""

import triton
import triton.language as tl

from .cosine import cosine_tile
from .half_sweeps import solve_streamed
from .marginals import broken_rows, item_span, load_weights, simplex
from .readout import dual_value, patch_scores
from .register_solve import solve_in_registers
from .screening import bound_of, column_minimum, screen, streamed_column_minimum
from .sweeps import LOG2E, fill, load_rows

UNSPECIALIZED = ["N", "X", "M", "C", "max_iterations", "statistic", "ABOVE"]


@triton.jit(do_not_specialize=UNSPECIALIZED[:-1])
def register_kernel(
    p_x, p_x_scale, p_y, p_y_scale, p_offsets, p_a, p_b, p_threshold, p_cleared, p_bound,
    p_distance, p_cost, p_score, p_objective, p_iterations, p_error, p_f, p_g,
    N, X, M, C, D, epsilon, max_iterations, tolerance, relaxation, damping, statistic, slack, share,
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
    a_factor, a_sum = simplex(p_a, n, BN)
    b_factor, b_sum = simplex(p_b, M, BM)
    b_a = load_weights(p_a, o_n, m_n, a_factor, a_sum)  # [BN]
    b_b = load_weights(p_b, o_m, m_m, b_factor, b_sum)  # [BM]
    poison = broken_rows(p_x_scale + X + start, n, BN) + broken_rows(p_y_scale + C * M + i_c * M, M, BM)
    poison += (a_sum + b_sum) * 0.0
    b_q = cosine_tile(
        p_x, p_x_scale, start + o_n, m_n, X, p_y, p_y_scale, i_c * M + o_m, m_m, C * M, D, BN, BM, BD, DOT, PRECISION
    )  # [BN, BM]
    b_q = tl.where(m_m[None, :], b_q / unit, float("-inf"))
    if statistic > 0:
        bound = bound_of(column_minimum(b_q, m_n, unit), b_b, n, damping, statistic, slack, share)
        poison = screen(p_threshold, p_cleared, p_bound, i_c, i_bc, bound, poison)

    limit = tl.where(poison == 0.0, max_iterations, 0)
    b_g, b_l, b_growth, iterations, error = solve_in_registers(b_q, b_a, m_n, b_b, m_m, limit, tolerance, damping, BM)
    b_score = patch_scores(b_q, b_g, b_b, m_m, unit) + poison  # [BN]
    b_r = tl.where(b_a == 0.0, 0.0, b_a * b_growth)
    b_f = 1.0 - unit * b_l + poison
    b_g = b_g * unit + poison
    o_out = (tl.cast(X, tl.int64) * i_c + start if PACKED else i_bc * N) + o_n
    tl.store(p_cost + o_out, b_r * b_score, mask=m_n)
    tl.store(p_score + o_out, b_score, mask=m_n)
    tl.store(p_f + o_out, b_f, mask=m_n)
    tl.store(p_g + i_bc * M + o_m, b_g, mask=m_m)
    rows = tl.sum(b_a * b_f, 0)
    tl.store(p_distance + i_bc, tl.sum(b_r * b_score, 0) + poison)
    tl.store(p_objective + i_bc, dual_value(rows, b_g, b_b, tl.sum(b_r, 0), epsilon, relaxation, damping) + poison)
    tl.store(p_iterations + i_bc, iterations)
    tl.store(p_error + i_bc, error + poison)


@triton.jit
def write_plan(
    p_q, p_l, p_a, a_factor, a_sum, b_g, b_b, m_m, iterations, poison, unit, n, base, p_cost, p_score, p_f,
    BT: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Write a streamed problem's patch costs, scores and f from `base`. Return the distance, sum T and <a, f>."""
    p_plan, p_next = p_l + (iterations + 1) % 2 * n, p_l + iterations % 2 * n
    distance, mass, rows = 0.0, 0.0, 0.0
    for i_n in range(0, n, BT):
        o_n = i_n + tl.arange(0, BT)
        m_n = o_n < n
        b_q = load_rows(p_q, o_n, m_n, BM)  # [BT, BM]
        b_a = load_weights(p_a, o_n, m_n, a_factor, a_sum)  # [BT]
        b_l, b_next = tl.load(p_plan + o_n, mask=m_n, other=0.0), tl.load(p_next + o_n, mask=m_n, other=0.0)  # [BT]
        b_score = patch_scores(b_q, b_g, b_b, m_m, unit) + poison  # [BT]
        b_r = tl.where(b_a == 0.0, 0.0, b_a * tl.exp2(b_next - b_l))
        tl.store(p_cost + base + o_n, b_r * b_score, mask=m_n)
        tl.store(p_score + base + o_n, b_score, mask=m_n)
        tl.store(p_f + base + o_n, 1.0 - unit * b_l + poison, mask=m_n)
        distance += tl.sum(b_r * b_score, 0)
        mass += tl.sum(b_r, 0)
        rows += tl.sum(b_a * (1.0 - unit * b_l), 0)
    return distance, mass, rows


@triton.jit(do_not_specialize=UNSPECIALIZED)
def stream_kernel(
    p_x, p_x_scale, p_y, p_y_scale, p_offsets, p_a, p_b, p_threshold, p_cleared, p_bound, p_q, p_k, p_top, p_l,
    p_distance, p_cost, p_score, p_objective, p_iterations, p_error, p_f, p_g,
    N, X, M, C, D, epsilon, max_iterations, tolerance, relaxation, damping, statistic, slack, share, ABOVE,
    BN: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Solve item i_b, if it has more than ABOVE patches, against categories i_s, i_s + S, ... over a workspace."""
    i_b, i_s, S = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    start, n = item_span(p_offsets, i_b, N, PACKED)
    if n <= ABOVE:
        return
    unit = epsilon / LOG2E
    o_m = tl.arange(0, BM)
    m_m = o_m < M
    row = i_s.to(tl.int64) * X + start
    p_q, p_k, p_top, p_l = p_q + row * BM, p_k + row * BM, p_top + row, p_l + row * 2
    p_a = p_a + start if p_a is not None else p_a
    a_factor, a_sum = simplex(p_a, n, BT)
    broken = broken_rows(p_x_scale + X + start, n, BT) + a_sum * 0.0
    for i_c in range(i_s, C, S):
        i_bc = i_b.to(tl.int64) * C + i_c
        p_w = p_b + i_c * M if p_b is not None else p_b
        b_factor, b_sum = simplex(p_w, M, BM)
        b_b = load_weights(p_w, o_m, m_m, b_factor, b_sum)  # [BM]
        poison = broken + b_sum * 0.0 + broken_rows(p_y_scale + C * M + i_c * M, M, BM)
        tl.debug_barrier()  # the last category's workspace is read no more
        fill(
            p_x, p_x_scale, start, n, X, p_y, p_y_scale, i_c * M, M, C * M, D, p_q, 1.0 / unit,
            BN, BC, BM, BD, DOT, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()
        if statistic > 0:
            bound = bound_of(streamed_column_minimum(p_q, n, unit, BT, BM), b_b, n, damping, statistic, slack, share)
            poison = screen(p_threshold, p_cleared, p_bound, i_c, i_bc, bound, poison)
        sound = poison == 0.0
        b_g, iterations, error = solve_streamed(
            p_q, p_k, p_top, p_l, p_a, a_factor, a_sum, tl.where(sound, n, 0), b_b, m_m,
            tl.where(sound, max_iterations, 0), tolerance, damping, BT, BM, HALF,
        )  # fmt: skip
        base = tl.cast(X, tl.int64) * i_c + start if PACKED else i_bc * N
        distance, mass, rows = write_plan(
            p_q, p_l, p_a, a_factor, a_sum, b_g, b_b, m_m, iterations, poison, unit, n, base, p_cost, p_score, p_f,
            BT, BM,
        )  # fmt: skip
        b_g = b_g * unit + poison
        tl.store(p_g + i_bc * M + o_m, b_g, mask=m_m)
        tl.store(p_distance + i_bc, distance + poison)
        tl.store(p_objective + i_bc, dual_value(rows, b_g, b_b, mass, epsilon, relaxation, damping) + poison)
        tl.store(p_iterations + i_bc, iterations)
        tl.store(p_error + i_bc, error + poison)
