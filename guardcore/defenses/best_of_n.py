"""ETA's deep alignment: an answer is grown sentence by sentence, each the best of several samples."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guardcore.defenses.protocol import Generation, Host, Request, RequestError
from guardcore.defenses.scorers import Scorer
from guardcore.defenses.similarity import Similarity

# Up to a full stop, exclamation or question mark before white space, a line break, or the end. A decimal point is none.
_SENTENCE = re.compile(r"\s*\S.*?(?:[.!?]+(?=\s)|[\u3002\uff01\uff1f]+|\n|\Z)", re.DOTALL)


@dataclass(eq=False)
class Draft:
    """An answer that grows.

    Attributes:
        request: what is answered; its `answer_start` is not looked at again.
        similarity: of a sentence and the request's pictures.
        text: the answer so far, with its forced beginning.
        token_ids: about the new tokens: a piece that was cut counts by its share of characters.
        sentences: how many were chosen.
        done: whether the model ended it, or its budget did.
        fault: why it could not be continued, None if nothing went wrong.
    """

    request: Request
    similarity: Similarity
    text: str
    token_ids: tuple[int, ...] = ()
    sentences: int = 0
    done: bool = False
    fault: str | None = None


@dataclass(frozen=True)
class _Candidate:
    text: str
    token_ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class SentenceSearch:
    """Grows drafts by the best of `candidates` samples of each next sentence.

    A candidate's score is alpha / k * cosine(sentence, picture) + reward(answer so far with the sentence), k the number
    of the sentence. The first term, which keeps the answer useful, counts from the second sentence on and only while no
    candidate has ended the answer.

    A sentence is taken as text: the host generates `sentence_tokens` new tokens, fewer at the budget's end, and what
    comes after the sentence's end is dropped. That costs a prefill for every sentence, and works with any host; a
    host's own stop strings would save the dropped tokens.

    Source: Ding et al. 2025 (arXiv 2410.06625), sentence-level deep alignment, and its public code.
    """

    scorer: Scorer
    candidates: int
    alpha: float
    sentence_tokens: int
    sampling: Mapping[str, Any]

    def run(self, host: Host, drafts: Sequence[Draft], max_new_tokens: int) -> None:
        """Grow all drafts to their ends, or to `max_new_tokens` new tokens.

        Each step is one batch, and one more for each length that the budget leaves to drafts near its end.
        """
        while growing := [draft for draft in drafts if not draft.done]:
            lefts = [min(self.sentence_tokens, max_new_tokens - _spent(draft)) for draft in growing]
            for limit in sorted(set(lefts)):
                self._step(host, [draft for draft, left in zip(growing, lefts, strict=True) if left == limit], limit)
            for draft in growing:
                draft.done |= draft.fault is not None or _spent(draft) >= max_new_tokens

    def _step(self, host: Host, drafts: Sequence[Draft], limit: int) -> None:
        """Give each draft one more sentence of at most `limit` tokens."""
        for draft, pieces in zip(drafts, self._samples(host, drafts, limit), strict=True):
            if draft.fault is None:
                self._grow(draft, [self._candidate(host, draft, piece, limit) for piece in pieces])

    def _samples(self, host: Host, drafts: Sequence[Draft], limit: int) -> list[list[Generation]]:
        """`candidates` generations a draft; none, and a fault, for one that the host can't encode."""
        waiting = list(range(len(drafts)))
        found: list[list[Generation]] = [[] for _ in drafts]
        options = {**self.sampling, "max_new_tokens": limit, "num_return_sequences": self.candidates}
        while waiting:
            requests = [replace(drafts[index].request, answer_start=drafts[index].text) for index in waiting]
            try:
                pieces = host.generate(requests, **options)
            except RequestError as error:
                drafts[waiting.pop(error.index)].fault = error.message
                continue
            if len(pieces) != self.candidates * len(waiting):
                raise RuntimeError(
                    f"{host.name}: expected {self.candidates * len(waiting)} generations; got {len(pieces)}"
                )
            for place, index in enumerate(waiting):
                found[index] = pieces[place * self.candidates : (place + 1) * self.candidates]
            break
        return found

    def _candidate(self, host: Host, draft: Draft, piece: Generation, limit: int) -> _Candidate:
        if not piece.text.startswith(draft.text):
            raise RuntimeError(f"{host.name}: expected a text that begins with answer_start; got {piece.text[:80]!r}")
        new = piece.text[len(draft.text) :]
        match = _SENTENCE.match(new)
        sentence = match.group() if match else new
        share = math.ceil(len(piece.token_ids) * len(sentence) / max(1, len(new)))
        stopped = len(piece.token_ids) < limit
        return _Candidate(sentence, piece.token_ids[:share], stopped and not new[len(sentence) :].strip())

    def _grow(self, draft: Draft, candidates: Sequence[_Candidate]) -> None:
        draft.sentences += 1
        texts = [draft.text + candidate.text for candidate in candidates]
        scores = self.scorer.score([draft.request.prompt] * len(texts), texts)
        if draft.sentences > 1 and not any(candidate.ended for candidate in candidates):
            nearness = draft.similarity([candidate.text for candidate in candidates])
            useful = [0.0 if math.isnan(near) else self.alpha / draft.sentences * near for near in nearness]
            scores = [score + more for score, more in zip(scores, useful, strict=True)]
        if all(map(math.isnan, scores)):
            draft.fault = f"{self.scorer.name} gave no number for any candidate"
            return
        best = max(range(len(texts)), key=lambda index: -math.inf if math.isnan(scores[index]) else scores[index])
        draft.text, draft.done = texts[best], candidates[best].ended or not candidates[best].text.strip()
        draft.token_ids += candidates[best].token_ids


def _spent(draft: Draft) -> int:
    """New tokens so far; a sentence has one, even if a host counts none."""
    return max(len(draft.token_ids), draft.sentences)
