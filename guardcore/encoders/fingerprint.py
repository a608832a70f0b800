"""Hashes of weights: the same tensors under the same names give the same digest, wherever they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 hex over names, dtypes, shapes and bytes of tensors, in the order of their sorted names.

    Tensors are hashed side by side (hashlib releases the interpreter lock), so that a large model takes seconds.
    """
    names = sorted(tensors)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: _tensor_digest(name, tensors[name]), names)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    # Reshaped first: a scalar cannot be viewed as bytes.
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()
