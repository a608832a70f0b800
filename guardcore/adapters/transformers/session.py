"""The calibrations of one batch while it is generated: classes and rows by slot, and what each forward pass sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guardcore.adapters.transformers.support import TextModel, UnsupportedError
from guardcore.adapters.transformers.visibility import Visibility
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.layer_rule import LayerRule, layer_rules
from guardcore.calibration.mass import LayerMass
from guardcore.calibration.spans import TokenClass, TokenSpans


@dataclass(frozen=True, eq=False)
class Pass:
    """One kind of mask in one forward pass, with the calibration's view of its rows and keys.

    Attributes:
        sees: sizes, causality, padding, window.
        key_class: [B, K] uint8.
        row_mask: [B, Q] bool, calibrated rows.
        measured: [requests] int64, the row of each request whose attention to the prefix is recorded: the prompt's
            last calibrated one, negative if it is none of this pass. None unless the prompt ends in this pass.
    """

    sees: Visibility
    key_class: Tensor
    row_mask: Tensor
    measured: Tensor | None


class Session:
    """Calibrations by request, laid out in slots: left padding, prompt, generated tokens.

    `generate` repeats every request for its beams or sequences, in place; so does the session, which learns how often
    from the first batch it sees.

    Attributes:
        requests: how many there are.
        prompt: slots of the padded prompt.
        rules_images: whether a request has a rule for keys of pictures.
    """

    def __init__(
        self,
        spans: Sequence[TokenSpans],
        padding: Sequence[int],
        calibrations: Sequence[AttentionCalibration | None],
        model: TextModel,
        *,
        read: Callable[[Mapping[str, Any], bool], Visibility],
        device: torch.device,
        trace: bool = True,
    ) -> None:
        """Lay out the batch.

        Args:
            spans: of every request, in its prompt without padding.
            padding: slots before each prompt.
            calibrations: of every request, None for none.
            model: the text model.
            read: what `visibility_reader` gives.
            device: of the model's inputs.
            trace: whether the prefix's attention is recorded.

        Raises:
            ValueError: prompts that do not end in the same slot, or a layer or head that the model lacks.
        """
        lengths = {left + own.length for left, own in zip(padding, spans, strict=True)}
        if len(lengths) != 1:
            raise ValueError(f"padding: expected prompts that end in one slot; got ends {sorted(lengths)}")
        self.requests, self.prompt = len(spans), lengths.pop()
        self.rules_images = any(each is not None and TokenClass.IMAGE in each.classes for each in calibrations)
        self._spans, self._calibrations, self._model = tuple(spans), tuple(calibrations), model
        self._read, self._trace = read, trace
        self._classes, self._rows = _laid_out(spans, padding, calibrations, self.prompt, device)
        self._last = _last_rows(self._rows, self.prompt)
        self._rules = layer_rules(calibrations, depth=model.depth, heads=model.heads, scale=model.scale, device=device)
        self._image_classes = _classes_of_pictures(calibrations, device)
        self._copies, self._slots, self._decoded = 1, 0, 0
        self._passes: list[Pass] = []  # no dictionary: sizes of compiled programs have no hash
        self._used = self._reached = False
        self._masses: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def layers(self) -> Mapping[int, LayerRule]:
        """The layers with a rule that changes anything."""
        return self._rules

    @property
    def reached(self) -> bool:
        """Whether a layer has attended under its rule."""
        return self._reached

    def expand(self, batch: int) -> None:
        """Repeat every request so that there are `batch` items; called by itself at the first batch of that size."""
        if batch % self.requests:
            raise UnsupportedError(f"a batch of {batch} is no multiple of the {self.requests} requests")
        copies = batch // self.requests
        if self._copies != 1:
            raise UnsupportedError(f"a batch of {batch} in a generation of {self.requests * self._copies} sequences")
        self._copies = copies
        self._classes, self._rows = (each.repeat_interleave(copies, 0) for each in (self._classes, self._rows))
        self._image_classes = self._image_classes.repeat_interleave(copies, 0)
        self._rules = {layer: _expanded(rule, copies) for layer, rule in self._rules.items()}

    def see(self, arguments: Mapping[str, Any]) -> None:
        """Take note of the mask of a forward pass from the arguments it is made of."""
        if arguments["batch_size"] != self.requests * self._copies:
            self.expand(arguments["batch_size"])
        if self._used:  # the masks of the pass before are spent
            self._passes, self._used = [], False
            if not torch.compiler.is_compiling():
                self._decoded += arguments["q_length"] == 1
        # Later steps have the masks of the first one, and comparing them would wait for the device each time.
        sees = self._read(arguments, arguments["q_length"] > 1 or self._decoded <= 1)
        prompt_row = self._advance(sees)
        end = sees.key_offset + sees.keys
        key_class = torch.nn.functional.pad(self._classes, (0, max(0, end - self.prompt)))[:, sees.key_offset : end]
        # Slots after the prompt are all alike, and stand in the last column.
        slots = torch.arange(sees.rows, device=self._rows.device) + sees.row_offset
        row_mask = self._rows.index_select(1, slots.clamp(max=self.prompt))
        measured = None if prompt_row is None else self._last - (self.prompt - 1 - prompt_row)
        self._passes.append(Pass(sees, key_class, row_mask, measured))

    def current(self, rows: int, keys: int, window: int | None) -> Pass:
        """The mask of the layer that attends with so many rows to so many keys, in a window or not.

        Raises:
            UnsupportedError: there is none, or none that can be expressed.
        """
        self._used = self._reached = True
        fits = [each for each in self._passes if each.sees.rows == rows and each.sees.keys == keys]
        if len({each.sees.window for each in fits}) > 1:
            fits = [each for each in fits if each.sees.window == window]
        if not fits:
            raise UnsupportedError(
                f"no mask of {rows} rows and {keys} keys was made by transformers' masking for this pass; masks that "
                "the caller or the model brings along can't be calibrated"
            )
        if any(each.sees.key_group is not None for each in fits[1:]):
            raise UnsupportedError("it makes several masks of one size, with different pictures in them")
        if fits[0].sees.problem is not None:
            raise UnsupportedError(f"its attention mask can't be expressed: {fits[0].sees.problem}")
        return fits[0]

    def image_class(self, keys: int) -> Tensor:
        """The classes [B, K] of keys that are all of pictures, as in cross-attention."""
        self._reached = True
        return self._image_classes[:, None].expand(-1, keys).contiguous()

    def current_rows(self, rows: int) -> Tensor | None:
        """Calibrated rows [B, Q] of this pass, for attention whose keys have no slots; None if no mask was made."""
        self._used = True
        return next((each.row_mask for each in self._passes if each.sees.rows == rows), None)

    @property
    def traces(self) -> bool:
        """Whether the prefix's share of the attention is recorded."""
        return self._trace

    def one_of_each(self, items: Tensor) -> Tensor:
        """The first copy of each request among items [B, ...]; shared items [1, ...] stay."""
        return items if items.shape[0] == 1 else items[:: self._copies]

    def record(self, layer: int, before: Tensor, after: Tensor, measured: Tensor) -> None:
        """Keep the masses [requests, Hq] of a layer, and at which rows [requests] they are, negative for none."""
        self._masses[layer] = (before, after, measured)

    def masses(self) -> list[tuple[LayerMass, ...]]:
        """What was recorded, by request; nothing for requests without calibration, prefix or calibrated row."""
        found: list[tuple[LayerMass, ...]] = []
        layers = {layer: [each.tolist() for each in own] for layer, own in sorted(self._masses.items())}
        for index, (calibration, spans) in enumerate(zip(self._calibrations, self._spans, strict=True)):
            own = () if calibration is None or not spans.prefix else calibration.layer_indices(self._model.depth)
            found.append(
                tuple(
                    LayerMass(layer, tuple(before[index]), tuple(after[index]))
                    for layer, (before, after, measured) in layers.items()
                    if layer in own and measured[index] >= 0
                )
            )
        return found

    def _advance(self, sees: Visibility) -> int | None:
        """Follow the slots; return the row that ends the prompt, if it is among these.

        Raises:
            UnsupportedError: a pass that belongs to another sequence than the one that is generated.
        """
        first = sees.row_offset
        if isinstance(first, Tensor):
            if sees.rows == self.prompt:
                return sees.rows - 1
            if sees.rows == 1 or torch.compiler.is_compiling():
                return None  # decoding: to read the device would hold up every step
            first = int(first)
        # Without a cache each pass is the sequence so far and one token more; masks of one pass have the same rows.
        if first == 0 and self._slots and sees.rows != self._slots + (0 if self._passes else 1):
            raise UnsupportedError(
                f"a pass of {sees.rows} tokens from the start of a sequence after {self._slots} tokens of this one: "
                "guidance by a second prompt can't be calibrated"
            )
        self._slots = first + sees.rows
        row = self.prompt - 1 - first
        return row if 0 <= row < sees.rows else None


