"""Token spans: classes, rows, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardcore.calibration.spans import NUM_CLASSES, TokenClass, TokenSpans


def spans(**changes):
    fields = {
        "length": 14,
        "answer": 11,
        "image": ((1, 5),),
        "unsafe": ((2, 4),),
        "prefix": ((5, 7),),
        "instruction": ((8, 10),),
    }
    return TokenSpans(**{**fields, **changes})


def test_every_token_has_one_class_and_unsafe_wins_over_image():
    assert spans().classes().tolist() == [0, 3, 4, 4, 3, 1, 1, 0, 2, 2, 0, 0, 0, 0]
    assert spans().classes().dtype == torch.uint8
    assert NUM_CLASSES == 5


def test_only_the_asked_classes_are_there_and_unsafe_tokens_are_image_tokens_then():
    assert spans().classes({TokenClass.PREFIX}).tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert spans().classes({TokenClass.IMAGE}).tolist() == [0, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert spans().classes({TokenClass.UNSAFE}).tolist() == [0, 0, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert spans().classes(()).tolist() == [0] * 14


def test_the_first_token_is_a_sink_and_never_in_a_class():
    assert TokenSpans(length=3, answer=3, prefix=((0, 3),)).classes().tolist() == [0, 1, 1]


def test_rows_are_the_instruction_and_if_asked_all_from_the_answers_header_on():
    assert spans().rows("instruction").nonzero().flatten().tolist() == [8, 9]
    assert spans().rows("instruction+generated").nonzero().flatten().tolist() == [8, 9, 11, 12, 13]


def test_an_instruction_around_a_picture_has_several_ranges():
    both = spans(instruction=((8, 9), (10, 11)))
    assert both.rows("instruction").nonzero().flatten().tolist() == [8, 10]


def test_an_empty_prompt_has_no_tokens():
    nothing = TokenSpans(length=0, answer=0)
    assert nothing.classes().shape == nothing.rows("instruction").shape == (0,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer": 15}, "answer: expected 0 to the length 14; got 15"),
        ({"prefix": ((5, 15),)}, r"prefix: expected 0 <= start <= end <= 14; got \(5, 15\)"),
        ({"image": ((-1, 5),), "unsafe": ()}, r"image: .* got \(-1, 5\)"),
        ({"instruction": ((9, 8),)}, r"instruction: .* got \(9, 8\)"),
        ({"instruction": ((6, 10),)}, "instruction: expected no token of prefix; token 6 is in both"),
        ({"image": ((1, 6),)}, "image: expected no token of prefix; token 5 is in both"),
        ({"unsafe": ((4, 6),)}, "unsafe: expected image tokens only; token 5 is none"),
    ],
)
def test_bad_spans_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        spans(**changes)


def test_a_bad_choice_of_rows_is_named():
    with pytest.raises(ValueError, match="rows: expected 'instruction' or 'instruction\\+generated'; got 'all'"):
        spans().rows("all")


@given(st.lists(st.integers(0, 40), min_size=7, max_size=7))
def test_classes_count_the_tokens_of_disjoint_spans(cuts):
    a, b, c, d, e, f, length = sorted(cuts)
    found = TokenSpans(length=length, answer=f, image=((a, b),), prefix=((c, d),), instruction=((e, f),))
    classes = found.classes()
    sink = 1 if length else 0
    for kind, start, end in ((TokenClass.IMAGE, a, b), (TokenClass.PREFIX, c, d), (TokenClass.INSTRUCTION, e, f)):
        assert int((classes == kind).sum()) == end - start - (sink if start == 0 < end else 0)
    assert int(found.rows("instruction").sum()) == f - e
