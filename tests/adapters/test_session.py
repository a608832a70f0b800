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
    own.see(arguments(rows, keys, first, batch, key_offset))
    return own.current(rows, keys, None)


def arguments(rows: int, keys: int, first: Any = 0, batch: int = 2, key_offset: int = 0) -> dict[str, Any]:
    return {
        "batch_size": batch, "q_length": rows, "kv_length": keys, "q_offset": first, "kv_offset": key_offset,
        "mask_function": causal_mask_function, "attention_mask": None,
    }  # fmt: skip


def test_prompts_are_laid_out_behind_their_padding_without_the_sink() -> None:
    now = see(session(GATED, QUIET), 8, 8)
    assert now.key_class.tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 3]]
    assert now.row_mask.int().tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0]]
    assert now.measured.tolist() == [7, 6]  # QUIET calibrates the instruction only


def test_generated_slots_have_no_class_and_the_rows_that_were_asked_for() -> None:
    own = session(GATED, QUIET)
    see(own, 8, 8)
    now = see(own, 2, 10, first=8)
    assert now.key_class[:, 8:].count_nonzero() == 0
    assert now.row_mask.tolist() == [[True, True], [False, False]]
    assert now.measured is None


@pytest.mark.parametrize("first", [5, torch.tensor(5)])
def test_a_chunk_of_a_window_sees_its_own_slots(first: Any) -> None:
    own = session(GATED, None)
    now = see(own, 3, 6, first=first, key_offset=2)
    assert now.key_class.tolist() == [[1, 0, 0, 0, 0, 0], [0] * 6]
    assert now.row_mask.tolist() == [[True, True, True], [False, False, False]]
    assert now.measured.tolist()[0] == 2
    assert now.measured[1] < 0


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


def test_a_chunk_measures_only_the_rows_that_it_has() -> None:
    """The prompt's last chunk begins behind the instruction of the second request, and no row of its is calibrated."""
    own = session(GATED, QUIET)
    assert see(own, 7, 7).measured is None
    now = see(own, 1, 8, first=7)
    assert now.measured.tolist() == [0, -1]
    for layer in (0, 1):
        own.record(layer, torch.full((2, 2), 0.25), torch.full((2, 2), 0.5), now.measured)
    first, second = own.masses()
    assert [(mass.layer, mass.after) for mass in first] == [(0, (0.5, 0.5))]
    assert second == ()


@pytest.mark.parametrize("rows", [7, 8, 10])
def test_a_second_sequence_is_refused_whatever_its_length(rows: int) -> None:
    """As long as the prompt, or longer, it looks like the prompt itself but for what came before."""
    own = session(GATED, None)
    see(own, 8, 8)
    with pytest.raises(UnsupportedError, match="a second prompt"):
        see(own, rows, rows)


def test_without_a_cache_every_pass_is_one_token_longer_and_has_masks_of_one_length() -> None:
    own = session(GATED, None)
    for rows in (8, 9, 10):
        own.see(arguments(rows, rows))
        assert see(own, rows, rows).row_mask.shape == (2, rows)


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
