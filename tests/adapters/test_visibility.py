"""Visibility read off transformers' own masks equals the masks they make, and what it can't say is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import masking_utils as masks

from guardcore.adapters.transformers.visibility import Visibility, visibility_reader

B = 2


def arguments(rows: int, keys: int, function: Any, *, row_offset: Any = 0, key_offset: int = 0, **more: Any) -> Any:
    return {
        "batch_size": B, "q_length": rows, "kv_length": keys, "q_offset": row_offset, "kv_offset": key_offset,
        "mask_function": function, **more,
    }  # fmt: skip


def read(given: Any) -> Visibility:
    return visibility_reader(masks.causal_mask_function)(given, True)


def shown(found: Visibility) -> torch.Tensor:
    """The mask [B, Q, K] that calibrated attention makes of a visibility: its contract, spelled out."""
    start = torch.full((B,), found.keys - found.rows) if found.query_start is None else found.query_start
    row = start[:, None, None] + torch.arange(found.rows)[None, :, None]
    key = torch.arange(found.keys)[None, None]
    seen = (row >= key) & (row - key < (found.window or 10**9))
    if found.key_group is not None:
        inside = (row >= 0) & (row < found.keys)
        own = found.key_group.gather(1, row[..., 0].clamp(0, found.keys - 1))[..., None]
        seen = seen | (inside & (own != 0) & (own == found.key_group[:, None]))
    return seen if found.key_mask is None else seen & found.key_mask[:, None]


def made(given: Any) -> torch.Tensor:
    """The mask [B, Q, K] that transformers makes."""
    return masks.sdpa_mask(**{**given, "allow_is_causal_skip": False})[:, 0].expand(B, -1, -1)


def blocks(*ids: int) -> torch.Tensor:
    return torch.tensor([ids, ids])


PADDING = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 12])
BLOCKS = blocks(-1, 0, 0, 0, -1, 1, 1, 2, 2, 2, -1, -1)
BLOCKWISE = masks.blockwise_overlay(BLOCKS)
CAUSAL, SLIDING = masks.causal_mask_function, masks.sliding_window_causal_mask_function
CASES = {
    "plain": arguments(12, 12, CAUSAL),
    "left padding": arguments(12, 12, CAUSAL, attention_mask=PADDING),
    "decoding": arguments(1, 12, CAUSAL, row_offset=11, attention_mask=PADDING),
    "chunk": arguments(5, 9, CAUSAL, row_offset=4, attention_mask=PADDING),
    "static cache, mask shorter than it": arguments(12, 20, CAUSAL, attention_mask=PADDING),
    "static cache, offset on the device": arguments(3, 20, CAUSAL, row_offset=torch.tensor(7), attention_mask=PADDING),
    "static cache decoding": arguments(1, 20, CAUSAL, row_offset=torch.tensor([11]), attention_mask=PADDING),
    "window": arguments(12, 12, SLIDING(4), attention_mask=PADDING, local_size=4),
    "window of one": arguments(12, 12, SLIDING(1), local_size=1),
    "window in a cache that forgets": arguments(3, 6, SLIDING(4), row_offset=9, key_offset=6, attention_mask=PADDING),
    "window in a static cache": arguments(
        1, 4, SLIDING(4), row_offset=2, key_offset=0, attention_mask=PADDING, local_size=4
    ),
    "pictures": arguments(12, 12, masks.or_masks(CAUSAL, BLOCKWISE), attention_mask=PADDING),
    "pictures in a chunk": arguments(4, 8, masks.or_masks(CAUSAL, BLOCKWISE), row_offset=4),
    "pictures within a window": arguments(
        12, 12, masks.and_masks(masks.or_masks(CAUSAL, BLOCKWISE), masks.sliding_window_overlay(3))
    ),
    "everyone sees everyone": arguments(12, 12, masks.bidirectional_mask_function, attention_mask=PADDING),
    "a prefix that sees itself": arguments(12, 12, masks.or_masks(CAUSAL, masks.blockwise_overlay(
        blocks(*[0] * 8, *[-1] * 4)))),
}  # fmt: skip


@pytest.mark.parametrize("given", CASES.values(), ids=CASES)
def test_reads_what_the_host_would_make(given: Any) -> None:
    found = read(given)
    assert found.problem is None
    assert torch.equal(shown(found), made(given))


def test_a_long_prompt_is_compared_by_samples() -> None:
    """300 x 300 pairs of 2 items are more than are compared."""
    found = read(arguments(300, 300, SLIDING(64), local_size=64))
    assert found.window == 64
    assert found.problem is None


REFUSED = {
    "chunked attention": (masks.chunked_causal_mask_function(5, torch.zeros(B, dtype=torch.int64)), "does not see key"),
    "packed sequences": (masks.and_masks(masks.packed_sequence_mask_function(BLOCKS), CAUSAL), "does not see key"),
    "a picture larger than its window": (
        masks.and_masks(masks.or_masks(CAUSAL, masks.blockwise_overlay(blocks(*[0] * 9, -1, -1, -1)))
                        , masks.sliding_window_overlay(3)), "a window of 3 and blocks of pictures"),
    "a picture in two places": (
        masks.or_masks(CAUSAL, masks.blockwise_overlay(blocks(0, 0, 0, -1, -1, 0, 0, -1, -1, -1, -1, -1))), "sees key"),
    "a window both ways": (masks.sliding_window_bidirectional_mask_function(3), "sees key|does not see"),
    "a function of whole masks": (lambda *_: torch.ones(5, 7), "can't be asked about pairs"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "reason"), REFUSED.values(), ids=REFUSED)
def test_names_what_it_cannot_say(function: Any, reason: str) -> None:
    import re

    problem = read(arguments(12, 12, function)).problem
    assert problem is not None
    assert re.search(reason, problem)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_prompt_with_another_pattern_is_found_out(seed: int) -> None:
    """Chunks of 150 in 400 slots differ from causality in half of the pairs; a window off by one along its edge."""
    chunked = masks.chunked_causal_mask_function(150, torch.zeros(B, dtype=torch.int64))
    assert read(arguments(400 + seed, 400 + seed, chunked)).problem is not None

    def off_by_one(_item: Any, _head: Any, row: Any, key: Any, sliding_window: int = 40) -> Any:
        return (key <= row) & (key >= row - sliding_window)

    assert read(arguments(400 + seed, 400 + seed, off_by_one, local_size=40)).problem is not None
