"""Words of the concepts: the vocabulary, and random ways to name a concept while training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guardcore.encoders.builtin import Vocabulary, split_words
from guardcore.evaluation.scenes import Concept

BACKGROUND = ("background", "nothing", "empty background", "plain background", "a photo of nothing", "an empty scene")
TEMPLATES = (
    *("a photo of a {}", "a picture of a {}", "an image of a {}", "a drawing of a {}", "an icon of a {}"),
    *("an emoji of a {}", "a cartoon {}", "a clipart of the {}", "there is a {} in the image", "a scene with a {}"),
    *("this is a {}", "some {}", "one {} and other things", "an image that shows a {}", "a photo containing a {}"),
    *("image of {} objects", "the {}"),
)


def build_vocabulary(concepts: Sequence[Concept]) -> Vocabulary:
    """All words of names, keywords, templates and background texts, sorted."""
    texts = [c.name for c in concepts] + [k for c in concepts for k in c.keywords]
    texts += [c.category.replace("_", " ") for c in concepts if c.category]
    texts += [*BACKGROUND, *(t.format("") for t in TEMPLATES)]
    return Vocabulary(sorted({w for t in texts for w in split_words(t)}))


def concept_words(concept: Concept) -> tuple[str, ...]:
    """Every single word that may stand for the concept: keywords, and the words of its category."""
    extra = split_words(concept.category.replace("_", " ")) if concept.category else []
    filler = {"and", "with", "the", "for"}
    return tuple(dict.fromkeys([*(k for k in concept.keywords if k not in filler), *extra]))


class TextSampler:
    """Draws texts for all concepts at once.

    keywords: the single words that get a loss of their own; `membership` float32 [concepts, keywords] is 1 where a word
    belongs to a concept. unsafe: bool [concepts + 1], the last one for the background.
    """

    def __init__(self, concepts: Sequence[Concept], vocabulary: Vocabulary, seed: int) -> None:
        self.concepts = concepts
        self.vocabulary = vocabulary
        self.unsafe = torch.tensor([*(c.category is not None for c in concepts), False])
        self.rng = np.random.default_rng(seed)
        self.keywords = sorted({w for c in concepts for w in concept_words(c)})
        column = {w: i for i, w in enumerate(self.keywords)}
        self.membership = torch.zeros(len(concepts), len(self.keywords))
        for i, concept in enumerate(concepts):
            self.membership[i, [column[w] for w in concept_words(concept)]] = 1

    def names(self) -> Tensor:
        """One text per concept and one for the background: word numbers int64 [concepts + 1, L]."""
        texts = [self._text(c) for c in self.concepts]
        texts.append(BACKGROUND[int(self.rng.integers(len(BACKGROUND)))])
        return self.vocabulary.pad([self.vocabulary.numbers(t) for t in texts])

    def captions(self, scenes: Sequence[Sequence[int]]) -> Tensor:
        """One text per scene that lists its concepts in random order: word numbers int64 [B, L]."""
        texts = []
        for concepts in scenes:
            names = [self.concepts[int(c)].name for c in self.rng.permutation(np.array(concepts, int))]
            texts.append(self._template().format(" and a ".join(names)) if names else BACKGROUND[0])
        return self.vocabulary.pad([self.vocabulary.numbers(t) for t in texts])

    def some_keywords(self, count: int) -> tuple[Tensor, Tensor]:
        """Random keywords, half of them in a template: word numbers int64 [count, L], columns int64 [count]."""
        columns = self.rng.choice(len(self.keywords), count, replace=False)
        texts = [self.keywords[c] for c in columns]
        texts = [self._template().format(t) if self.rng.random() < 0.5 else t for t in texts]
        return self.vocabulary.pad([self.vocabulary.numbers(t) for t in texts]), torch.from_numpy(columns)

    def _template(self) -> str:
        return TEMPLATES[int(self.rng.integers(len(TEMPLATES)))]

    def _text(self, concept: Concept) -> str:
        """The name alone, in a template, or with a few keywords."""
        draw = self.rng.random()
        if draw < 0.45:
            return concept.name
        if draw < 0.75 or not concept.keywords:
            return self._template().format(concept.name)
        picks = self.rng.choice(
            len(concept.keywords), min(len(concept.keywords), int(self.rng.integers(1, 4))), replace=False
        )
        words = [*concept.name.split(), *(concept.keywords[p] for p in picks)]
        return " ".join(words)
