"""From texts to prototypes: embed, average over templates, and refuse what an encoder can't read or tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from guardcore.encoders.protocol import Encoder
from guardcore.policy.policy import Concept

NEUTRAL = "neutral"  # no category can be called so
_BATCH = 256  # texts an encoder gets at once, which bounds its memory
_SAME = 1e-5  # distance of unit vectors below which two texts are one prototype: fp32 noise is about 1e-6


class PromptError(ValueError):
    """Texts of a policy that an encoder can't use; the message names each category and label."""


class Embedded(NamedTuple):
    """A group's labels and their unit vectors `[K, D]` fp32."""

    labels: tuple[str, ...]
    vectors: Tensor


def embed_concepts(groups: Mapping[str, Sequence[Concept]], encoder: Encoder) -> dict[str, Embedded]:
    """Embed every concept of every group as one unit vector.

    Raises:
        PromptError: the encoder raised ValueError on a text, returned a non-finite or zero vector, or mapped concepts
            of two groups to the same vector.
        ValueError: the encoder returned something else than `[T, D]`.
    """
    concepts = [(name, concept) for name, group in groups.items() for concept in group]
    vectors = _average(concepts, _embed_texts(concepts, encoder))
    keep = _first_of_equals(concepts, vectors, encoder.name)
    result = {}
    for name in groups:
        rows = [i for i in keep if concepts[i][0] == name]
        result[name] = Embedded(tuple(concepts[i][1].label for i in rows), vectors[rows].float())
    return result


def unit_rows(rows: Tensor) -> Tensor:
    """Scale nonzero rows `[K, D]` to unit length, by the largest entry first, so that no square over- or underflows."""
    scaled = rows / rows.abs().amax(1, keepdim=True)
    length: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / length


def _embed_texts(concepts: Sequence[tuple[str, Concept]], encoder: Encoder) -> Tensor:
    """Embed all texts, `[T, D]` fp64; if that fails, try the concepts one by one to name those at fault.

    Bare labels are read too and thrown away: an encoder with a small vocabulary would otherwise accept a noun that it
    doesn't know for the sake of the template around it.
    """
    texts = [text for _, concept in concepts for text in concept.texts]
    read = texts + [concept.label for _, concept in concepts if concept.label not in concept.texts]
    try:
        parts = [_embed_batch(read[i : i + _BATCH], encoder) for i in range(0, len(read), _BATCH)]
    except ValueError as error:
        faults = list(filter(None, (_fault(name, concept, encoder) for name, concept in concepts)))
        if not faults:
            raise
        raise PromptError(_report(f"{encoder.name} can't read", faults)) from error
    return torch.cat(parts)[: len(texts)]


def _embed_batch(texts: list[str], encoder: Encoder) -> Tensor:
    vectors = encoder.embed_texts(texts)
    if tuple(vectors.shape) != (len(texts), encoder.width):
        shape = tuple(vectors.shape)
        raise ValueError(f"{encoder.name}: expected text embeddings [{len(texts)}, {encoder.width}]; got {shape}")
    return vectors.detach().to("cpu", torch.float64)


def _fault(name: str, concept: Concept, encoder: Encoder) -> str | None:
    try:
        encoder.embed_texts([concept.label, *concept.texts])
    except ValueError as error:
        return f"{_place(name, concept)}: {error}"
    return None


def _average(concepts: Sequence[tuple[str, Concept]], vectors: Tensor) -> Tensor:
    """Average each concept's texts: unit vectors in, unit vector out, `[K, D]` fp64."""
    usable = vectors.isfinite().all(1) & (vectors != 0).any(1)
    sizes = [len(concept.texts) for _, concept in concepts]
    faults = [_place(*each) for each, ok in zip(concepts, torch.split(usable, sizes), strict=True) if not ok.all()]
    if faults:
        raise PromptError(_report("embedded as zero or not a finite vector", faults))
    means = torch.stack([rows.mean(0) for rows in torch.split(unit_rows(vectors), sizes)])
    faults = [_place(*each) for each, length in zip(concepts, means.norm(dim=1), strict=True) if length < 1e-6]
    if faults:
        raise PromptError(_report("templates whose embeddings cancel out", faults))
    return unit_rows(means)


def _first_of_equals(concepts: Sequence[tuple[str, Concept]], vectors: Tensor, encoder: str) -> list[int]:
    """Return the rows to keep: of equal vectors in one group the first. Between groups equality is an error."""
    # |x - y|^2 = 2 - 2 cos for unit vectors; fp64 resolves it to 1e-15, far below _SAME^2.
    equal = (2 - 2 * vectors @ vectors.T) <= _SAME**2
    pairs = [(i, j) for i, j in equal.triu(1).nonzero().tolist()]
    faults = [
        f"{_place(*concepts[i])} and {_place(*concepts[j])}" for i, j in pairs if concepts[i][0] != concepts[j][0]
    ]
    if faults:
        raise PromptError(_report(f"{encoder} can't tell apart", faults))
    repeated = {j for _, j in pairs}
    return [i for i in range(len(concepts)) if i not in repeated]


def _place(name: str, concept: Concept) -> str:
    return f"neutral {concept.label!r}" if name == NEUTRAL else f"category {name!r}, {concept.label!r}"


def _report(what: str, faults: list[str]) -> str:
    return "\n  ".join([f"{what}:", *faults])
