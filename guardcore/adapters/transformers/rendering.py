"""One request as the text that a processor takes: the chat template filled in, and where the parts lie in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guardcore.adapters.transformers.control_tokens import ControlTokens
from guardcore.calibration.spans import Range
from guardcore.defenses.protocol import Request

# Stands for the user's text while a template is measured: private-use characters, which no template trims or changes.
_MARK = "\ue0a0\ue0a1\ue0a2"


@dataclass(frozen=True)
class Rendering:
    """A request as text, one placeholder a picture; ranges are characters, half open.

    Attributes:
        text: what the processor takes.
        user: prefix and prompt together.
        prefix: the safety prefix without white space around it; empty if there is none.
        instruction: what the user asks, likewise.
        answer: first character of the answer's header, where the user's turn ends.
    """

    text: str
    user: Range
    prefix: Range
    instruction: Range
    answer: int


def render(processor: Any, request: Request, control: ControlTokens) -> Rendering:
    """Fill in the processor's chat template; without one, the text is placeholders and the user's text.

    The prefix stands right before the prompt, one space between them unless it ends in white space itself. The answer's
    start is appended as it is.

    Raises:
        ValueError: a text holds a special token, or the template fails, drops the system prompt or a picture, or
            changes the user's text.
    """
    user = request.prefix + _separator(request) + request.prompt
    # The prompt with what stands before it: a token may lie across the seam.
    texts = {"prefix": request.prefix, "prompt": user, "answer_start": request.answer_start, "system": request.system}
    for name, content in texts.items():
        control.refuse(name, content or "")
    before, found, after, header = _parts(processor, request, user)
    start, end = len(before), len(before) + len(found)
    # Where the text would start if the template had not trimmed it.
    first = start - user.index(found)
    prefix, instruction = _span(first, request.prefix), _span(first + len(user) - len(request.prompt), request.prompt)
    text = before + found + after + request.answer_start
    _check_pictures(processor, text, len(request.images))
    return Rendering(text, (start, end), prefix, instruction, end + header)


def _span(start: int, text: str) -> Range:
    """Where a text that starts there is, without the white space around it: a token may hold that and a neighbor."""
    first = start + len(text) - len(text.lstrip())
    return first, first + len(text.strip())


def _separator(request: Request) -> str:
    return " " if request.prefix and not request.prefix[-1].isspace() else ""


def _parts(processor: Any, request: Request, user: str) -> tuple[str, str, str, int]:
    """Text before the user's, the user's as rendered, text after it, and where in that the answer's header starts."""
    if _template(processor) is None:
        return _plain(processor, request), user, "", 0
    before, after = _around(processor, request, header=True)
    _, closing = _around(processor, request, header=False)
    rendered = _fill(processor, request, user, header=True)
    for found in (user, user.strip(), user.lstrip(), user.rstrip()):
        if rendered == before + found + after:
            # A template without a header ends with the user's turn: the tokens that end it lead to the answer.
            ends = after.startswith(closing) and len(closing) < len(after)
            return before, found, after, len(closing) if ends else 0
    raise ValueError("prompt: the chat template changes the user's text, so its tokens can't be told apart")


def _plain(processor: Any, request: Request) -> str:
    kind = type(processor).__name__
    for name in ("system", "answer_start"):
        if getattr(request, name):
            raise ValueError(f"{name}: expected none, {kind} has no chat template; got {getattr(request, name)!r:.80}")
    if not request.images:
        raise ValueError(f"images: expected at least one, {kind} has no chat template; got none")
    return _placeholder(processor) * len(request.images)


def _around(processor: Any, request: Request, *, header: bool) -> tuple[str, str]:
    parts = _fill(processor, request, _MARK, header=header).split(_MARK)
    if len(parts) != 2:
        raise ValueError(f"prompt: expected a chat template that renders the user's text once; got {len(parts) - 1}")
    return parts[0], parts[1]


def _fill(processor: Any, request: Request, user: str, *, header: bool) -> str:
    """The rendered template; a system prompt is tried as a list of parts, then as a string."""
    from jinja2 import TemplateError

    pictures = [{"type": "image"} for _ in request.images]
    turn = {"role": "user", "content": [*pictures, {"type": "text", "text": user}]}
    if request.system is None:
        systems: list[Any] = [None]
    else:
        systems = [[{"type": "text", "text": request.system}], request.system]
    failure = "drops the system prompt"
    for system in systems:
        messages = [turn] if system is None else [{"role": "system", "content": system}, turn]
        try:
            rendered: str = processor.apply_chat_template(
                messages, chat_template=_template(processor), add_generation_prompt=header
            )
        except (TemplateError, TypeError) as error:
            failure = f"fails: {error}"
            continue
        # A template that wants a string prints a list as Python does.
        if request.system is None or (request.system.strip() in rendered and repr(system) not in rendered):
            return rendered
    raise ValueError(f"{'request' if request.system is None else 'system'}: the model's chat template {failure}")


def _template(processor: Any) -> str | None:
    own = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default", next(iter(own.values()), None))
    return own


def _placeholder(processor: Any) -> str:
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str):
        raise ValueError(f"processor: expected one with an image_token; got {type(processor).__name__}")
    return token


def _check_pictures(processor: Any, text: str, count: int) -> None:
    found = text.count(_placeholder(processor))
    if found != count:
        raise ValueError(
            f"images: expected the chat template to place {count}; got {found} {_placeholder(processor)!r}"
        )
