"""The kernels of the Numba contender; apart from it because they need Numba to be defined.

Per problem a contiguous row-major K, exponentials by polynomial (so that LLVM vectorizes them), one pass over K an
iteration that gives the row error for free, four rows at a time, and a stop of its own. fastmath throughout.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

f4, i4 = np.float32, np.int32
jit = functools.partial(numba.njit, fastmath=True, error_model="numpy")


@jit()
def exponentials(x: Any) -> None:
    """x = exp(x) in place: 2^whole times a polynomial of the rest."""
    bits = x.view(i4)
    for i in range(x.size):
        y = max(x[i] * f4(1.44269504), f4(-126.0))
        whole = np.floor(y + f4(0.5))
        r = y - whole
        p = (f4(1.32764606e-3) * r + f4(9.67554124e-3)) * r + f4(5.55071331e-2)
        x[i] = ((p * r + f4(2.40221197e-1)) * r + f4(6.93146967e-1)) * r + f4(1.00000007)
        bits[i] += i4(whole) << i4(23)


@jit()
def gather(cosine: Any, first: int, K: Any, scale: Any) -> None:
    """K = exp(cosine * scale) over each row's maximum, of the category whose columns start at `first`."""
    N, M = K.shape
    for n in range(N):
        row = cosine[n, first : first + M]
        best = row.max()
        for m in range(M):
            K[n, m] = (row[m] - best) * scale
    exponentials(K.reshape(N * M))


@jit()
def sweep(K: Any, u: Any, v: Any, columns: Any) -> Any:
    """u = a / (K v) and columns = K^T u in one pass; return the L1 row error before it."""
    N, M = K.shape
    a, error = f4(1.0 / N), f4(0)
    whole = N // 4 * 4
    for n in range(0, whole, 4):
        s0, s1, s2, s3 = f4(0), f4(0), f4(0), f4(0)
        for m in range(M):
            s0 += K[n, m] * v[m]
            s1 += K[n + 1, m] * v[m]
            s2 += K[n + 2, m] * v[m]
            s3 += K[n + 3, m] * v[m]
        error += abs(u[n] * s0 - a) + abs(u[n + 1] * s1 - a) + abs(u[n + 2] * s2 - a) + abs(u[n + 3] * s3 - a)
        u0, u1, u2, u3 = a / s0, a / s1, a / s2, a / s3
        u[n], u[n + 1], u[n + 2], u[n + 3] = u0, u1, u2, u3
        for m in range(M):
            columns[m] += u0 * K[n, m] + u1 * K[n + 1, m] + u2 * K[n + 2, m] + u3 * K[n + 3, m]
    for n in range(whole, N):
        s0 = f4(0)
        for m in range(M):
            s0 += K[n, m] * v[m]
        error += abs(u[n] * s0 - a)
        u[n] = a / s0
        for m in range(M):
            columns[m] += u[n] * K[n, m]
    return error


@jit()
def solve_one(K: Any, u: Any, v: Any, iterations: int, tolerance: float) -> None:
    """Iterate; u and v are the plan's when it returns."""
    M = K.shape[1]
    columns, before = np.empty(M, f4), np.empty_like(u)
    for done in range(iterations + 1):
        if done == iterations and tolerance == 0:
            break
        before[:], columns[:] = u, 0
        error = sweep(K, u, v, columns)
        if tolerance > 0 and done > 0 and (error <= tolerance or done == iterations):
            u[:] = before
            break
        for m in range(M):
            v[m] = f4(1.0 / M) / columns[m]


@jit(parallel=True)
def solve_all(cosine, starts, C, M, scale, iterations, tolerance, group, cost, rows, shares, costs):  # type: ignore[no-untyped-def]
    """Solve problem b, c for every image and category; of a joint problem also the groups' shares and costs."""
    B = starts.size - 1
    for problem in numba.prange(B * C):
        b, c = problem // C, problem % C
        start, end = starts[b], starts[b + 1]
        own, first = cosine[start:end], c * M
        K, u, v = np.empty((end - start, M), f4), np.zeros(end - start, f4), np.full(M, f4(1.0 / M))
        gather(own, first, K, scale)
        solve_one(K, u, v, iterations, tolerance)
        total = f4(0)
        for n in range(end - start):
            mass, moved = f4(0), f4(0)
            for m in range(M):
                part = K[n, m] * v[m]
                mass += part
                moved += part * (f4(1) - own[n, first + m])
                K[n, m] = part
            rows[c, start + n] = u[n] * mass
            total += u[n] * moved
            if group.size > 0:
                for m in range(M):
                    share = K[n, m] / mass
                    shares[group[m], start + n] += share
                    costs[group[m], start + n] += share * (f4(1) - own[n, m])
        cost[b, c] = total
