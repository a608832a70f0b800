"""PrototypeBank: a policy's texts as one encoder's vectors, cached under a fingerprint of both."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardcore.encoders.protocol import Encoder
from guardcore.policy.policy import Policy
from guardcore.prototypes.embedding import NEUTRAL, PromptError, embed_concepts, unit_rows
from guardcore.prototypes.file import BankFileError, read_bank, write_bank

__all__ = ["BankFileError", "FingerprintError", "PromptError", "PrototypeBank", "image_cost_spread"]

BANK_VERSION = 1  # raise it when the same policy and encoder start to give other tensors
SMALLEST_SPREAD = 1e-3  # keeps epsilon positive for a bank whose costs don't differ, such as a single prototype


class FingerprintError(ValueError):
    """A bank made from another policy, by another encoder or in another format than the ones at hand."""


@dataclass(frozen=True, eq=False)
class PrototypeBank:
    """A policy embedded by one encoder: C categories with up to M prototypes each and A neutral anchors, of width D.

    A noun is one prototype: the embeddings of its texts (one a template) are scaled to unit length, averaged and scaled
    to unit length again, the prompt ensembling of CLIP (Radford et al. 2021, section 3.1.4). A literal sentence is one
    prototype. Texts that the encoder maps to the same vector within a category count once.

    Attributes:
        categories: C names, in policy order.
        labels: per category its nouns and sentences, one a prototype.
        neutral_labels: A labels: the policy's neutral anchors, then all categories' safe look-alikes.
        prototypes: `[C, M, D]` fp32, unit length, zero on padding.
        weights: `[C, M]` fp32, 1 for a prototype and 0 on padding.
        neutral: `[A, D]` fp32, unit length; A may be 0.
        cost_spread: scale of the differences between costs 1 - cos, > 0; the detector's epsilon is a multiple of it.
        spread_source: "texts" (between the bank's own vectors) or "images" (measured, see `with_cost_spread`).
        policy_fingerprint: `Policy.texts_fingerprint` of the policy.
        encoder_fingerprint: `fingerprint` of the encoder.
        encoder_name: for people.
    """

    categories: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    neutral_labels: tuple[str, ...]
    prototypes: Tensor
    weights: Tensor
    neutral: Tensor
    cost_spread: float
    spread_source: str
    policy_fingerprint: str
    encoder_fingerprint: str
    encoder_name: str

    def __post_init__(self) -> None:
        """Raise ValueError if the parts don't fit together: a bank that exists can be trusted."""
        _check_shapes(self)
        _check_values(self)

    @classmethod
    def build(cls, policy: Policy, encoder: Encoder) -> PrototypeBank:
        """Embed every text of the policy.

        Raises:
            PromptError: texts that the encoder can't read, that it maps to nothing, or that it can't tell apart
                although one is unsafe and the other neutral or of another category; names each category and label.
        """
        concepts = {category.name: category.concepts() for category in policy.categories}
        groups = embed_concepts({**concepts, NEUTRAL: policy.neutral_concepts()}, encoder)
        neutral = groups.pop(NEUTRAL)
        rows = [group.vectors for group in groups.values()]
        prototypes = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        counts = torch.tensor([len(group.labels) for group in groups.values()])
        return cls(
            categories=tuple(groups),
            labels=tuple(group.labels for group in groups.values()),
            neutral_labels=neutral.labels,
            prototypes=prototypes,
            weights=(torch.arange(prototypes.shape[1]) < counts[:, None]).float(),
            neutral=neutral.vectors,
            cost_spread=_text_cost_spread(torch.cat([*rows, neutral.vectors])),
            spread_source="texts",
            policy_fingerprint=policy.texts_fingerprint,
            encoder_fingerprint=encoder.fingerprint,
            encoder_name=encoder.name,
        )

    @classmethod
    def load(cls, path: str | Path, policy: Policy, encoder: Encoder) -> PrototypeBank:
        """Read a saved bank.

        Raises:
            FingerprintError: it was made from other texts, by another encoder or in another format; says which.
            BankFileError: the file is no bank, or damaged.
            OSError: it can't be read.
        """
        tensors, metadata = read_bank(path)
        _check_fingerprints(path, metadata, policy, encoder)
        try:
            parts: dict[str, Any] = {**tensors, **_from_metadata(metadata)}
            return cls(**parts)
        except (KeyError, TypeError, ValueError) as error:
            raise BankFileError(f"{path}: its parts don't fit together: {error}") from error

    @classmethod
    def cached(cls, policy: Policy, encoder: Encoder, cache_dir: str | Path) -> PrototypeBank:
        """Load the bank of this policy and encoder from `cache_dir`, or build it and leave it there.

        The file is named after the fingerprint, so a changed policy or encoder gets a file of its own. A damaged file
        is replaced and a folder that can't be written is done without, both with a warning. Raises as `build` does.
        """
        fingerprint = _fingerprint(policy.texts_fingerprint, encoder.fingerprint)
        path = Path(cache_dir) / f"{policy.name}-{fingerprint[:24]}.safetensors"
        if path.exists():
            try:
                return cls.load(path, policy, encoder)
            except (BankFileError, FingerprintError, OSError) as error:
                warnings.warn(f"the cached prototypes are built anew: {error}", stacklevel=2)
        bank = cls.build(policy, encoder)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            bank.save(path)
        except OSError as error:
            warnings.warn(f"the prototypes can't be cached: {error}", stacklevel=2)
        return bank

    def save(self, path: str | Path) -> None:
        """Write the bank as safetensors, in one step; raise OSError if the file can't be written."""
        tensors = {"prototypes": self.prototypes, "weights": self.weights, "neutral": self.neutral}
        metadata = {name: getattr(self, name) for name in _METADATA}
        write_bank(path, tensors, {"version": BANK_VERSION, "fingerprint": self.fingerprint, **metadata})

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the policy's texts, the encoder and the bank's format; not over the cost spread."""
        return _fingerprint(self.policy_fingerprint, self.encoder_fingerprint)

    def joint(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all prototypes as one set, as `guardcore.ops.joint_sinkhorn` takes them.

        Returns:
            prototypes `[Mt, D]` fp32 (categories in order, then neutral anchors), group `[Mt]` int64 (the category's
            index; C for neutral, so that there are C + 1 groups even without anchors), weights `[Mt]` fp32, all 1.
        """
        real = self.weights > 0
        anchors = torch.full((len(self.neutral),), len(self.categories))
        group = torch.cat([real.nonzero()[:, 0], anchors])
        return torch.cat([self.prototypes[real], self.neutral]), group, torch.ones(len(group))

    def with_cost_spread(self, value: float) -> PrototypeBank:
        """Return this bank with a spread measured on images (`image_cost_spread`), 0 < value < 2, else ValueError.

        In CLIP-like models cosines differ several times more between texts than between an image's patches and texts.
        Only a measured spread makes the detector's relative epsilon mean the same for every encoder.
        """
        return replace(self, cost_spread=float(value), spread_source="images")

    def __str__(self) -> str:
        """Say in one line what the bank holds."""
        count = sum(map(len, self.labels))
        return (
            f"{len(self.categories)} categories, {count} prototypes, {len(self.neutral_labels)} neutral anchors "
            f"by {self.encoder_name}; cost spread {self.cost_spread:.4g} from {self.spread_source}"
        )


_METADATA = tuple(each.name for each in fields(PrototypeBank) if each.name not in ("prototypes", "weights", "neutral"))


def image_cost_spread(patches: Tensor, bank: PrototypeBank) -> float:
    """Measure how much a patch's costs differ between prototypes: sqrt(mean_n var_m C[n, m]), C = 1 - cos.

    The mean over prototypes is taken out patch by patch, because transport doesn't see what all costs of a patch share.

    Args:
        patches: `[..., D]`, any float type, of benign images; non-finite and zero vectors are left out.
        bank: its prototypes and neutral anchors are the M columns.

    Returns:
        The spread in units of cost, at least SMALLEST_SPREAD.

    Raises:
        ValueError: no usable patch, or another width than the bank's.
    """
    rows = patches.detach().reshape(-1, patches.shape[-1]).to("cpu", torch.float64)
    columns = bank.joint()[0].double()
    if rows.shape[1] != columns.shape[1]:
        raise ValueError(f"patches: expected width {columns.shape[1]}; got {rows.shape[1]}")
    rows = rows[rows.isfinite().all(1) & (rows != 0).any(1)]
    if len(rows) == 0:
        raise ValueError("patches: expected at least one finite, nonzero vector; got none")
    cost = 1 - unit_rows(rows) @ columns.T
    return max(cost.var(1, correction=0).mean().sqrt().item(), SMALLEST_SPREAD)


def _text_cost_spread(vectors: Tensor) -> float:
    """Return the same figure between the bank's own vectors, each against all others."""
    count = len(vectors)
    if count < 3:
        return SMALLEST_SPREAD
    cost = 1 - vectors.double() @ vectors.double().T
    others = cost[~torch.eye(count, dtype=torch.bool)].view(count, count - 1)
    return max(others.var(1, correction=0).mean().sqrt().item(), SMALLEST_SPREAD)


def _fingerprint(policy: str, encoder: str) -> str:
    return hashlib.sha256(json.dumps([BANK_VERSION, policy, encoder]).encode()).hexdigest()


def _check_fingerprints(path: str | Path, metadata: dict[str, Any], policy: Policy, encoder: Encoder) -> None:
    parts = [
        ("bank format", "version", BANK_VERSION),
        (f"texts of policy {policy.name!r}", "policy_fingerprint", policy.texts_fingerprint),
        (f"encoder {encoder.name}", "encoder_fingerprint", encoder.fingerprint),
    ]
    # The whole differs with any part; it is news only in a file whose parts someone edited.
    whole = [("bank", "fingerprint", _fingerprint(policy.texts_fingerprint, encoder.fingerprint))]
    differences = _differences(metadata, parts) or _differences(metadata, whole)
    if differences:
        raise FingerprintError(f"{path}: made from something else; build it anew. {'; '.join(differences)}")


def _differences(metadata: dict[str, Any], expected: Sequence[tuple[str, str, object]]) -> list[str]:
    found = [(what, metadata.get(key), now) for what, key, now in expected if metadata.get(key) != now]
    return [f"{what}: {_short(then)} in the file, {_short(now)} now" for what, then, now in found]


def _short(fingerprint: object) -> str:
    return str(fingerprint)[:16]


def _from_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    values = {name: metadata[name] for name in _METADATA}
    values["categories"] = _names(values["categories"])
    values["neutral_labels"] = _names(values["neutral_labels"])
    values["labels"] = tuple(_names(each) for each in values["labels"])
    return values


def _names(value: Sequence[object]) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"expected a list of texts; got {type(value).__name__}")
    return tuple(str(each) for each in value)


