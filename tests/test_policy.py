"""A policy file means what it seems to mean, and the shipped policies and the guide keep their word."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guardcore.policy import file as policy_file
from guardcore.policy.policy import BUILTIN, Policy, PolicyError
from guardcore.policy.taxonomy import MLCOMMONS, OPENAI_IMAGE

ROOT = Path(__file__).parents[1]
GOOD = (ROOT / "tests" / "data" / "shop_policy.yaml").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")


def minimal(**fields: object) -> dict[str, Any]:
    return {"name": "p", "categories": [{"name": "c", "nouns": ["a thing"], **fields}]}


def load(text: str, tmp_path: Path) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return Policy.load(path)


class TestMeaning:
    def test_every_field_arrives(self, tmp_path: Path) -> None:
        policy = load(GOOD, tmp_path)
        weapons, tobacco = policy.categories
        assert (policy.name, policy.version, policy.target_fpr, policy.on_error) == ("shop", "2", 0.02, "review")
        assert (weapons.threshold, weapons.target_fpr, weapons.action) == (0.31, None, "block")
        assert (tobacco.threshold, tobacco.target_fpr, tobacco.action) == (None, 0.005, "review")
        assert (weapons.maps.mlcommons, weapons.maps.openai) == (("S1",), ("violence",))

    def test_prompts_are_templates_times_nouns_then_sentences(self, tmp_path: Path) -> None:
        weapons, tobacco = load(GOOD, tmp_path).categories
        assert weapons.prompts() == [
            "a photo of a handgun",
            "a drawing of a handgun",
            "a photo of a dagger",
            "a drawing of a dagger",
            "somebody points a gun at the clerk",
        ]
        assert [concept.label for concept in weapons.concepts()] == [*weapons.nouns, *weapons.sentences]
        assert tobacco.prompts() == ["a cigarette"]  # a category's own templates replace the policy's

    def test_neutral_concepts_hold_each_label_once(self, tmp_path: Path) -> None:
        labels = [concept.label for concept in load(GOOD, tmp_path).neutral_concepts()]
        assert labels == ["a shelf", "a cash desk", "a water pistol"]

    def test_defaults_block(self) -> None:
        policy = Policy.from_data(minimal())
        assert (policy.on_error, policy.categories[0].action) == ("block", "block")
        assert policy.categories[0].prompts() == ["a photo of a thing"]

    def test_white_space_is_collapsed(self, tmp_path: Path) -> None:
        text = "name: p\ncategories:\n  - name: c\n    sentences:\n      - >\n        two\n        lines\n"
        assert load(text, tmp_path).categories[0].sentences == ("two lines",)

    def test_aliases_repeat_a_list(self, tmp_path: Path) -> None:
        text = "name: p\ntemplates: &t ['{}', 'the {}']\ncategories:\n  - {name: c, nouns: [x], templates: *t}\n"
        assert load(text, tmp_path).categories[0].prompts() == ["x", "the x"]

    @pytest.mark.parametrize("name", BUILTIN)
    def test_reads_plain_files_as_safe_load_does(self, name: str) -> None:
        path = ROOT / "guardcore" / "data" / "policies" / f"{name}.yaml"
        assert policy_file.read_policy_file(path).data == yaml.safe_load(path.read_text(encoding="utf-8"))

    def test_accepts_a_byte_order_mark(self, tmp_path: Path) -> None:
        assert load("\ufeff" + GOOD, tmp_path) == load(GOOD, tmp_path)

    def test_prints_a_table(self, tmp_path: Path) -> None:
        text = str(load(GOOD, tmp_path))
        assert "weapons  block      3 prototypes,   2 look-alikes  t <= 0.31" in text
        assert "own target 0.005" in text
        assert "3 neutral anchors" in text

    def test_is_immutable_and_survives_pickling_and_json(self, tmp_path: Path) -> None:
        policy = load(GOOD, tmp_path)
        with pytest.raises(ValidationError):
            policy.name = "other"  # type: ignore[misc]
        assert pickle.loads(pickle.dumps(policy)) == policy
        assert Policy.from_data(json.loads(policy.model_dump_json())).fingerprint == policy.fingerprint


class TestFingerprints:
    def test_are_sha256_and_repeat(self, tmp_path: Path) -> None:
        policy = load(GOOD, tmp_path)
        assert len(policy.fingerprint) == 64
        assert policy.fingerprint == load(GOOD + "# a comment\n", tmp_path).fingerprint

    @pytest.mark.parametrize(
        ("old", "new", "texts_change"),
        [
            ("0.31", "0.32", False),
            ("action: review", "action: allow", False),
            ("on_error: review", "on_error: block", False),
            ("Firearms and", "Guns and", False),
            ("[S1]", "[S2]", False),
            ("a dagger", "a saber", True),
            ("a drawing of {}", "a sketch of {}", True),
            ("a shelf", "a rack", True),
            ("a water pistol", "a toy gun", True),
            ("name: tobacco", "name: smoking", True),
            ("[a handgun, a dagger]", "[a dagger, a handgun]", True),  # rows of the bank change places
        ],
    )
    def test_change_with_what_they_cover(self, old: str, new: str, texts_change: bool, tmp_path: Path) -> None:
        before, after = load(GOOD, tmp_path), load(GOOD.replace(old, new), tmp_path)
        assert after.fingerprint != before.fingerprint
        assert (after.texts_fingerprint != before.texts_fingerprint) is texts_change

    @given(st.permutations(["name", "version", "templates", "neutral", "target_fpr", "on_error", "categories"]))
    @settings(max_examples=20, deadline=None)
    def test_do_not_depend_on_the_order_of_fields(self, order: list[str]) -> None:
        data = yaml.safe_load(GOOD)
        assert Policy.from_data({key: data[key] for key in order}).fingerprint == Policy.from_data(data).fingerprint


class TestBuiltinPolicies:
    def test_default_policy_covers_the_taxonomies(self) -> None:
        policy = Policy.default()
        hazards = {code for category in policy.categories for code in category.maps.mlcommons}
        # No picture shows defamation, advice, copyright, elections or code abuse by itself.
        assert hazards == set(MLCOMMONS) - {"S5", "S6", "S8", "S13", "S14"}
        assert {name for category in policy.categories for name in category.maps.openai} == set(OPENAI_IMAGE)

    def test_default_policy_is_rich(self) -> None:
        policy = Policy.default()
        assert len(policy.neutral) >= 60
        assert len(policy.templates) >= 3
        for category in policy.categories:
            assert len(category.concepts()) >= 12, category.name
            assert len(category.safe_lookalikes) >= 8, category.name
            assert category.description

    def test_demo_policy_has_the_categories_of_the_art(self) -> None:
        concepts = json.loads((ROOT / "bench" / "art" / "concepts.json").read_text(encoding="utf-8"))["concepts"]
        unsafe: dict[str, list[str]] = {}
        for concept in concepts:
            if concept["category"]:
                unsafe.setdefault(concept["category"], []).append(concept["name"])
        policy = Policy.builtin("demo")
        assert {category.name: list(category.nouns) for category in policy.categories} == unsafe

    def test_demo_policy_makes_every_harmless_concept_an_anchor(self) -> None:
        concepts = json.loads((ROOT / "bench" / "art" / "concepts.json").read_text(encoding="utf-8"))["concepts"]
        harmless = {concept["name"] for concept in concepts if not concept["category"]}
        anchors = [concept.label for concept in Policy.builtin("demo").neutral_concepts()]
        assert sorted(anchors) == sorted(harmless | {"background"})


class TestGuide:
    def test_example_is_valid(self) -> None:
        text = re.search(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
        assert text is not None
        assert Policy.from_data(yaml.safe_load(text[1])).name == "shop"

    def test_shown_mistakes_are_what_comes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "mine.yaml").write_text(
            "name: mine\ncategories:\n  - name: weapons\n    nouns: [a knife, A knife]\n    treshold: 0.2\n"
            "    maps: {openai: [hate]}\n    action: deny\n",
            encoding="utf-8",
        )
        monkeypatch.chdir(tmp_path)
        with pytest.raises(PolicyError) as caught:
            Policy.load("mine.yaml")
        assert f"```\n{caught.value}\n```" in GUIDE

    @pytest.mark.parametrize("code", [*MLCOMMONS, *OPENAI_IMAGE])
    def test_tables_show_what_the_default_policy_maps(self, code: str) -> None:
        row = next(line for line in GUIDE.splitlines() if line.startswith((f"| {code} |", f"| `{code}` |")))
        mapped = [
            each.name for each in Policy.default().categories if code in (*each.maps.mlcommons, *each.maps.openai)
        ]
        assert sorted(re.findall(r"`(\w+)`", row.rsplit("|", 2)[1])) == sorted(mapped)

    def test_every_field_has_a_row(self) -> None:
        for model in (Policy, type(Policy.default().categories[0])):
            for name in model.model_fields:
                assert f"| `{name}` |" in GUIDE, name
