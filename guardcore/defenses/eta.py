"""ETA, the published baseline: evaluate the answer and the picture, then align what both find unsafe."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from guardcore.defenses.best_of_n import Draft, SentenceSearch
from guardcore.defenses.case import REFUSAL, Case, answers, generate, ongoing, open_cases, sequences, settle_unopened
from guardcore.defenses.fingerprint import digest
from guardcore.defenses.protocol import Answer, Generation, Host, Request
from guardcore.defenses.scorers import Scorer
from guardcore.defenses.similarity import Similarity
from guardcore.defenses.streaming import streamed
from guardcore.policy.policy import Action

if TYPE_CHECKING:
    from PIL import Image

    from guardcore.encoders.protocol import Encoder

# The published sentence is its authors'; this is ours to the same end.
HARM_SENTENCE = "A picture of unsafe things: violence, weapons, nudity, politics, injury, crime or private data."


class ETA:
    """Answers as ever, and again sentence by sentence where the answer and the picture both look unsafe.

    1. `generate`: the model's own answer.
    2. `answer check`: a scorer judges it; above the scorer's threshold it is safe, and final.
    3. `picture check`: the cosine of the picture with a sentence about harm; below `image_threshold` the picture is
       safe, and the answer final.
    4. `align`: the answer is made anew from a forced beginning (shallow alignment), each sentence the best of several
       samples by harmlessness and nearness to the picture (deep alignment).

    Args:
        encoder: of the picture check and the nearness; the published one is CLIP ViT-L/14 at 336 pixels.
        scorer: judges answers; the published one is a reward model (`RewardModelScorer`).
        harm: what the picture check compares with.
        image_threshold: a cosine, published with CLIP and its authors' sentence: measure your own for any other.
        answer_start: the forced beginning.
        candidates: samples of each sentence, >= 1.
        top_k, temperature: of the sampling.
        alpha: weight of the nearness, >= 0.
        sentence_tokens: the longest sentence, in tokens, >= 1.
        max_new_tokens: budget of an aligned answer where the call names none.
        on_error: `block` refuses a request with a picture that can't be opened, or whose alignment fails (no candidate
            has a score, the host can't go on); `review` and `allow` go on without the picture, or with what there is.
        refusal: the text of a refusal.

    Raises:
        TypeError: a setting of another type, an encoder or scorer that is none.
        ValueError: a setting out of its range, or a sentence about harm that the encoder can't read.

    What the paper leaves open, and what is done here: of several pictures the one nearest to harm counts; a request
    without pictures is aligned if its answer is unsafe; NaN from scorer or encoder is unsafe; a sentence ends at a
    full stop, exclamation or question mark before white space or at a line break (published: at the token of the full
    stop); samples of a sentence are generated from text (see `SentenceSearch`).

    Source: Ding et al. 2025 (arXiv 2410.06625) and its public code, whose constants are the defaults.
    """

    name = "eta"

    def __init__(
        self,
        encoder: Encoder,
        scorer: Scorer,
        *,
        harm: str = HARM_SENTENCE,
        image_threshold: float = 0.16,
        answer_start: str = "As an AI assistant",
        candidates: int = 5,
        top_k: int = 5,
        temperature: float = 1.5,
        alpha: float = 1.0,
        sentence_tokens: int = 70,
        max_new_tokens: int = 1024,
        on_error: Action = "block",
        refusal: str = REFUSAL,
    ) -> None:
        _check_types(encoder, scorer, harm=harm, answer_start=answer_start, refusal=refusal)
        _check_counts(
            candidates=candidates, top_k=top_k, sentence_tokens=sentence_tokens, max_new_tokens=max_new_tokens
        )
        _check_numbers(temperature, alpha, image_threshold)
        if on_error not in get_args(Action):
            raise ValueError(f"on_error: expected one of {', '.join(get_args(Action))}; got {on_error!r}")
        try:
            encoder.embed_texts([harm])
        except ValueError as error:
            raise ValueError(f"harm: the encoder can't read {harm!r} ({error})") from error
        self.encoder, self.scorer, self.harm, self.image_threshold = encoder, scorer, harm, image_threshold
        self.answer_start, self.max_new_tokens = answer_start, max_new_tokens
        self.on_error: Action = on_error
        self.refusal = refusal
        sampling = {"do_sample": True, "top_k": top_k, "temperature": temperature}
        self.search = SentenceSearch(scorer, candidates, alpha, sentence_tokens, sampling)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all that an answer depends on but the request, the model and chance."""
        models = [self.encoder.fingerprint, self.scorer.fingerprint, self.scorer.threshold]
        search = [self.search.candidates, self.search.alpha, self.search.sentence_tokens, dict(self.search.sampling)]
        texts = [self.harm, self.image_threshold, self.answer_start, self.max_new_tokens, self.on_error, self.refusal]
        return digest(self.name, models, search, texts)

    def answer(self, host: Host, requests: Sequence[Request], **generation: Any) -> list[Answer]:
        """Answer a batch; see `guardcore.defenses.protocol.Defense`.

        `generation` holds for the first answer; alignment takes its `max_new_tokens` as the budget of the whole answer.

        Raises:
            ValueError: `num_return_sequences` other than 1, or a `streamer`: answers may still be replaced.
        """
        with streamed(generation):
            for name, asked in (
                ("num_return_sequences", sequences(generation)),
                ("streamer", generation.get("streamer")),
            ):
                if asked not in (None, 1):
                    raise ValueError(f"{name}: expected none with ETA, which may replace an answer; got {asked!r}")
        cases = open_cases(requests)
        settle_unopened(cases, self.on_error)
        generate(host, cases, {**generation, "num_return_sequences": 1})  # whatever the model's own number is
        unsafe = self._unsafe_answers(cases)
        drafts = self._unsafe_pictures(unsafe)
        self._align(host, drafts, generation)
        return answers(cases, generation, self.refusal)

    def _unsafe_answers(self, cases: Sequence[Case]) -> list[Case]:
        started, judged = time.perf_counter(), list(ongoing(cases, "answer check"))
        prompts, texts = [case.request.prompt for case in judged], [case.generations[0].text for case in judged]
        scores = self.scorer.score(prompts, texts) if judged else []
        seconds = time.perf_counter() - started
        unsafe = []
        for case, score in zip(judged, scores, strict=True):
            safe = score > self.scorer.threshold  # False for NaN
            told = (
                f"{'safe' if safe else 'unsafe'}: {self.scorer.name} {score:.4g}, safe above {self.scorer.threshold:g}"
            )
            case.note("answer check", True, told, seconds)
            if safe:
                case.note("picture check", False, "the answer is safe")
                case.note("align", False, "the answer is safe")
            else:
                unsafe.append(case)
        return unsafe

    def _unsafe_pictures(self, cases: Sequence[Case]) -> dict[Case, Draft]:
        drafts = {}
        for case in cases:
            started = time.perf_counter()
            images = [image for image in case.request.images if not isinstance(image, Exception)]
            similarity, cosine = self._look(images)
            safe = bool(images) and cosine < self.image_threshold  # False for NaN
            told = f"{'safe' if safe else 'unsafe'}: cosine {cosine:.4g}, safe below {self.image_threshold:g}"
            seconds = time.perf_counter() - started
            case.note("picture check", bool(images), told if images else "no pictures", seconds)
            if safe:
                case.note("align", False, "the picture is safe")
            else:
                drafts[case] = Draft(case.request, similarity, self.answer_start)
        return drafts

    def _look(self, images: Sequence[Image.Image]) -> tuple[Similarity, float]:
        """The pictures' similarity, and their cosine with harm: NaN for pictures that the encoder fails on."""
        try:
            similarity = Similarity(self.encoder, images)
        except (ValueError, OSError, ArithmeticError):
            return Similarity(self.encoder, ()), math.nan
        return similarity, similarity([self.harm])[0]

    def _align(self, host: Host, drafts: Mapping[Case, Draft], generation: Mapping[str, Any]) -> None:
        started = time.perf_counter()
        configured = getattr(generation.get("generation_config"), "max_new_tokens", None)
        budget = generation.get("max_new_tokens") or configured or self.max_new_tokens
        self.search.run(host, list(drafts.values()), budget)
        seconds = time.perf_counter() - started
        for case, draft in drafts.items():
            told = (
                f"best of {self.search.candidates} for each of {draft.sentences} sentence{'s' * (draft.sentences != 1)}"
            )
            if draft.fault is not None and self.on_error == "block":
                case.reason = draft.fault
            case.note("align", draft.fault is None, draft.fault or told, seconds)
            case.generations = [Generation(draft.text, draft.token_ids, seconds={"generate": seconds})]


def _check_types(encoder: object, scorer: object, **texts: object) -> None:
    if not callable(getattr(encoder, "embed_texts", None)):
        raise TypeError(f"encoder: expected one such as guardcore.load_encoder gives; got {type(encoder).__name__}")
    if not callable(getattr(scorer, "score", None)):
        raise TypeError(f"scorer: expected one such as PhraseScorer(); got {type(scorer).__name__}")
    for name, value in texts.items():
        if not isinstance(value, str):
            raise TypeError(f"{name}: expected a string; got {type(value).__name__}")


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a whole number >= 1; got {value!r}")


def _check_numbers(temperature: float, alpha: float, image_threshold: float) -> None:
    for name, value in (("temperature", temperature), ("alpha", alpha), ("image_threshold", image_threshold)):
        if not isinstance(value, int | float):
            raise TypeError(f"{name}: expected a number; got {type(value).__name__}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a finite number > 0; got {temperature!r}")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha: expected a finite number >= 0; got {alpha!r}")
    if not -1 <= image_threshold <= 1:
        raise ValueError(f"image_threshold: expected a cosine in [-1, 1]; got {image_threshold!r}")
