"""Every mistake in a policy file is named with its line and field, and no file crashes the reader."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guardcore.policy import file as policy_file
from guardcore.policy.policy import Policy, PolicyError, Problem

GOOD = (Path(__file__).parent / "data" / "shop_policy.yaml").read_text(encoding="utf-8")


def minimal(**fields: object) -> dict[str, Any]:
    return {"name": "p", "categories": [{"name": "c", "nouns": ["a thing"], **fields}]}


def problems(text: str | bytes, tmp_path: Path) -> list[tuple[int | None, str, str]]:
    path = tmp_path / "policy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    assert caught.value.source == str(path)
    return [(each.line, each.field, each.message) for each in caught.value.problems]


def the_problem(text: str | bytes, tmp_path: Path) -> tuple[int | None, str, str]:
    found = problems(text, tmp_path)
    assert len(found) == 1, found
    return found[0]


def mistakes(data: object) -> tuple[Problem, ...]:
    try:
        Policy.from_data(data)
    except PolicyError as error:
        return error.problems
    return ()


class TestMistakes:
    def test_all_are_reported_at_once_in_file_order(self, tmp_path: Path) -> None:
        text = (
            GOOD.replace("on_error: review", "on_error: blok")
            .replace("nouns: [a handgun, a dagger]", "nouns: [a handgun, 12, a  Handgun]")
            .replace("threshold: 0.31", "treshold: 0.31")
            .replace("[violence]", "[violance, hate]")
            .replace("action: review", "threshold: .nan")
        )
        assert [(line, field) for line, field, _ in problems(text, tmp_path)] == [
            (6, "on_error"),
            (10, "categories[0].nouns[2]"),
            (10, "categories[0].nouns[1]"),
            (14, "categories[0].treshold"),
            (15, "categories[0].maps.openai[0]"),
            (15, "categories[0].maps.openai[1]"),
            (20, "categories[1].threshold"),
            (20, "categories[1].threshold"),
        ]

    def test_report_reads_well(self, tmp_path: Path) -> None:
        path = tmp_path / "p.yaml"
        path.write_text(GOOD.replace("on_error: review", "on_error: blok").replace("0.02", "2"), encoding="utf-8")
        with pytest.raises(PolicyError) as caught:
            Policy.load(path)
        assert str(caught.value) == (
            f"{path}: 2 mistakes\n"
            "  line 5, target_fpr: expected a rate between 0 and 1, both excluded; got 2\n"
            "  line 6, on_error: expected one of allow, review, block; got 'blok'; did you mean 'block'?"
        )
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    @pytest.mark.parametrize(
        ("old", "new", "line", "field", "words"),
        [
            ("on_error: review", "onerror: review", 6, "onerror", "did you mean 'on_error'?"),
            ("name: shop\n", "", 1, "name", "is required"),
            ("name: shop", "name: My Shop", 1, "name", "lower-case"),
            ("name: shop", "name: ../shop", 1, "name", "lower-case"),
            ("name: weapons", "name: neutral", 8, "categories[0].name", "anchors"),
            ("name: tobacco", "name: weapons", 16, "categories[1].name", "another category"),
            ('version: "2"', "version: 2", 2, "version", "put it in quotes"),
            ('version: "2"', "version: 2026-11-21", 2, "version", "the date 2026-11-21"),
            ("a photo of {}", "a photo", 3, "templates[0]", "exactly once"),
            ("a photo of {}", "{} and {}", 3, "templates[0]", "exactly once"),
            ("a photo of {}", "{} {x}", 3, "templates[0]", "no other braces"),
            ("a photo of {}", "a drawing of {}", 3, "templates[1]", "repeats templates[0]"),
            ('["a photo of {}", "a drawing of {}"]', "[]", 3, "templates", "at least one"),
            ("[a shelf, a cash desk]", "a shelf", 4, "neutral", "expected a list; got 'a shelf'"),
            ("[a shelf, a cash desk]", "[a shelf, no]", 4, "neutral[1]", "unquoted yes, no, on or off"),
            ("[a shelf, a cash desk]", "[a shelf, A  SHELF]", 4, "neutral[1]", "repeats neutral[0]"),
            (
                "[a shelf, a cash desk]",
                "[a shelf, ｄａｇｇｅｒ, Ａ Dagger]",
                4,
                "neutral[2]",
                "unsafe in category 'weapons'",
            ),
            ("[a shelf, a cash desk]", "[a shelf, '']", 4, "neutral[1]", "is empty"),
            ("[a shelf, a cash desk]", '[a shelf, "\\u200b"]', 4, "neutral[1]", "is empty"),
            ("[a shelf, a cash desk]", '[a shelf, "a\\0b"]', 4, "neutral[1]", "control character"),
            ("[a shelf, a cash desk]", '[a shelf, "a\\ud800b"]', 4, "neutral[1]", "surrogate"),
            ("[a shelf, a cash desk]", "[a shelf, null]", 4, "neutral[1]", "got nothing"),
            ("[a shelf, a cash desk]", "[a shelf, [a desk]]", 4, "neutral[1]", "expected text; got a list"),
            ("[a shelf, a cash desk]", "['a {} shelf']", 4, "neutral[0]", "only templates may"),
            ("target_fpr: 0.02", "target_fpr: 0", 5, "target_fpr", "both excluded; got 0"),
            ("target_fpr: 0.02", "target_fpr: 1", 5, "target_fpr", "both excluded; got 1"),
            ("target_fpr: 0.02", "target_fpr: .nan", 5, "target_fpr", "got nan"),
            ("target_fpr: 0.02", "target_fpr: 2%", 5, "target_fpr", "expected a number; got '2%'"),
            ("target_fpr: 0.02", "target_fpr: true", 5, "target_fpr", "the truth value true"),
            ("on_error: review", "on_error: off", 6, "on_error", "got the truth value false"),
            ("on_error: review", "on_error: Block", 6, "on_error", "did you mean 'block'?"),
            ("threshold: 0.31", "threshold: -0.1", 14, "categories[0].threshold", "at least 0"),
            ("threshold: 0.31", "threshold: .nan", 14, "categories[0].threshold", "finite"),
            ("threshold: 0.31", "threshold: .inf", 14, "categories[0].threshold", "finite"),
            ("threshold: 0.31", f"threshold: 1{'0' * 400}", 14, "categories[0].threshold", "a huge number"),
            ("threshold: 0.31", f"threshold: 1{'0' * 9000}", 14, "categories[0].threshold", "can't read"),
            ("threshold: 0.31", 'threshold: "0.31"', 14, "categories[0].threshold", "got '0.31'"),
            ("target_fpr: 0.005", "no colon", 20, "", "not valid YAML"),
            ("action: review", "threshold: 0.2", 20, "categories[1].threshold", "not both"),
            ("action: review", "actoin: review", 20, "categories[1].actoin", "did you mean 'action'?"),
            ("action: review", "zzz: 1", 20, "categories[1].zzz", "known are name, description"),
            ("nouns: [a cigarette]", "description: d", 16, "categories[1].nouns", "has neither"),
            ("nouns: [a cigarette]", "nouns: []", 18, "categories[1].nouns", "has neither"),
            ("nouns: [a cigarette]", "nouns: [a handgun]", 18, "categories[1].nouns[0]", "in category 'weapons' too"),
            (
                "[a water pistol, a cash desk]",
                "[a cigarette]",
                13,
                "categories[0].safe_lookalikes[0]",
                "can't be safe too",
            ),
            ("mlcommons: [S1]", "mlcommons: [S15]", 15, "categories[0].maps.mlcommons[0]", "S1 to S14; got 'S15'"),
            ("mlcommons: [S1]", "mlcommons: [s1]", 15, "categories[0].maps.mlcommons[0]", "did you mean S1"),
            (
                "mlcommons: [S1]",
                "mlcommons: [privcy]",
                15,
                "categories[0].maps.mlcommons[0]",
                "did you mean S7 (privacy)",
            ),
            ("mlcommons: [S1]", "mlcommons: [S1, S1]", 15, "categories[0].maps.mlcommons[1]", "repeats"),
            ("mlcommons: [S1]", "mlcomons: [S1]", 15, "categories[0].maps.mlcomons", "did you mean 'mlcommons'?"),
            (
                "openai: [violence]",
                "openai: [self_harm]",
                15,
                "categories[0].maps.openai[0]",
                "did you mean 'self-harm'?",
            ),
            ("openai: [violence]", "openai: [hate]", 15, "categories[0].maps.openai[0]", "on text only"),
            (
                "  - name: weapons",
                "  - 7\n  - name: weapons",
                8,
                "categories[0]",
                "expected a mapping of fields; got the number 7",
            ),
            ("threshold: 0.31", "<<: {threshold: 0.3}", 14, "categories[0]", "merge keys"),
            ("threshold: 0.31", "off: 0.31", 14, "categories[0]", "'off', which YAML reads as bool"),
            ("threshold: 0.31", "[a]: 0.31", 14, "categories[0]", "got a list or mapping"),
            ("threshold: 0.31", "action: review\n    action: allow", 15, "categories[0].action", "first on line 14"),
            ("threshold: 0.31", "threshold: !!python/object/apply:os.getcwd []", 14, "categories[0].threshold", "tag"),
            ("threshold: 0.31", "threshold: !!binary aGk=", 14, "categories[0].threshold", "tag !!binary"),
            ("threshold: 0.31", "threshold: !!int x", 14, "categories[0].threshold", "can't read 'x' as int"),
            ("threshold: 0.31", "threshold: !!bool maybe", 14, "categories[0].threshold", "can't read 'maybe' as bool"),
            ("threshold: 0.31", "threshold: 2026-99-99", 14, "categories[0].threshold", "can't read '2026-99-99'"),
            ("threshold: 0.31", "threshold: *nothing", 14, "", "undefined alias"),
            ("threshold: 0.31", "\tthreshold: 0.31", 14, "", "no tabs"),
            ("threshold: 0.31", "threshold: [0.31", 15, "", "not valid YAML"),
            ("on_error: review", "on_error: review\n---\na: b", 7, "", "another document"),
            ("a shelf", "a shelf\x01", 4, "", "U+0001"),
        ],
    )
    def test_each_is_named(self, old: str, new: str, line: int, field: str, words: str, tmp_path: Path) -> None:
        assert GOOD.count(old) >= 1
        found = the_problem(GOOD.replace(old, new, 1), tmp_path)
        assert found[:2] == (line, field), found
        assert words in found[2]

    def test_too_many_prototypes_for_one_transport_problem(self) -> None:
        data = minimal() | {"neutral": [f"thing {i}" for i in range(1023)]}
        Policy.from_data(data)
        data["neutral"].append("one more")
        with pytest.raises(PolicyError, match=r"1,025 prototypes .* at most 1,024"):
            Policy.from_data(data)

    def test_long_text(self) -> None:
        Policy.from_data(minimal(sentences=["x" * 300]))
        with pytest.raises(PolicyError, match="has 301 characters"):
            Policy.from_data(minimal(sentences=["x" * 301]))

    @pytest.mark.parametrize("data", [None, [], "text", 3, {"name": "p"}, {"name": "p", "categories": []}, {1: 2}])
    def test_plain_data_of_the_wrong_shape(self, data: object) -> None:
        with pytest.raises(PolicyError):
            Policy.from_data(data)

    def test_constructor_checks_fields_against_each_other_too(self) -> None:
        with pytest.raises(ValidationError, match="not both"):
            Policy(**minimal(threshold=0.1, target_fpr=0.1))

    def test_unknown_builtin(self) -> None:
        with pytest.raises(ValueError, match="default, demo; got 'strict'"):
            Policy.builtin("strict")


class TestHostileFiles:
    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.yaml", tmp_path, "nul\0byte"):
            with pytest.raises(PolicyError, match="can't be read"):
                Policy.load(path)

    @pytest.mark.parametrize(
        ("data", "line", "words"),
        [
            (b"", None, "expected a mapping of fields; got nothing"),
            (b"# only a comment\n", None, "got nothing"),
            (b"- a\n- b\n", 1, "got a list"),
            (b"just text", 1, "got 'just text'"),
            ("näme: x".encode("latin-1"), 1, "byte 0xe4 at offset 1"),
            (b"name: p\ndescription: \xff\n", 2, "not UTF-8"),
            (GOOD.encode("utf-16"), 1, "not UTF-8"),
            (b"\x89PNG\r\n\x1a\n\0\0", 1, "not UTF-8"),
            (b"\0\0\0\0", 1, "U+0000"),
            (b"x" * (policy_file.MAX_BYTES + 1), None, "larger than 1,048,576 bytes"),
            (b"[" * 100_000, 1, "deeper than 16 levels"),
            (b"{a: " * 100_000, 1, "deeper than 16 levels"),
            (b"- a\n" * 200_000, 10_000, "more than 10,000 values"),
            (b"a: &x [*x]", 1, "inside the value"),
            (b"a: &x {b: *x}", 1, "inside the value"),
        ],
        ids=lambda value: str(value)[:20] if isinstance(value, bytes) else None,
    )
    def test_is_one_named_mistake(self, data: bytes, line: int | None, words: str, tmp_path: Path) -> None:
        found = the_problem(data, tmp_path)
        assert found[0] == line
        assert words in found[2]

    def test_alias_bomb(self, tmp_path: Path) -> None:
        # Nine levels of nine aliases would expand to 9^9 values.
        levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
        assert "more than 10,000 values" in the_problem("\n".join(levels), tmp_path)[2]

    @given(st.binary(max_size=60))
    @settings(max_examples=200, deadline=None)
    def test_any_bytes_give_a_policy_error(self, data: bytes) -> None:
        self._refused(data)

    @given(st.text(alphabet="ab:- \n\t[]{}&*!<'\"#|>?,%@`~0.=\\\ud800é", max_size=40))
    @settings(max_examples=200, deadline=None)
    def test_any_punctuation_gives_a_policy_error(self, text: str) -> None:
        self._refused(text.encode("utf-8", "surrogatepass"))

    @staticmethod
    def _refused(data: bytes) -> None:
        with NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            with pytest.raises(PolicyError):
                Policy.load(file.name)

    @given(st.data())
    @settings(max_examples=100, deadline=None)
    def test_wrong_types_anywhere_are_named(self, data: st.DataObject) -> None:
        """Put junk into a random place of a good policy: it is accepted or every report has a field."""
        junk = st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({})
        )
        tree = copy.deepcopy(yaml.safe_load(GOOD))
        node: Any = tree
        key = data.draw(st.sampled_from(sorted(tree)))
        while isinstance(node[key], (dict, list)) and node[key] and data.draw(st.booleans()):
            node = node[key]
            key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node[key] = data.draw(junk)
        assert all(each.field for each in mistakes(tree))
