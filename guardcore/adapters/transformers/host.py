"""A model of transformers as host of a defense: it encodes requests, generates under their calibrations, decodes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from guardcore.adapters.transformers.attachment import Attachment
from guardcore.adapters.transformers.prompt import Encoded, encode, groups
from guardcore.adapters.transformers.session import Session
from guardcore.adapters.transformers.support import UnsupportedError
from guardcore.adapters.transformers.tower import SharedTower, share
from guardcore.defenses.protocol import Generation, Request, RequestError
from guardcore.ops.attention_checks import DTYPES

if TYPE_CHECKING:
    from PIL import Image

    from guardcore.detector.detector import Detector
    from guardcore.detector.verdict import Verdict

# Arguments of `generate` that the host makes itself, or that would bring along a cache of other calibrations.
_OWN = ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "pixel_values")
_TAIL = 8  # prompt tokens that an answer's first token is decoded after


@dataclass(frozen=True, eq=False)
class _Batch:
    """Requests that are generated together, ready for the model."""

    indices: Sequence[int]
    requests: Sequence[Request]
    encoded: Encoded
    session: Session | None
    seconds: float


class TransformersHost:
    """One model and its processor, as `guardcore.defenses.protocol.Host`.

    Generations of several threads take turns; plain calls of the model by other threads meanwhile are not calibrated.

    Args:
        model: a vision-language model of transformers that can generate.
        processor: of the model, with a fast tokenizer.
        attachment: of that model.
        trace: whether generations carry the prefix's attention by layer, at two rows of attention a layer.
    """

    def __init__(self, model: Any, processor: Any, attachment: Attachment, *, trace: bool = True) -> None:
        self._model, self._processor, self._attachment, self._trace = model, processor, attachment, trace
        self._shares: dict[int, tuple[Detector, SharedTower | None, str]] = {}
        self._screened: SharedTower | None = None  # the tower that remembers the pictures screened last

    @property
    def name(self) -> str:
        """Path or name of the checkpoint, else the model's class."""
        return str(getattr(self._model.config, "_name_or_path", "") or type(self._model).__name__)

    def generate(self, requests: Sequence[Request], **generation: Any) -> list[Generation]:
        """Answer a batch, each request under its calibration: see `guardcore.defenses.protocol.Host`.

        Raises:
            RequestError: one request can't be encoded, or its calibration names layers or heads the model lacks.
            TypeError: an argument of `generation` that the host makes itself.
            UnsupportedError: a calibration, or a way to generate, that this model can't follow.
            RuntimeError: a generation of this host is running in this thread, the model was detached, or somebody else
                exchanged its attention implementation.
        """
        _check(generation, self._model)
        found: dict[int, list[Generation]] = {}
        with self._attachment.alone():
            # All are encoded before any is generated, so that a bad request does not cost the others' generation.
            batches = [self._prepared(requests, group, generation) for group in groups(self._processor, requests)]
            for batch in batches:
                answers = self._answered(batch, generation)
                count = len(answers) // len(batch.indices)
                found |= {index: answers[at * count : (at + 1) * count] for at, index in enumerate(batch.indices)}
        return [each for index in sorted(found) for each in found[index]]

    def screen(self, detector: Detector, images: Sequence[Image.Image | Exception]) -> list[Verdict]:
        """Judge pictures, by the model's own tower where its weights are those of the detector's encoder.

        See `guardcore.defenses.protocol.Host`. The first call for a detector compares weights, which takes seconds.
        """
        with self._attachment.alone():
            tower, _ = self._share(detector)
            self._screened = tower
            return detector.screen(images) if tower is None else tower.screen(detector, images)

    def screened_by(self, detector: Detector) -> str:
        """Whose eyes `screen` uses, and why."""
        tower, why = self._share(detector)
        return f"the model's own tower ({why})" if tower is not None else f"the detector's encoder: {why}"

    def forget(self) -> None:
        """Free what is remembered of the pictures screened last."""
        if self._screened is not None:
            self._screened.forget()

    def _share(self, detector: Detector) -> tuple[SharedTower | None, str]:
        """The tower that can serve a detector, and why (not); found once a detector."""
        if id(detector) not in self._shares:
            self._shares[id(detector)] = (detector, *share(self._model, self._processor, detector))
        return self._shares[id(detector)][1:]

    def _prepared(self, everything: Sequence[Request], indices: list[int], generation: Mapping[str, Any]) -> _Batch:
        started = time.perf_counter()
        requests, tower = [everything[index] for index in indices], self._screened
        for index in indices:
            self._check_calibration(index, everything[index])
        try:
            encoded = encode(
                self._processor,
                requests,
                device=self._model.device,
                dtype=self._model.dtype,
                tiles=None if tower is None else tower.tile,
            )
        except RequestError as error:
            raise RequestError(indices[error.index], error.message) from error
        session = self._session(requests, encoded)
        if session is not None:
            _check_guidance(generation, self._model)
        return _Batch(indices, requests, encoded, session, time.perf_counter() - started)

    def _check_calibration(self, index: int, request: Request) -> None:
        try:
            self._attachment.check(request.calibration)
        except ValueError as error:
            raise RequestError(index, f"its calibration does not fit the model: {error}") from error

    def _answered(self, batch: _Batch, generation: Mapping[str, Any]) -> list[Generation]:
        started = time.perf_counter()
        encoded, session, tower = batch.encoded, batch.session, self._screened
        with nullcontext() if tower is None else tower.memo(), self._attachment.calibrated(session):
            output = self._model.generate(**encoded.inputs, **generation)
        tokens: Tensor = output if isinstance(output, Tensor) else output.sequences
        seconds = {"encode": batch.seconds, "generate": time.perf_counter() - started}
        prompt = encoded.inputs["input_ids"].shape[1]
        copies = len(tokens) // len(batch.requests)
        masses = [()] * len(batch.requests) if session is None else session.masses()
        answers = []
        for row, new in enumerate(tokens[:, prompt:].tolist()):
            request = batch.requests[row // copies]
            new = self._without_padding(new, generation)
            text = self._text(request, tokens[row, max(0, prompt - _TAIL) : prompt].tolist(), new)
            answers.append(
                Generation(text, tuple(new), encoded.spans[row // copies], masses[row // copies], dict(seconds))
            )
        return answers

    def _session(self, requests: Sequence[Request], encoded: Encoded) -> Session | None:
        """The batch's calibrations; None where nothing would change, so that the model runs as it is."""
        calibrations = [request.calibration for request in requests]
        if not any(calibrations):
            return None
        if self._model.training:
            raise UnsupportedError("the model is in training mode: call its eval() first")
        if self._model.dtype not in DTYPES:
            raise UnsupportedError(f"expected a model in float32, bfloat16 or float16; got {self._model.dtype}")
        session = self._attachment.session(
            encoded.spans, encoded.padding, calibrations, device=self._model.device, trace=self._trace
        )
        return session if session.layers else None

    def _text(self, request: Request, prompt: list[int], new: list[int]) -> str:
        """The answer; after a forced beginning its first token keeps the space that decoders drop at the start."""
        decode = self._processor.tokenizer.decode
        if not request.answer_start:
            return str(decode(new, skip_special_tokens=True))
        before, whole = (decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new))
        joined = whole[len(before) :] if whole.startswith(before) else decode(new, skip_special_tokens=True)
        return request.answer_start + str(joined)

    def _without_padding(self, new: list[int], generation: Mapping[str, Any]) -> list[int]:
        """New tokens up to the first that ends the answer, and without what fills up the batch."""
        ends = _setting("eos_token_id", generation, self._model)
        ends = ends if isinstance(ends, list | tuple) else [ends]
        length = next((at + 1 for at, token in enumerate(new) if token in ends), len(new))
        pad = _setting("pad_token_id", generation, self._model)
        if length == len(new):
            while length and new[length - 1] == pad and pad not in ends:
                length -= 1
        return new[:length]


def _setting(name: str, generation: Mapping[str, Any], model: Any) -> Any:
    """An option of `generate`, from its arguments, the configuration among them, or the model's own."""
    for value in (
        generation.get(name),
        getattr(generation.get("generation_config"), name, None),
        getattr(model.generation_config, name, None),
    ):
        if value is not None:
            return value.tolist() if isinstance(value, Tensor) else value
    return None


def _check(generation: Mapping[str, Any], model: Any) -> None:
    for name in _OWN:
        if name in generation:
            raise TypeError(f"generate() makes {name} itself from the requests; it can't be given")
    if _setting("output_attentions", generation, model):
        raise UnsupportedError("output_attentions: calibrated layers hold no map of their attention; see answer.trace")
    if _setting("cache_implementation", generation, model) == "paged":
        raise UnsupportedError("cache_implementation='paged': transformers batches continuously by kernels of its own")


def _check_guidance(generation: Mapping[str, Any], model: Any) -> None:
    """Guidance runs a second prompt through the layers, whose slots mean something else."""
    for name, fine in (("guidance_scale", (None, 1)), ("negative_prompt_ids", (None,))):
        if _setting(name, generation, model) not in fine:
            raise UnsupportedError(f"{name}: guidance by a second prompt can't be calibrated")
