"""Ways to let attention follow a rule on chosen keys: ours, and those that people write today.

Every contender gets masks, biases and compiled code ready made, as a host would keep them for all layers of a forward
pass; only attention itself is timed. Single rows go in packed, the heads of a group as rows, which is by far the best
form of operators that don't know groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.attention_cases import AttentionTask
from guardcore import ops

Run = Callable[[], Tensor]
PAGE = 16  # keys; vLLM's default


@dataclass(frozen=True)
class AttentionContender:
    """One way to attend.

    prepare: what is done once, outside the clock; returns the call, whose result has the query's [B, Hq, Q, D] numbers.
    rules: those it can follow; empty: none, plain attention.
    is_ours: runs on every span, and is paired with our kernel without classes, too.
    """

    name: str
    prepare: Callable[[AttentionTask], Run]
    rules: tuple[str, ...]
    is_ours: bool = False
    only_groups: bool = False

    def why_not(self, task: AttentionTask) -> str | None:
        """The reason why it does not run, or None."""
        if self.only_groups and task.query.shape[1] == task.key.shape[1]:
            return "no groups of heads"
        return None


def plain_sdpa(task: AttentionTask) -> Run:
    """torch's attention without any rule."""
    query = task.packed_query
    return lambda: scaled_dot_product_attention(query, task.key, task.value, is_causal=task.is_causal)


def guardcore(task: AttentionTask) -> Run:
    """Our operator."""
    arguments = (task.query, task.key, task.value, task.key_class, task.rule)
    return lambda: ops.calibrated_attention(*arguments, is_causal=task.is_causal).output


def guardcore_with_mass(task: AttentionTask) -> Run:
    """Our operator, with every row's share of attention by class."""
    arguments = (task.query, task.key, task.value, task.key_class, task.rule)
    return lambda: ops.calibrated_attention(*arguments, is_causal=task.is_causal, return_mass=True).output


def guardcore_paged(task: AttentionTask) -> Run:
    """Our paged operator, pages in random order; the dense one's tensors are its truth."""
    (B, _, Q, _), (_, Hkv, K, D) = task.query.shape, task.key.shape
    pages = -(-K // PAGE)
    order = torch.randperm(B * pages, generator=torch.Generator().manual_seed(2))
    table = order.view(B, pages).to(torch.int32)

    def paged(dense: Tensor) -> Tensor:
        rows = torch.nn.functional.pad(dense.transpose(1, 2), (0, 0, 0, 0, 0, pages * PAGE - K))
        cache = torch.empty(B * pages, PAGE, Hkv, D, dtype=dense.dtype)
        cache[order] = rows.reshape(B * pages, PAGE, Hkv, D)
        return cache

    rows = task.query.transpose(1, 2).flatten(0, 1)
    offsets, lengths = torch.arange(B + 1, dtype=torch.int32) * Q, torch.full((B,), K, dtype=torch.int32)
    arguments = (rows, paged(task.key), paged(task.value), table, offsets, lengths, task.key_class, task.rule)

    def run() -> Tensor:
        output: Tensor = ops.calibrated_attention_paged(*arguments, max_query_length=Q).output
        return output.unflatten(0, (B, Q)).transpose(1, 2)

    return run


def additive_mask(task: AttentionTask) -> Run:
    """The public route: a mask [B, 1, Q, K] that carries causality and bias."""
    query = task.packed_query
    mask = additive_bias(task)[:, None, None]
    if task.is_causal:
        mask = mask + torch.full((query.shape[2], mask.shape[-1]), -math.inf).triu(1)
    mask = mask.to(query.dtype)
    return lambda: scaled_dot_product_attention(query, task.key, task.value, attn_mask=mask)


def private_operator(task: AttentionTask) -> Run:
    """torch's CPU kernel called by its private name: it takes causality and a broadcast float32 bias [B, 1, 1, K]."""
    query, bias = task.packed_query, additive_bias(task)[:, None, None]
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return lambda: attend(query, task.key, task.value, is_causal=task.is_causal, attn_mask=bias)[0]


def flex(task: AttentionTask) -> Run:
    """FlexAttention, compiled, causality as a block mask, groups packed."""
    return flex_of(task, task.packed_query)


def flex_by_groups(task: AttentionTask) -> Run:
    """FlexAttention with its own form of groups."""
    return flex_of(task, task.query, enable_gqa=True)


def flex_of(task: AttentionTask, query: Tensor, **options: Any) -> Run:
    """FlexAttention on the rule's coefficients by key."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if task.is_causal:
        causal = create_block_mask(lambda _b, _h, i, j: i >= j, None, None, query.shape[2], task.key.shape[2], "cpu")
        options["block_mask"] = causal
    compiled, score_mod = torch.compile(flex_attention, dynamic=False), flex_rule(task)
    return lambda: compiled(query, task.key, task.value, score_mod=score_mod, **options)


def flex_rule(task: AttentionTask) -> Callable[..., Tensor]:
    """The rule as a score_mod, its cheapest form: a bias a key, or a factor a key on positive scores."""
    linear, _, additive = (column.contiguous() for column in task.key_rule.unbind(-1))
    if bool(linear.any()):
        return lambda score, b, _h, _i, j: score + linear[b, j] * torch.relu(score)
    return lambda score, b, _h, _i, j: score + additive[b, j]


def post_softmax(task: AttentionTask) -> Run:
    """Eager attention whose probabilities are multiplied by gains and normalized again; groups packed."""
    gain = additive_bias(task).exp()[:, None, None]
    hidden = None
    if task.is_causal:
        hidden = torch.ones(task.query.shape[2], task.key.shape[2], dtype=torch.bool).triu(1)
    return lambda: reweighted(task.packed_query, task.key, task.value, hidden, gain)


def post_softmax_by_heads(task: AttentionTask) -> Run:
    """The same as models write it: keys and values repeated for every head of a group, at every call."""
    gain, group = additive_bias(task).exp()[:, None, None], task.query.shape[1] // task.key.shape[1]

    def run() -> Tensor:
        key, value = (tensor.repeat_interleave(group, 1) for tensor in (task.key, task.value))
        return reweighted(task.query, key, value, None, gain)

    return run


def reweighted(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, gain: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(D)) times gain, normalized, times value."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    share = torch.softmax(scores, -1, dtype=torch.float32) * gain
    return (share / share.sum(-1, keepdim=True)).to(query.dtype) @ value


def additive_bias(task: AttentionTask) -> Tensor:
    """The additive coefficient of every key [B, K]."""
    return task.key_rule[..., 2]


PLAIN = AttentionContender("SDPA", plain_sdpa, ())
OURS = AttentionContender("guardcore", guardcore, ("zero", "additive", "gated"), is_ours=True)
RIVALS = (
    AttentionContender("SDPA, mask [B, 1, Q, K]", additive_mask, ("additive",)),
    AttentionContender("private aten op, bias [B, 1, 1, K]", private_operator, ("additive",)),
    AttentionContender("FlexAttention", flex, ("additive", "gated")),
    AttentionContender("FlexAttention, enable_gqa", flex_by_groups, ("additive", "gated"), only_groups=True),
    AttentionContender("eager, after softmax", post_softmax, ("additive",)),
    AttentionContender("eager, heads repeated", post_softmax_by_heads, ("additive",), only_groups=True),
)
WITH_MASS = AttentionContender("guardcore, with masses", guardcore_with_mass, ("additive",))
PAGED = AttentionContender("guardcore, paged", guardcore_paged, ("zero", "additive", "gated"))
