"""Nobody is timed whose attention is off: every contender against the float64 definition, on the tensors to be timed.

Rows at the beginning, in the middle and at the end of a long query are compared, of all items and heads. Two bounds:
the largest error, relative to the largest number of the truth; and the root mean square of the error, relative to what
the rule changes. A contender that ignores the rule passes the first in bfloat16, never the second.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.attention_cases import AttentionCase, AttentionTask
from bench.rivals.attention import AttentionContender, Run
from guardcore import reference

ROWS = 32  # of a compared block
LARGEST = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHARE = 1 / 3  # of the rule's effect that an error may reach; bfloat16 rounding reaches 0.12 of the weakest


@dataclass(frozen=True)
class Verdict:
    """Largest error over the truth's largest number; its size over the rule's effect; the call to time, or why not."""

    error: float
    of_effect: float
    run: Run | None
    reason: str = ""


class AttentionGate:
    """The truth of one case in one precision, computed once for each rule and span."""

    def __init__(self, case: AttentionCase, dtype: torch.dtype) -> None:
        self.case, self.dtype, self.tensors = case, dtype, case.tensors(dtype)

    def task(self, rule: str, span: str) -> AttentionTask:
        """The call that is timed."""
        return self.case.task(self.tensors, rule, span)

    def judge(self, contender: AttentionContender, rule: str, span: str) -> Verdict:
        """Prepare a contender, run it once and compare."""
        task = self.task(rule, span)
        if reason := contender.why_not(task):
            return Verdict(float("nan"), float("nan"), None, reason)
        run = contender.prepare(task)
        got = self.rows(run().reshape(task.query.shape)).double()
        truth, plain = self.truth(rule, span), self.truth("zero", "none")
        error = float((got - truth).abs().max() / truth.abs().max())
        of_effect = size(got - truth) / size(truth - plain) if rule != "zero" else 0.0
        if not error <= LARGEST[self.dtype]:
            return Verdict(error, of_effect, None, f"off by {error:.0e}, gate {LARGEST[self.dtype]:.0e}")
        if not of_effect <= SHARE:
            return Verdict(error, of_effect, None, f"error is {of_effect:.2g} of the rule's effect, gate {SHARE:.2g}")
        return Verdict(error, of_effect, run)

    @functools.lru_cache(maxsize=16)  # noqa: B019 - a gate lives as long as its case
    def truth(self, rule: str, span: str) -> Tensor:
        """The definition's rows in float64."""
        task = self.task(rule, span)
        return torch.cat([definition(replace(task, query=task.query[:, :, own]), own) for own in self.blocks], 2)

    def rows(self, output: Tensor) -> Tensor:
        """The rows of output[B, Hq, Q, D] that are compared."""
        return torch.cat([output[:, :, own] for own in self.blocks], 2)

    @property
    def blocks(self) -> list[slice]:
        """Which rows."""
        Q = self.case.Q
        if Q <= 3 * ROWS:
            return [slice(0, Q)]
        return [slice(first, first + ROWS) for first in (0, (Q - ROWS) // 2, Q - ROWS)]


def definition(task: AttentionTask, own: slice) -> Tensor:
    """The definition of some rows of a task whose query has these rows only."""
    query, key, value = (tensor.double() for tensor in (task.query, task.key, task.value))
    start = torch.full((len(query),), own.start)
    return reference.calibrated_attention(
        query, key, value, task.key_class, task.rule, query_start=start, is_causal=task.is_causal
    ).output


def size(difference: Tensor) -> float:
    """Root mean square."""
    return float(difference.square().mean().sqrt())
