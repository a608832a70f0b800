"""The attention problems that are timed: shapes of prefill and decode, which keys have a class, and which rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GAIN = 5.0  # of the additive rule
GAMMA = 0.15  # of the gated rule
CLASSES = 5  # as many as guardcore's own token classes
FIRST = 40  # where spans begin: after a system prompt
ONE_IN = 8  # keys with a class where they are scattered
RULES = ("zero", "additive", "gated")
SPANS = ("16 keys", "576 keys", "scattered")


@dataclass(frozen=True)
class AttentionTask:
    """Inputs of one call.

    query: [B, Hq, Q, D]; key, value: [B, Hkv, K, D]; key_class: [B, K] uint8; rule: [Hq, G, 3], equal for all heads.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    key_class: Tensor
    rule: Tensor
    is_causal: bool

    @property
    def packed_query(self) -> Tensor:
        """A single row's query with the heads of a group as rows [B, Hkv, Hq / Hkv, D]; else the query.

        Keys are then read once for a group by operators that don't know groups.
        """
        if self.query.shape[2] > 1:
            return self.query
        return self.query.view(len(self.key), self.key.shape[1], -1, self.key.shape[3])

    @property
    def key_rule(self) -> Tensor:
        """Linear, quadratic and additive coefficient of every key, [B, K, 3]."""
        table = self.rule[0].clone()
        table[0] = 0
        return table[self.key_class.long()]


@dataclass(frozen=True)
class AttentionCase:
    """A shape: B items, Hq query heads on Hkv key heads, Q rows on K keys, D wide; causal where there are many rows."""

    name: str
    meaning: str
    B: int
    Hq: int
    Hkv: int
    Q: int
    K: int
    D: int

    @property
    def is_causal(self) -> bool:
        """Whether rows see different keys."""
        return self.Q > 1

    @property
    def shape(self) -> str:
        """The sizes, as a table prints them."""
        heads = str(self.Hq) if self.Hq == self.Hkv else f"{self.Hq}/{self.Hkv}"
        return f"B{self.B} H{heads} Q{self.Q} K{self.K} D{self.D}{' causal' if self.is_causal else ''}"

    @property
    def pairs(self) -> int:
        """Pairs of a row and a key that it sees, of all items and query heads; bottom-right causality."""
        rows = self.Q * self.K - self.Q * (self.Q - 1) // 2 if self.is_causal else self.Q * self.K
        return self.B * self.Hq * rows

    @property
    def flops(self) -> float:
        """Multiplications and additions of both products over visible pairs."""
        return 4.0 * self.D * self.pairs

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values."""
        return 2 * self.B * self.Hkv * self.K * self.D * dtype.itemsize

    def tensors(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value: normal numbers, so that scores are about standard normal; reproducible."""
        g = torch.Generator().manual_seed(seed)
        sizes = ((self.Hq, self.Q), (self.Hkv, self.K), (self.Hkv, self.K))
        query, key, value = (torch.randn(self.B, *size, self.D, generator=g).to(dtype) for size in sizes)
        return query, key, value

    def key_class(self, span: str, seed: int = 1) -> Tensor:
        """Classes [B, K]: a span of class 1, one key in eight of class 1 to 4 anywhere (`scattered`), or none."""
        classes = torch.zeros(self.B, self.K, dtype=torch.uint8)
        if span == "scattered":
            g = torch.Generator().manual_seed(seed)
            drawn = torch.randint(1, CLASSES, classes.shape, generator=g, dtype=torch.uint8)
            return torch.where(torch.rand(classes.shape, generator=g) < 1 / ONE_IN, drawn, classes)
        if span != "none":
            first = min(FIRST, self.K // 4)
            classes[:, first : first + int(span.split()[0])] = 1
        return classes

    def task(self, tensors: tuple[Tensor, Tensor, Tensor], rule: str, span: str) -> AttentionTask:
        """A call on these tensors."""
        return AttentionTask(*tensors, self.key_class(span), coefficients(rule, self.Hq), self.is_causal)


def coefficients(rule: str, heads: int) -> Tensor:
    """The rule `zero`, `additive` or `gated` for all classes [heads, CLASSES, 3]."""
    table = torch.zeros(heads, CLASSES, 3)
    column, number = {"zero": (0, 0.0), "additive": (2, math.log(GAIN)), "gated": (0, GAMMA)}[rule]
    table[..., column] = number
    return table


CASES = {
    case.name: case
    for case in (
        AttentionCase("prefill-128", "prompt of a 7B model", 1, 32, 32, 1024, 1024, 128),
        AttentionCase("prefill-64", "long prompts, narrow heads", 4, 8, 8, 2048, 2048, 64),
        AttentionCase("decode", "a token for each of eight requests", 8, 32, 8, 1, 4096, 128),
    )
}
TINY = (
    AttentionCase("tiny prefill", "every contender's gate", 2, 4, 4, 96, 96, 32),
    AttentionCase("tiny decode", "every contender's gate", 2, 8, 2, 1, 130, 32),
)