def _check_shapes(bank: PrototypeBank) -> None:
    counts = [len(labels) for labels in bank.labels]
    if not counts or min(counts) == 0 or len(bank.categories) != len(counts):
        raise ValueError(f"labels: expected at least one for each of {len(bank.categories)} categories; got {counts}")
    width = bank.prototypes.shape[-1] if bank.prototypes.ndim else 0
    expected = {
        "prototypes": (len(counts), max(counts), width),
        "weights": (len(counts), max(counts)),
        "neutral": (len(bank.neutral_labels), width),
    }
    for name, shape in expected.items():
        tensor: Tensor = getattr(bank, name)
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ValueError(f"{name}: expected float32 {shape}; got {tensor.dtype} {tuple(tensor.shape)}")
    real = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    if not torch.equal(bank.weights.cpu(), real.float()):
        raise ValueError("weights: expected 1 for each label and 0 on padding")


def _check_values(bank: PrototypeBank) -> None:
    length = torch.cat([bank.prototypes[bank.weights > 0], bank.neutral]).norm(dim=1)
    if not ((length - 1).abs() < 1e-3).all() or bank.prototypes[bank.weights == 0].any():
        raise ValueError("prototypes: expected unit vectors and zero padding; got something else")
    spread = bank.cost_spread
    if not isinstance(spread, float) or not math.isfinite(spread) or not 0 < spread < 2:
        raise ValueError(f"cost_spread: expected a number between 0 and 2, both excluded; got {spread!r}")
    if bank.spread_source not in ("texts", "images"):
        raise ValueError(f"spread_source: expected 'texts' or 'images'; got {bank.spread_source!r}")
