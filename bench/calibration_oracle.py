"""Calibrated attention as transformers' eager attention would do it: all scores at once, in float32, under a mask.

The oracle of the adapter's tests. It shares no code with the adapter or the operator: rules are applied by their
formulas, request by request, to the scores; who sees whom is the host's own 4-D mask; slots are counted from the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.spans import TokenSpans

_NAME = "calibration_oracle"


@dataclass
class Batch:
    """What is generated: where the requests' spans are, how they are calibrated, and how far the model has come."""

    spans: Sequence[TokenSpans]
    padding: Sequence[int]
    calibrations: Sequence[AttentionCalibration | None]
    depth: int
    slots: int = 0
    masses: dict[int, Tensor] = field(default_factory=dict)  # by layer, of the prefix: [B, Hq]

    def span(self, request: int, name: str) -> set[int]:
        """Slots of a span; an unsafe patch with a rule of its own is no plain image token, slot 0 is nothing."""
        ranges = {slot for start, end in getattr(self.spans[request], name) for slot in range(start, end)}
        if name == "image" and "unsafe" in self.calibrations[request].rules:
            ranges -= {slot for start, end in self.spans[request].unsafe for slot in range(start, end)}
        return {slot + self.padding[request] for slot in ranges - {0}}

    def row(self, request: int, slot: int) -> bool:
        """Whether the row in a slot is calibrated."""
        own, at = self.spans[request], slot - self.padding[request]
        instruction = any(start <= at < end for start, end in own.instruction)
        return instruction or (self.calibrations[request].rows == "instruction+generated" and at >= own.answer)


@contextmanager
def oracle(
    model: Any,
    spans: Sequence[TokenSpans],
    padding: Sequence[int],
    calibrations: Sequence[AttentionCalibration | None],
) -> Iterator[Batch]:
    """Within the block, the model's text attention is the oracle's; it needs a cache that keeps what rows see."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    text = model.config.get_text_config()
    batch, own = Batch(spans, padding, calibrations, text.num_hidden_layers), text._attn_implementation

    def mask(**arguments: Any) -> Tensor:
        batch.slots = int(arguments["q_offset"]) + arguments["q_length"]
        return sdpa_mask(**{**arguments, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, **options: Any) -> Any:
        return attend(batch, module, query, key, value, seen, options["scaling"]), None

    AttentionInterface.register(_NAME, attention)
    AttentionMaskInterface.register(_NAME, mask)
    model.set_attn_implementation({"text_config": _NAME})
    try:
        yield batch
    finally:
        model.set_attn_implementation({"text_config": own})
        AttentionInterface._global_mapping.pop(_NAME)
        AttentionMaskInterface._global_mapping.pop(_NAME)


def attend(
    batch: Batch, module: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float
) -> Tensor:
    """Attention of a layer, [B, Q, Hq, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1).float() for each in (key, value))
    scores = scale * query.float() @ key.transpose(-1, -2)
    cross = "CrossAttention" in type(module).__name__
    shown = torch.ones_like(scores, dtype=torch.bool) if seen is None else seen.expand_as(scores)
    hidden = ~shown if shown.dtype == torch.bool else shown < 0
    copies = len(query) // len(batch.spans)
    for item in range(len(query)):
        request = item // copies
        calibration = batch.calibrations[request]
        if calibration is not None and module.layer_idx in calibration.layer_indices(batch.depth):
            heads = None if calibration.heads is None else calibration.heads[module.layer_idx]
            calibrate(batch, request, scores[item], hidden[item], scale, heads, cross)
    share = scores.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)
    if not cross:
        spans = [columns(batch, index, "prefix", scores.shape[-1]) for index in range(len(batch.spans))]
        rows = [last_row(batch, index, scores.shape[-2]) for index in range(len(batch.spans))]
        last = [share[index * copies, :, rows[index]][:, keys].sum(-1) for index, keys in enumerate(spans)]
        batch.masses.setdefault(module.layer_idx, torch.stack(last))  # of the first pass, the prompt's
    return (share @ value).transpose(1, 2).contiguous().to(query.dtype)


def last_row(batch: Batch, request: int, rows: int) -> int:
    """Of this pass, the last calibrated row of a request; the last of all for one without a calibration."""
    first = batch.slots - rows
    calibrated = batch.calibrations[request] is not None
    return max((row for row in range(rows) if calibrated and batch.row(request, first + row)), default=rows - 1)


def columns(batch: Batch, request: int, name: str, keys: int) -> list[int]:
    first = batch.slots - keys
    return sorted(slot - first for slot in batch.span(request, name) if 0 <= slot - first < keys)


def calibrate(
    batch: Batch, request: int, scores: Tensor, hidden: Tensor, scale: float, heads: Any, cross: bool
) -> None:
    """Change scores[Hq, Q, K] in place."""
    calibration = batch.calibrations[request]
    (Hq, Q, K), first_row = scores.shape, batch.slots - scores.shape[1]
    rows = [row for row in range(Q) if batch.row(request, first_row + row)]
    # The target is a share of what the other rules made of the row.
    for name, rule in sorted(calibration.rules.items(), key=lambda each: each[1].kind == "target_mass"):
        if cross:
            keys = list(range(K)) if name == "image" else []
        else:
            keys = columns(batch, request, name, K)
        for head in range(Hq) if heads is None else heads:
            for row in rows:
                s = scores[head, row, keys]
                if rule.kind == "gated":
                    s = s + rule.strength * s.relu()
                elif rule.kind == "literal":
                    s = s + rule.strength / scale * s.relu() ** 2
                elif rule.kind == "log_gain":
                    s = s + (math.log(rule.strength) if rule.strength else -math.inf)
                else:
                    share = scores[head, row].masked_fill(hidden[head, row], -math.inf).softmax(-1)
                    m, t = share[keys].sum(), rule.strength
                    s = s + torch.log(t * (1 - m) / (m * (1 - t))) * (m < t) if keys and m > 0 else s
                scores[head, row, keys] = s