def _laid_out(
    spans: Sequence[TokenSpans],
    padding: Sequence[int],
    calibrations: Sequence[AttentionCalibration | None],
    prompt: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Classes [B, prompt] uint8 and rows [B, prompt + 1] bool, whose last column stands for every generated token."""
    classes = torch.zeros(len(spans), prompt, dtype=torch.uint8)
    rows = torch.zeros(len(spans), prompt + 1, dtype=torch.bool)
    for index, (own, left, calibration) in enumerate(zip(spans, padding, calibrations, strict=True)):
        if calibration is not None:
            # The prefix has its class without a rule too: its share of the attention is recorded.
            classes[index, left:] = own.classes(calibration.classes | {TokenClass.PREFIX})
            rows[index, left:prompt] = own.rows(calibration.rows)
            rows[index, prompt] = calibration.rows == "instruction+generated"
    return classes.to(device), rows.to(device)


def _last_rows(rows: Tensor, prompt: int) -> Tensor:
    """Slot of each prompt's last calibrated row, -1 for none: [B] int64 of rows[B, prompt + 1]."""
    slots = torch.arange(prompt, device=rows.device)
    return torch.where(rows[:, :prompt], slots, -1).amax(1)


def _classes_of_pictures(calibrations: Sequence[AttentionCalibration | None], device: torch.device) -> Tensor:
    """[B] uint8, IMAGE for requests with a rule for pictures."""
    ruled = [each is not None and TokenClass.IMAGE in each.classes for each in calibrations]
    return torch.tensor(ruled, device=device).to(torch.uint8) * int(TokenClass.IMAGE)


def _expanded(rule: LayerRule, copies: int) -> LayerRule:
    def repeated(table: Tensor) -> Tensor:
        return table if table.shape[0] == 1 else table.repeat_interleave(copies, 0)

    return LayerRule(repeated(rule.rule), None if rule.target is None else repeated(rule.target))
