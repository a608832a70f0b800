"""Prototype banks on disk: safetensors with JSON metadata, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

_FORMAT = "guardcore-prototype-bank"
_TENSORS = ("prototypes", "weights", "neutral")


class BankFileError(ValueError):
    """A file that isn't a prototype bank, or no longer is one."""


def write_bank(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to `path`, replacing what is there in one step; raise OSError if that is impossible.

    The bytes go to a new file beside the target first, so that a reader, or a crash, never meets half a bank.
    """
    from safetensors.torch import save

    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": _FORMAT, "bank": text})
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_bank(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_bank` wrote; raise BankFileError for any other file and OSError if it can't be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned, because the tensors would otherwise live in a mapped file that someone may replace.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise BankFileError(f"{path}: not a safetensors file, or damaged: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise BankFileError(f"{path}: expected the format {_FORMAT!r}; got {metadata.get('format')!r}")
    if set(tensors) != set(_TENSORS):
        raise BankFileError(
            f"{path}: expected the tensors {', '.join(_TENSORS)}; got {', '.join(sorted(tensors)) or 'none'}"
        )
    return tensors, _parse(path, metadata.get("bank", ""))


def _parse(path: str | Path, text: str) -> dict[str, Any]:
    try:
        bank = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BankFileError(f"{path}: its metadata is not JSON: {error}") from error
    if not isinstance(bank, dict):
        raise BankFileError(f"{path}: expected metadata that is a JSON object; got {type(bank).__name__}")
    return bank
