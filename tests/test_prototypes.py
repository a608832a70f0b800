"""A bank holds what the definition says, and is never used with another policy or encoder than its own."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from guardcore.encoders.protocol import ImageEmbedding
from guardcore.policy.policy import Policy
from guardcore.prototypes import embedding as prompt_embedding
from guardcore.prototypes.bank import PromptError, PrototypeBank

WIDTH = 16


class FakeEncoder:
    """Maps a text to a vector drawn from its hash, unless `vectors` has one; refuses texts that hold `unknown`."""

    image_size, grid, width = 8, 2, WIDTH

    def __init__(
        self, *, name: str = "fake", vectors: Mapping[str, Sequence[float]] | None = None, unknown: str = ""
    ) -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()
        self.vectors = dict(vectors or {})
        self.unknown = unknown
        self.calls: list[int] = []

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.calls.append(len(texts))
        for text in texts:
            if self.unknown and self.unknown in text:
                raise ValueError(f"unknown word {self.unknown!r}")
        return torch.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> Tensor:
        if text in self.vectors:
            return torch.tensor(self.vectors[text], dtype=torch.float32)
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) * 3

    def preprocess(self, images: Sequence[Any]) -> Tensor:
        raise NotImplementedError

    def embed_images(self, pixels: Tensor) -> ImageEmbedding:
        raise NotImplementedError


def make_policy(**changes: Any) -> Policy:
    data: dict[str, Any] = {
        "name": "p",
        "templates": ["a photo of {}", "a drawing of {}"],
        "neutral": ["a shelf", "a chair"],
        "categories": [
            {
                "name": "weapons",
                "nouns": ["a gun", "a knife"],
                "sentences": ["they fight"],
                "safe_lookalikes": ["a toy"],
            },
            {"name": "fire", "nouns": ["a fire"]},
        ],
    }
    return Policy.from_data(data | changes)


def single(vectors: Mapping[str, Sequence[float]], *nouns: str, **changes: Any) -> tuple[Policy, FakeEncoder]:
    """One category of bare nouns and an encoder with chosen vectors."""
    categories = [{"name": "c", "nouns": list(nouns)}]
    policy = make_policy(**({"templates": ["{}"], "neutral": [], "categories": categories} | changes))
    return policy, FakeEncoder(vectors=vectors)


def axis(i: int, scale: float = 1.0) -> list[float]:
    return [scale if j == i else 0.0 for j in range(WIDTH)]


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


class TestBuild:
    def test_layout(self) -> None:
        bank = PrototypeBank.build(make_policy(), FakeEncoder())
        assert bank.categories == ("weapons", "fire")
        assert bank.labels == (("a gun", "a knife", "they fight"), ("a fire",))
        assert bank.neutral_labels == ("a shelf", "a chair", "a toy")
        assert bank.prototypes.shape == (2, 3, WIDTH)
        assert bank.neutral.shape == (3, WIDTH)
        assert {bank.prototypes.dtype, bank.weights.dtype, bank.neutral.dtype} == {torch.float32}
        assert bank.weights.tolist() == [[1, 1, 1], [1, 0, 0]]
        assert not bank.prototypes[1, 1:].any()

    def test_a_noun_is_the_renormalized_mean_over_templates(self) -> None:
        encoder = FakeEncoder()
        bank = PrototypeBank.build(make_policy(), encoder)
        texts = encoder.embed_texts(["a photo of a knife", "a drawing of a knife"]).double()
        expected = unit(unit(texts[0]) + unit(texts[1]))
        torch.testing.assert_close(bank.prototypes[0, 1].double(), expected, atol=1e-7, rtol=0)

    def test_a_sentence_is_literal(self) -> None:
        encoder = FakeEncoder()
        bank = PrototypeBank.build(make_policy(), encoder)
        expected = unit(encoder.embed_texts(["they fight"])[0].double())
        torch.testing.assert_close(bank.prototypes[0, 2].double(), expected, atol=1e-7, rtol=0)

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_length_of_embeddings_does_not_matter(self, scale: float) -> None:
        policy, encoder = single({"x": axis(0, scale), "y": [3 * scale, 4 * scale] + [0.0] * (WIDTH - 2)}, "x", "y")
        bank = PrototypeBank.build(policy, encoder)
        torch.testing.assert_close(bank.prototypes[0, :, :2], torch.tensor([[1.0, 0.0], [0.6, 0.8]]))

    def test_embeds_in_batches_of_bounded_size(self) -> None:
        nouns = [f"thing {i}" for i in range(700)]
        policy, encoder = single({}, *nouns)
        bank = PrototypeBank.build(policy, encoder)
        assert encoder.calls == [256, 256, 188]
        again = FakeEncoder().embed_texts(nouns)
        torch.testing.assert_close(bank.prototypes[0], again / again.norm(dim=1, keepdim=True))

    def test_without_neutral_anchors(self) -> None:
        bank = PrototypeBank.build(*single({}, "x", "y"))
        assert bank.neutral.shape == (0, WIDTH)
        rows, group, weights = bank.joint()
        assert (len(rows), group.tolist(), weights.tolist()) == (2, [0, 0], [1, 1])

    def test_equal_vectors_of_a_category_count_once(self) -> None:
        vectors = {"x": axis(0), "same": axis(0, 7.0), "nearly": [1.0, 1e-3] + [0.0] * (WIDTH - 2)}
        bank = PrototypeBank.build(*single(vectors, "x", "same", "nearly"))
        assert bank.labels == (("x", "nearly"),)

    def test_says_what_it_holds(self) -> None:
        bank = PrototypeBank.build(make_policy(), FakeEncoder()).with_cost_spread(0.0151)
        expected = "2 categories, 4 prototypes, 3 neutral anchors by fake; cost spread 0.0151 from images"
        assert str(bank) == expected


class TestRefusals:
    def test_unknown_words_name_every_category_and_label(self) -> None:
        policy = make_policy(
            neutral=["a zorb", "a chair"],
            categories=[
                {"name": "weapons", "nouns": ["a gun", "a zorb gun"]},
                {"name": "fire", "sentences": ["zorb on fire"]},
            ],
        )
        with pytest.raises(PromptError) as caught:
            PrototypeBank.build(policy, FakeEncoder(unknown="zorb"))
        assert str(caught.value) == (
            "fake can't read:\n"
            "  category 'weapons', 'a zorb gun': unknown word 'zorb'\n"
            "  category 'fire', 'zorb on fire': unknown word 'zorb'\n"
            "  neutral 'a zorb': unknown word 'zorb'"
        )

    def test_a_template_does_not_hide_an_unknown_noun(self) -> None:
        class Forgiving(FakeEncoder):
            """Refuses a text only if no word of it is known, as the built-in encoder does."""

            def embed_texts(self, texts: Sequence[str]) -> Tensor:
                if any(text == "a zorb" for text in texts):
                    raise ValueError("knows no word of it")
                return super().embed_texts(texts)

        policy = make_policy(categories=[{"name": "weapons", "nouns": ["a zorb"]}])
        with pytest.raises(PromptError, match="category 'weapons', 'a zorb': knows no word of it"):
            PrototypeBank.build(policy, Forgiving())

    @pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
    def test_unusable_embeddings(self, value: float) -> None:
        policy, encoder = single({"bad": [value] * WIDTH}, "good", "bad")
        with pytest.raises(PromptError, match=r"zero or not a finite vector:\n  category 'c', 'bad'$"):
            PrototypeBank.build(policy, encoder)

    def test_templates_that_cancel_out(self) -> None:
        vectors = {"a photo of x": axis(0), "a drawing of x": axis(0, -2.0)}
        policy = make_policy(neutral=[], categories=[{"name": "c", "nouns": ["x", "y"]}])
        with pytest.raises(PromptError, match=r"cancel out:\n  category 'c', 'x'$"):
            PrototypeBank.build(policy, FakeEncoder(vectors=vectors))

    def test_unsafe_and_neutral_with_one_vector(self) -> None:
        policy, encoder = single({"x": axis(0), "y": axis(0)}, "x", neutral=["y"])
        with pytest.raises(PromptError, match="fake can't tell apart:\n  category 'c', 'x' and neutral 'y'"):
            PrototypeBank.build(policy, encoder)

    def test_two_categories_with_one_vector(self) -> None:
        categories = [{"name": "c", "nouns": ["x"]}, {"name": "d", "nouns": ["y"]}]
        policy, encoder = single({"x": axis(0), "y": axis(0)}, categories=categories)
        with pytest.raises(PromptError, match="category 'c', 'x' and category 'd', 'y'"):
            PrototypeBank.build(policy, encoder)

    @pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (2, WIDTH + 1)])
    def test_an_encoder_that_breaks_its_contract(self, shape: tuple[int, ...]) -> None:
        class Broken(FakeEncoder):
            def embed_texts(self, texts: Sequence[str]) -> Tensor:  # noqa: ARG002
                return torch.ones(shape)

        policy, _ = single({}, "x", "y")
        with pytest.raises(ValueError, match=r"expected text embeddings \[2, 16\]; got"):
            PrototypeBank.build(policy, Broken())

    def test_other_errors_of_the_encoder_pass(self) -> None:
        class Failing(FakeEncoder):
            def embed_texts(self, texts: Sequence[str]) -> Tensor:
                raise RuntimeError(f"no memory for {len(texts)} texts")

        with pytest.raises(RuntimeError, match="no memory"):
            PrototypeBank.build(make_policy(), Failing())

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("cost_spread", 0.0),
            ("cost_spread", math.nan),
            ("spread_source", "guess"),
            ("weights", torch.ones(2, 3)),
            ("weights", torch.ones(2, 2)),
            ("prototypes", torch.zeros(2, 3, WIDTH)),
            ("prototypes", torch.ones(2, 3, WIDTH, dtype=torch.float64)),
            ("prototypes", torch.tensor(1.0)),
            ("neutral", torch.full((3, WIDTH), math.nan)),
            ("neutral_labels", ("a shelf",)),
            ("categories", ("weapons",)),
            ("labels", (("a gun",), ())),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_bank_that_contradicts_itself_cannot_exist(self, field: str, value: object) -> None:
        bank = PrototypeBank.build(make_policy(), FakeEncoder())
        with pytest.raises(ValueError, match=r"expected"):
            dataclasses.replace(bank, **{field: value})


class TestJoint:
    @given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 4))
    @settings(max_examples=25, deadline=None)
    def test_lists_every_prototype_once_with_its_group(self, sizes: list[int], anchors: int) -> None:
        categories = [{"name": f"c{i}", "nouns": [f"n{i} {j}" for j in range(n)]} for i, n in enumerate(sizes)]
        policy = make_policy(categories=categories, neutral=[f"anchor {i}" for i in range(anchors)])
        bank = PrototypeBank.build(policy, FakeEncoder())
        rows, group, weights = bank.joint()
        assert group.tolist() == [i for i, n in enumerate(sizes) for _ in range(n)] + [len(sizes)] * anchors
        assert group.dtype == torch.int64
        assert weights.tolist() == [1.0] * len(rows)
        expected = [bank.prototypes[i, j] for i, n in enumerate(sizes) for j in range(n)] + list(bank.neutral)
        assert torch.equal(rows, torch.stack(expected))


class TestBuiltinPolicies:
    def test_default_policy_becomes_a_bank(self) -> None:
        bank = PrototypeBank.build(Policy.default(), FakeEncoder())
        assert len(bank.categories) >= 12
        assert len(bank.joint()[0]) <= 1024

    def test_the_builtin_encoder_knows_every_word_of_the_demo_policy(self) -> None:
        from guardcore.encoders import load_encoder
        from guardcore.encoders.builtin import split_words

        encoder = load_encoder("builtin")
        policy = Policy.builtin("demo")
        bank = PrototypeBank.build(policy, encoder)
        assert bank.categories == tuple(category.name for category in policy.categories)
        labels = [*(label for group in bank.labels for label in group), *bank.neutral_labels]
        words = {word for label in labels for word in split_words(label)}
        for word in sorted(words):
            encoder.embed_texts([word])  # raises ValueError for a word that it doesn't know
        assert sum(map(len, bank.labels)) == sum(len(category.nouns) for category in policy.categories)


def test_reading_a_policy_needs_no_torch() -> None:
    code = "import sys; import guardcore.policy.policy as p; p.Policy.default(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1]).returncode == 0


def test_unit_rows_does_not_overflow() -> None:
    rows = torch.tensor([[3e300, 4e300], [3e-300, 4e-300], [-1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.8], [0.6, 0.8], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(prompt_embedding.unit_rows(rows), expected)
