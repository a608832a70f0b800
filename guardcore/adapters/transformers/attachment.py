"""One model whose text attention goes through ours: registered once, removed without a trace."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

import torch

from guardcore.adapters.transformers.attention import attention_function, mask_function
from guardcore.adapters.transformers.session import Session
from guardcore.adapters.transformers.support import UnsupportedError, check_version, find_text_model
from guardcore.adapters.transformers.visibility import visibility_reader
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.spans import TokenSpans

_NUMBERS = count(1)
_NAME = "guardcore"


class Attachment:
    """Our attention in the place of a model's own, for its text side only.

    Outside of `calibrated`, in other threads and in layers without a rule, the model's own function runs on the model's
    own masks. The attachment counts on being the only one who exchanges the implementation until it is detached.

    Attributes:
        text: the model's text side.
        name: under which the functions are registered.
    """

    def __init__(self, model: Any) -> None:
        """Register the functions and switch the model over.

        Raises:
            UnsupportedError: the model can't be calibrated; the message says why.
            RuntimeError: something is attached to it already.
        """
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        check_version()
        self.text = find_text_model(model)
        own = self._own = self.text.config._attn_implementation
        if str(own).startswith(_NAME):
            raise RuntimeError(
                f"{type(model).__name__} is attached already, as {own}: detach it first; a copy of an attached model, "
                f"or one that was never detached, is plain again after set_attn_implementation({_original(own)!r})"
            )
        if own not in ALL_MASK_ATTENTION_FUNCTIONS or (own != "eager" and own not in ALL_ATTENTION_FUNCTIONS):
            raise UnsupportedError(
                f"its attention implementation {own!r} has no function and mask of its own to fall back on"
            )
        attention = self.text.eager_attention() if own == "eager" else ALL_ATTENTION_FUNCTIONS[own]
        self._model: Any = model
        self._read = visibility_reader(causal_mask_function)
        # A new thread starts without the value, so that what it asks of the model is never calibrated.
        self._running: ContextVar[Session | None] = ContextVar(_NAME, default=None)
        self._lock = threading.Lock()
        self._owner: int | None = None
        # Hosts look for "flash" and the like in the name.
        self.name = f"{_NAME}_{next(_NUMBERS)}_{own}"
        AttentionInterface.register(self.name, attention_function(self._running, attention))
        AttentionMaskInterface.register(self.name, mask_function(self._running, ALL_MASK_ATTENTION_FUNCTIONS[own]))
        try:
            self._switch(self.name)
        except BaseException:
            self.detach()
            raise

    @property
    def attached(self) -> bool:
        """Whether `detach` is still to be called."""
        return self._model is not None

    def check(self, calibration: AttentionCalibration | None) -> None:
        """Raise as `TextModel.check` does, for one calibration."""
        self.text.check([calibration])

    def session(
        self,
        spans: Sequence[TokenSpans],
        padding: Sequence[int],
        calibrations: Sequence[AttentionCalibration | None],
        *,
        device: torch.device,
        trace: bool = True,
    ) -> Session:
        """Lay out a batch, see `Session`; raise UnsupportedError if a calibration wants other layers than there are."""
        self.text.check(calibrations)
        return Session(spans, padding, calibrations, self.text, read=self._read, device=device, trace=trace)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the model to oneself; other threads that ask for it wait.

        Raises:
            RuntimeError: this thread has it already, or it was detached.
        """
        with self._entered("start another one"):
            if not self.attached:
                raise RuntimeError("the model was detached")
            yield

    @contextmanager
    def calibrated(self, session: Session | None) -> Iterator[None]:
        """Within the block, and in this thread only, the model's text attention follows the session; None is plain.

        Raises:
            RuntimeError: somebody else exchanged the model's attention implementation, before or within the block.
            UnsupportedError: the block is over, and no layer asked for its rule.
        """
        self._check_own(session)
        token = self._running.set(session)
        try:
            yield
        finally:
            self._running.reset(token)
        self._check_own(session)
        if session is not None and session.layers and not session.reached:
            raise UnsupportedError(
                f"none of the layers {sorted(session.layers)} asked for its rule: what was generated is not calibrated"
            )

    def detach(self) -> None:
        """Give the model its own implementation back and forget the functions; a second time does nothing."""
        from transformers import AttentionInterface, AttentionMaskInterface

        with self._entered("detach the model"):
            if not self.attached:
                return
            if self.text.config._attn_implementation == self.name:
                self._switch(self._own)
            # transformers has no way to unregister but this one.
            AttentionInterface._global_mapping.pop(self.name, None)
            AttentionMaskInterface._global_mapping.pop(self.name, None)
            self._model = None

    def _check_own(self, session: Session | None) -> None:
        now = self.text.config._attn_implementation
        if session is not None and now != self.name:
            raise RuntimeError(
                f"the model's attention implementation was exchanged for {now!r} while a defense is attached, so that "
                "nothing would be calibrated: detach, choose the implementation, attach again"
            )

    @contextmanager
    def _entered(self, what: str) -> Iterator[None]:
        if self._owner == threading.get_ident():
            raise RuntimeError(f"a generation is running in this thread; it can't {what} inside")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _switch(self, implementation: str) -> None:
        """Exchange the implementation of the text side alone."""
        request: Any = {"": implementation}
        for name in reversed(self.text.path):
            request = {name: request}
        self._model.set_attn_implementation(request)
        got = self.text.config._attn_implementation
        if got != implementation:
            raise UnsupportedError(
                f"{type(self._model).__name__} did not take the implementation {implementation!r}: {got!r}"
            )


def _original(name: str) -> str:
    """The implementation that an attachment's name was made for."""
    return name.split("_", 2)[-1]
