"""A saved bank comes back exactly, and is never used with another policy or encoder than its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from guardcore.encoders.protocol import ImageEmbedding
from guardcore.policy.policy import Policy
from guardcore.prototypes import bank as prototypes
from guardcore.prototypes.bank import BankFileError, FingerprintError, PrototypeBank


class FakeEncoder:
    """Maps a text to a vector drawn from its hash and counts the calls."""

    image_size, grid, width = 8, 2, 16

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()
        self.calls = 0

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.calls += 1
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") for text in texts]
        return torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def preprocess(self, images: Sequence[Any]) -> Tensor:
        raise NotImplementedError

    def embed_images(self, pixels: Tensor) -> ImageEmbedding:
        raise NotImplementedError


def make_policy(**changes: Any) -> Policy:
    categories = [{"name": "weapons", "nouns": ["a gun", "a knife", "a bow"]}, {"name": "fire", "nouns": ["a fire"]}]
    return Policy.from_data({"name": "p", "neutral": ["a shelf", "a chair"], "categories": categories} | changes)


class TestFile:
    def test_round_trip_is_exact(self, tmp_path: Path) -> None:
        policy, encoder = make_policy(), FakeEncoder()
        bank = PrototypeBank.build(policy, encoder)
        bank.save(tmp_path / "b.safetensors")
        again = PrototypeBank.load(tmp_path / "b.safetensors", policy, encoder)
        for field in dataclasses.fields(bank):
            before, after = getattr(bank, field.name), getattr(again, field.name)
            assert torch.equal(before, after) if isinstance(before, Tensor) else before == after, field.name
        assert again.fingerprint == bank.fingerprint
        assert os.listdir(tmp_path) == ["b.safetensors"]  # no temporary file stays

    def test_another_policy(self, tmp_path: Path) -> None:
        policy, encoder = make_policy(), FakeEncoder()
        PrototypeBank.build(policy, encoder).save(tmp_path / "b")
        other = make_policy(neutral=["a table"])
        with pytest.raises(FingerprintError) as caught:
            PrototypeBank.load(tmp_path / "b", other, encoder)
        assert policy.texts_fingerprint[:16] in str(caught.value)
        assert other.texts_fingerprint[:16] in str(caught.value)
        assert "encoder" not in str(caught.value)

    def test_another_encoder(self, tmp_path: Path) -> None:
        encoder, other = FakeEncoder(), FakeEncoder(name="other")
        PrototypeBank.build(make_policy(), encoder).save(tmp_path / "b")
        with pytest.raises(FingerprintError) as caught:
            PrototypeBank.load(tmp_path / "b", make_policy(), other)
        assert encoder.fingerprint[:16] in str(caught.value)
        assert other.fingerprint[:16] in str(caught.value)
        assert "texts" not in str(caught.value)

    def test_another_format(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        PrototypeBank.build(make_policy(), FakeEncoder()).save(tmp_path / "b")
        monkeypatch.setattr(prototypes, "BANK_VERSION", 2)
        with pytest.raises(FingerprintError, match="bank format: 1 in the file, 2 now"):
            PrototypeBank.load(tmp_path / "b", make_policy(), FakeEncoder())

    def test_thresholds_and_actions_do_not_void_a_bank(self, tmp_path: Path) -> None:
        PrototypeBank.build(make_policy(), FakeEncoder()).save(tmp_path / "b")
        PrototypeBank.load(tmp_path / "b", make_policy(target_fpr=0.05, on_error="allow"), FakeEncoder())

    @pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
    def test_truncated(self, keep: int, tmp_path: Path) -> None:
        PrototypeBank.build(make_policy(), FakeEncoder()).save(tmp_path / "b")
        (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:keep])
        with pytest.raises(BankFileError, match="not a safetensors file, or damaged"):
            PrototypeBank.load(tmp_path / "b", make_policy(), FakeEncoder())

    @pytest.mark.parametrize("data", [b"", b"PK\3\4", b"\x80\x04]", b"name: policy", b"\xff" * 64])
    def test_not_safetensors(self, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(BankFileError):
            PrototypeBank.load(tmp_path / "b", make_policy(), FakeEncoder())

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            PrototypeBank.load(tmp_path / "none", make_policy(), FakeEncoder())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"metadata": None}, "expected the format"),
            ({"metadata": {"format": "pt"}}, "got 'pt'"),
            ({"tensors": {"prototypes": torch.ones(1)}}, "expected the tensors"),
            ({"bank": "{"}, "not JSON"),
            ({"bank": "[" * 100_000}, "not JSON"),
            ({"bank": "[]"}, "JSON object; got list"),
            ({"drop": "labels"}, "don't fit together"),
            ({"set": ("labels", 3)}, "don't fit together"),
            ({"set": ("labels", [[1, 2, 3], ["a"]])}, "don't fit together"),
            ({"set": ("categories", ["weapons"])}, "don't fit together"),
            ({"set": ("cost_spread", -1.0)}, "don't fit together"),
            ({"set": ("cost_spread", "wide")}, "don't fit together"),
            ({"nan": True}, "don't fit together"),
        ],
    )
    def test_edited(self, change: dict[str, Any], words: str, tmp_path: Path) -> None:
        policy, encoder = make_policy(), FakeEncoder()
        bank = PrototypeBank.build(policy, encoder)
        bank.save(tmp_path / "good")
        tensors, metadata = prototypes.read_bank(tmp_path / "good")
        if "drop" in change:
            del metadata[change["drop"]]
        if "set" in change:
            metadata[change["set"][0]] = change["set"][1]
        if "nan" in change:
            tensors["prototypes"][0, 0, 0] = math.nan
        header = {"format": "guardcore-prototype-bank", "bank": change.get("bank", json.dumps(metadata))}
        save_file(change.get("tensors", tensors), tmp_path / "b", change.get("metadata", header))
        with pytest.raises(BankFileError, match=words):
            PrototypeBank.load(tmp_path / "b", policy, encoder)

    def test_edited_fingerprint(self, tmp_path: Path) -> None:
        bank = PrototypeBank.build(make_policy(), FakeEncoder())
        bank.save(tmp_path / "good")
        tensors, metadata = prototypes.read_bank(tmp_path / "good")
        prototypes.write_bank(tmp_path / "b", tensors, metadata | {"fingerprint": "0" * 64})
        with pytest.raises(FingerprintError, match="bank: 0000000000000000 in the file"):
            PrototypeBank.load(tmp_path / "b", make_policy(), FakeEncoder())

    def test_a_failed_write_leaves_the_old_file_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bank = PrototypeBank.build(make_policy(), FakeEncoder())
        bank.save(tmp_path / "b")
        before = (tmp_path / "b").read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            bank.with_cost_spread(0.5).save(tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == before
        assert os.listdir(tmp_path) == ["b"]


class TestCache:
    def test_builds_once(self, tmp_path: Path) -> None:
        encoder = FakeEncoder()
        first = PrototypeBank.cached(make_policy(), encoder, tmp_path / "new" / "cache")
        count = encoder.calls
        second = PrototypeBank.cached(make_policy(), encoder, tmp_path / "new" / "cache")
        assert encoder.calls == count
        assert torch.equal(first.prototypes, second.prototypes)

    def test_each_fingerprint_has_its_own_file(self, tmp_path: Path) -> None:
        pairs = [
            (make_policy(), FakeEncoder()),
            (make_policy(neutral=["a table"]), FakeEncoder()),
            (make_policy(), FakeEncoder(name="other")),
        ]
        banks = [PrototypeBank.cached(policy, encoder, tmp_path) for policy, encoder in pairs]
        assert len(os.listdir(tmp_path)) == 3
        again = [PrototypeBank.cached(policy, encoder, tmp_path) for policy, encoder in pairs]
        assert [bank.fingerprint for bank in again] == [bank.fingerprint for bank in banks]

    @pytest.mark.parametrize("damage", ["garbage", "another bank"])
    def test_a_file_that_is_not_ours_is_replaced_with_a_warning(self, damage: str, tmp_path: Path) -> None:
        PrototypeBank.cached(make_policy(), FakeEncoder(), tmp_path)
        (path,) = tmp_path.iterdir()
        if damage == "garbage":
            path.write_bytes(b"garbage")
        else:
            PrototypeBank.build(make_policy(), FakeEncoder(name="other")).save(path)
        with pytest.warns(UserWarning, match="built anew"):
            bank = PrototypeBank.cached(make_policy(), FakeEncoder(), tmp_path)
        assert bank.encoder_name == "fake"
        assert PrototypeBank.load(path, make_policy(), FakeEncoder()).encoder_name == "fake"

    def test_a_folder_that_cannot_be_written_is_done_without(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way", encoding="utf-8")
        with pytest.warns(UserWarning, match="can't be cached"):
            bank = PrototypeBank.cached(make_policy(), FakeEncoder(), tmp_path / "file")
        assert bank.categories == ("weapons", "fire")
