"""How many threads everybody gets."""

from __future__ import annotations

import os

import torch


def limit(threads: int) -> None:
    """Give the process that many cores, and every library that many threads.

    The cores bind those that look for themselves, JAX among them; to be called before they start their threads.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < threads:
        raise SystemExit(f"--threads {threads}: this process may use {len(allowed)} core(s)")
    os.sched_setaffinity(0, allowed[:threads])
    torch.set_num_threads(threads)
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
