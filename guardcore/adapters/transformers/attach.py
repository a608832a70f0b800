"""`guardcore.attach`: a defense on a model of transformers, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from guardcore.adapters.transformers.attachment import Attachment
from guardcore.adapters.transformers.host import TransformersHost
from guardcore.adapters.transformers.prompt import check_processor
from guardcore.adapters.transformers.support import UnsupportedError
from guardcore.defenses.protocol import Answer, Defense, Request
from guardcore.defenses.streaming import streamed
from guardcore.images.opening import ImageError, open_image

if TYPE_CHECKING:
    from PIL import Image

    Picture = Image.Image | str | os.PathLike[str] | bytes | Exception


class Guarded:
    """A model behind a defense; leaving the `with` block, or `detach`, gives the model back as it was.

        with guardcore.attach(guardcore.GuardAlign(detector), model, processor) as guarded:
            answer = guarded.generate(image, "What is this?", max_new_tokens=64)
            print(answer, answer.verdict, answer.trace)

    Attributes:
        guard: the defense.
        host: the model as defenses see it.
    """

    def __init__(self, guard: Defense, host: TransformersHost, attachment: Attachment) -> None:
        self.guard, self.host, self._attachment = guard, host, attachment

    def generate(self, images: Picture | Sequence[Picture] | None, prompt: str, **generation: Any) -> Answer:
        """Answer one request.

        Args:
            images: a picture, several, or none: PIL images, or paths or bytes, which are opened as untrusted files. One
                that can't be opened is judged by the defense.
            prompt: what the user asks.
            generation: arguments of transformers' `generate`: max_new_tokens, do_sample, num_beams, streamer, ...

        Raises:
            ValueError: num_return_sequences other than 1; `generate_batch` gives several answers.
            TypeError, UnsupportedError, RuntimeError: see `TransformersHost.generate`.
        """
        answers = self.generate_batch([(images, prompt)], **generation)
        if len(answers) != 1:
            raise ValueError(f"num_return_sequences: expected 1, generate_batch() returns more; got {len(answers)}")
        return answers[0]

    def generate_batch(
        self,
        requests: Iterable[Request | tuple[Picture | Sequence[Picture] | None, str]],
        **generation: Any,
    ) -> list[Answer]:
        """Answer requests, or pairs of images and prompt, in one batch.

        Returns:
            an answer a request, in order; with num_return_sequences = n, n of them a request, those of one together.

        Raises:
            TypeError: something else among the requests; also as `generate`.
        """
        with streamed(generation) as options:
            batch = [_asked(index, each) for index, each in enumerate(requests)]
            return self.guard.answer(self.host, batch, **options) if batch else []

    def detach(self) -> None:
        """Give the model its own attention back; a second time does nothing.

        Raises:
            RuntimeError: a generation is running in this thread. One in another thread is waited for.
        """
        self._attachment.detach()
        self.host.forget()

    def __enter__(self) -> Guarded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(guard: Defense, model: Any, processor: Any, *, trace: bool = True) -> Guarded:
    """Put a defense in front of a vision-language model of transformers.

    The model's text attention goes through two functions that are registered with transformers until `detach`: one
    attends, one makes masks. Where nothing is calibrated, both are the model's own, bit for bit. No class is patched.

    Args:
        guard: such as `guardcore.GuardAlign`.
        model: in evaluation mode, able to generate, with any attention implementation.
        processor: of the model, with a fast tokenizer.
        trace: whether answers tell the prefix's attention by layer, at the price of two rows of attention a layer.

    Returns:
        Guarded, a context manager.

    Raises:
        TypeError: `guard` is no defense.
        ValueError: the processor has no fast tokenizer.
        UnsupportedError: the model can't be calibrated, and why.
        RuntimeError: the model has a defense already.
    """
    if isinstance(guard, type) or not isinstance(guard, Defense):
        got = f"the class {guard.__name__}" if isinstance(guard, type) else type(guard).__name__
        raise TypeError(f"guard: expected a defense such as guardcore.GuardAlign(detector); got {got}")
    if not callable(getattr(model, "generate", None)):
        raise UnsupportedError(f"{type(model).__name__} can't generate")
    if not getattr(getattr(model, "config", None), "sub_configs", True):
        raise UnsupportedError(f"{type(model).__name__} is no vision-language model: it has a text part only")
    check_processor(processor)
    attachment = Attachment(model)
    return Guarded(guard, TransformersHost(model, processor, attachment, trace=trace), attachment)


def _asked(index: int, item: Any) -> Request:
    """A request of a batch; a pair is one too."""
    if isinstance(item, Request):
        return item
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(
            f"requests: expected Request objects or pairs (images, prompt); got {type(item).__name__} at {index}"
        )
    return _request(*item)


def _request(images: Picture | Sequence[Picture] | None, prompt: str) -> Request:
    if images is None:
        pictures: Sequence[Any] = ()
    elif isinstance(images, Sequence) and not isinstance(images, str | bytes):
        pictures = images
    else:
        pictures = (images,)
    return Request(prompt, tuple(_opened(each) for each in pictures))


def _opened(picture: Any) -> Any:
    """A path or bytes as a picture, or as the reason why it is none; anything else is the defense's to judge."""
    if not isinstance(picture, str | bytes | os.PathLike):
        return picture
    try:
        return open_image(picture).image
    except ImageError as error:
        return error
