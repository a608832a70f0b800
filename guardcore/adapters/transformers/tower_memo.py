"""What a vision tower said of some pixels, told again when the model asks about the same pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# With these a tower gives what is remembered, whatever their values; any other argument must be absent or void.
_KNOWN = ("pixel_values", "output_hidden_states", "return_dict", "use_cache")
# Values of a picture that are compared before all of them are.
_PROBES = 64


@dataclass(frozen=True)
class _Seen:
    """Of M pictures: pixels [M, 3, S, S], last states [M, T, W], pooled [M, W] or None, some hidden states [M, T, W].

    `count` is the number of hidden states that there were, `state` the tower's when it ran.
    """

    pixels: Tensor
    last: Tensor
    pooled: Tensor | None
    hidden: dict[int, Tensor]
    count: int
    state: tuple[object, ...]


class TowerMemo:
    """Remembers the outputs of one vision tower by picture, as long as its weights are the same.

    Args:
        tower: a CLIP or SigLIP vision model of transformers.
        layers: the hidden states that its host reads, as its configuration's `vision_feature_layer` says: an index, a
            list, or None where it reads the last state alone. The others are not kept: a tower has dozens.

    What is noticed: weights that are replaced, or changed in place by torch. What is not: writes through `.data`.
    """

    def __init__(self, tower: nn.Module, layers: int | Sequence[int] | None) -> None:
        self._tower: Any = tower
        self._layers = [layers] if isinstance(layers, int) else list(layers or ())
        self._seen: _Seen | None = None

    def clear(self) -> None:
        """Forget everything."""
        self._seen = None

    def state(self) -> tuple[object, ...]:
        """Something that changes when the tower's weights do, or the arithmetic it runs in."""
        tensors = [*self._tower.parameters(), *self._tower.buffers()]
        weights = tuple((tensor.data_ptr(), None if tensor.is_inference() else tensor._version) for tensor in tensors)
        return weights, torch.is_autocast_enabled(tensors[0].device.type), self._tower.config._attn_implementation

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While it lasts, remember what the tower says when it is asked for all hidden states, beside what it knows."""
        run = self._tower.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            self._record(args[0] if args else kwargs["pixel_values"], output)
            return output

        with self._replaced(forward):
            yield

    @contextmanager
    def reuse(self) -> Iterator[None]:
        """While it lasts, the tower runs only for pictures that it has not seen. Its `forward` comes back exactly."""
        run = self._tower.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            pixels = args[0] if args else kwargs.get("pixel_values")
            if self._seen is None or pixels is None or len(args) > 1 or not self._plain(kwargs):
                return run(*args, **kwargs)
            rest = {name: value for name, value in kwargs.items() if name != "pixel_values"}
            return self._answer(self._seen, pixels, lambda unknown: run(pixel_values=unknown, **rest), rest)

        with self._replaced(forward):
            yield

    @contextmanager
    def _replaced(self, forward: Callable[..., Any]) -> Iterator[None]:
        # Another library may have put a `forward` of its own on the module.
        own = self._tower.__dict__.get("forward")
        self._tower.forward = forward
        try:
            yield
        finally:
            del self._tower.forward
            if own is not None:
                self._tower.forward = own

    def _record(self, pixels: Tensor, output: Any) -> None:
        states = output.hidden_states
        count = len(states)
        hidden = {index: states[index].detach() for index in {layer % count for layer in self._layers}}
        pooled = None if output.pooler_output is None else output.pooler_output.detach()
        new = _Seen(pixels.clone(), output.last_hidden_state.detach(), pooled, hidden, count, self.state())
        old = self._seen
        self._seen = new if old is None or old.state != new.state else _joined(old, new)

    def _answer(self, seen: _Seen, pixels: Tensor, run: Callable[[Tensor], Any], kwargs: dict[str, Any]) -> Any:
        wanted = self._wanted(kwargs.get("output_hidden_states", self._tower.config.output_hidden_states), seen.count)
        places = _find(seen.pixels, pixels.to(seen.pixels)) if seen.state == self.state() else [None] * len(pixels)
        known = [place for place in places if place is not None]
        if not known or not wanted <= seen.hidden.keys():
            return run(pixels)
        missing = [row for row, place in enumerate(places) if place is None]
        fresh = run(pixels[missing]) if missing else None
        order = _order(places)

        def whole(old: Tensor, new: Tensor | None) -> Tensor:
            return (old[known] if new is None else torch.cat([old[known], new]))[order]

        def field(old: Tensor | None, name: str) -> Tensor | None:
            return None if old is None else whole(old, None if fresh is None else getattr(fresh, name))

        hidden = {index: whole(seen.hidden[index], fresh and fresh.hidden_states[index]) for index in wanted}
        return _output()(
            last_hidden_state=field(seen.last, "last_hidden_state"),
            pooler_output=field(seen.pooled, "pooler_output"),
            hidden_states=tuple(hidden.get(index) for index in range(seen.count)) if wanted else None,
        )

    def _wanted(self, asked: Any, count: int) -> set[int]:
        # Before transformers 5 hosts ask for all hidden states and read those that their configuration names.
        layers = self._layers if asked is True else [asked] if type(asked) is int else list(asked or ())
        return {layer % count for layer in layers if -count <= layer < count}

    def _plain(self, kwargs: dict[str, Any]) -> bool:
        odd = any(value is not None and value is not False for name, value in kwargs.items() if name not in _KNOWN)
        tuples = kwargs.get("return_dict", True) is False
        # A compiled graph can't look pictures up.
        other = self._tower.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        return not (odd or tuples or other)


def _output() -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling


def _joined(old: _Seen, new: _Seen) -> _Seen:
    pooled = None if old.pooled is None or new.pooled is None else torch.cat([old.pooled, new.pooled])
    hidden = {index: torch.cat([states, new.hidden[index]]) for index, states in old.hidden.items()}
    pixels, last = torch.cat([old.pixels, new.pixels]), torch.cat([old.last, new.last])
    return _Seen(pixels, last, pooled, hidden, new.count, new.state)


def _order(places: Sequence[int | None]) -> list[int]:
    """For each row its place among the known rows followed by the others."""
    known = sum(place is not None for place in places)
    first, second = iter(range(known)), iter(range(known, len(places)))
    return [next(second if place is None else first) for place in places]


def _find(known: Tensor, pixels: Tensor) -> list[int | None]:
    """For each picture of [B, ...] the index of an equal one among [M, ...], value by value."""
    if known.shape[1:] != pixels.shape[1:]:
        return [None] * len(pixels)
    step = max(1, known[0].numel() // _PROBES)
    probes, others = pixels.flatten(1)[:, ::step], known.flatten(1)[:, ::step]
    alike = (probes[:, None] == others).all(-1).tolist()
    return [
        next((place for place, same in enumerate(row) if same and torch.equal(known[place], picture)), None)
        for picture, row in zip(pixels, alike, strict=True)
    ]
