"""Classes and rows by slot: padding, offsets, repeated requests, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.masking_utils import causal_mask_function

from guardcore.adapters.transformers.session import Session
from guardcore.adapters.transformers.support import TextModel, UnsupportedError
from guardcore.adapters.transformers.visibility import visibility_reader
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.spans import TokenSpans

LONG = TokenSpans(length=8, answer=6, prefix=((1, 3),), instruction=((3, 6),))
SHORT = TokenSpans(length=5, answer=4, prefix=((0, 2),), instruction=((2, 4),), image=((4, 5),))
GATED = AttentionCalibration(rules={"prefix": "gated:1"}, layers=(0,))
QUIET = AttentionCalibration(rules={"image": "log_gain:0"}, layers=(1,), rows="instruction")


def session(*calibrations: AttentionCalibration | None, padding: tuple[int, int] = (0, 3)) -> Session:
    model = TextModel(config=None, path=(), depth=4, heads=2, scale=0.5, layers={0: nn.Identity()}, problems={})
    read = visibility_reader(causal_mask_function)
    return Session((LONG, SHORT), padding, calibrations, model, read=read, device=torch.device("cpu"))


def see(own: Session, rows: int, keys: int, first: Any = 0, batch: int = 2, key_offset: int = 0) -> Any:
    own.see({
        "batch_size": batch, "q_length": rows, "kv_length": keys, "q_offset": first, "kv_offset": key_offset,
        "mask_function": causal_mask_function, "attention_mask": None,
    })  # fmt: skip
    return own.current(rows, keys, None)


def test_prompts_are_laid_out_behind_their_padding_without_the_sink() -> None:
    now = see(session(GATED, QUIET), 8, 8)
    assert now.key_class.tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 3]]
    assert now.row_mask.int().tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0]]
    assert now.prompt_row == 7


def test_generated_slots_have_no_class_and_the_rows_that_were_asked_for() -> None:
    own = session(GATED, QUIET)
    see(own, 8, 8)
    now = see(own, 2, 10, first=8)
    assert now.key_class[:, 8:].count_nonzero() == 0
    assert now.row_mask.tolist() == [[True, True], [False, False]]
    assert now.prompt_row is None


@pytest.mark.parametrize("first", [5, torch.tensor(5)])
def test_a_chunk_of_a_window_sees_its_own_slots(first: Any) -> None:
    own = session(GATED, None)
    now = see(own, 3, 6, first=first, key_offset=2)
    assert now.key_class.tolist() == [[1, 0, 0, 0, 0, 0], [0] * 6]
    assert now.row_mask.tolist() == [[True, True, True], [False, False, False]]
    assert now.prompt_row == 2


def test_requests_are_repeated_in_place_for_beams() -> None:
    own = session(GATED, QUIET)
    now = see(own, 8, 8, batch=6)
    one = see(session(GATED, QUIET), 8, 8)
    assert torch.equal(now.key_class, one.key_class.repeat_interleave(3, 0))
    assert torch.equal(now.row_mask, one.row_mask.repeat_interleave(3, 0))
    assert torch.equal(own.one_of_each(now.key_class), one.key_class)
    assert own.layers[0].rule.shape == (6, 2, 5, 3)
    assert own.layers[0].rule[:, 0, 1, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_only_layers_with_a_rule_that_acts_are_there() -> None:
    assert set(session(GATED, QUIET).layers) == {0, 1}
    assert set(session(AttentionCalibration(rules={"prefix": "gated:0"}, layers=(0,)), None).layers) == set()


def test_refuses_what_is_not_its_batch() -> None:
    with pytest.raises(ValueError, match=r"padding: expected prompts that end in one slot; got ends \[5, 8\]"):
        session(GATED, None, padding=(0, 0))
    with pytest.raises(UnsupportedError, match="no multiple of the 2 requests"):
        see(session(GATED, None), 8, 8, batch=3)
    own = session(GATED, None)
    see(own, 8, 8)
    with pytest.raises(UnsupportedError, match="a second prompt"):
        see(own, 3, 3)
    with pytest.raises(UnsupportedError, match="no mask of 4 rows"):
        own.current(4, 8, None)
