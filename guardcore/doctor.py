"""What runs where on this machine: op x device x implementation, versions, and a reason for every gap."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, metadata, resources
from importlib.util import find_spec
from typing import Any

import torch

from guardcore import ops

_DISTRIBUTIONS = ("torch", "triton", "transformers", "open_clip_torch", "torchvision", "numpy", "pillow", "pyarrow")
_NATIVE = "guardcore._C"


@dataclass(frozen=True)
class Cell:
    """Who runs an op on a device: "C++", "Triton", "definition" or "nothing", and what is missing for more."""

    op: str
    device: str
    implementation: str
    note: str = ""


@dataclass(frozen=True)
class EncoderState:
    """Whether a form of `guardcore.load_encoder` can be used here, and what it needs."""

    spec: str
    available: bool
    note: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """A machine as guardcore sees it. `str()` gives tables for people, `to_dict()` and `to_json()` plain values.

    versions: distribution to version, None if not installed. isa: the instruction set that the C++ kernels run on,
    empty if they are not built. threads: of torch's pool, which the C++ kernels use. gpus: the GPUs that torch sees.
    """

    versions: dict[str, str | None]
    isa: str
    threads: int
    gpus: tuple[str, ...]
    cells: tuple[Cell, ...]
    encoders: tuple[EncoderState, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        return asdict(self)

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        versions = [(name, version or "not installed") for name, version in self.versions.items()]
        machine = [
            ("instruction set of the C++ kernels", self.isa or "none: not built"),
            ("threads", str(self.threads)),
            ("GPUs", ", ".join(self.gpus) or "none"),
        ]
        cells = [(cell.op, cell.device, cell.implementation, cell.note) for cell in self.cells]
        encoders = [(state.spec, "yes" if state.available else "no", state.note) for state in self.encoders]
        return "\n\n".join(
            (
                _table(("package", "version"), versions),
                _table(("machine", ""), machine),
                _table(("op", "device", "runs on", "note"), cells),
                _table(("encoder", "available", "note"), encoders),
            )
        )


def report() -> DoctorReport:
    """Look at this machine. Imports torch and the C++ kernels, nothing else that is heavy."""
    native = import_module(_NATIVE) if find_spec(_NATIVE) else None
    versions: dict[str, str | None] = {"guardcore": import_module("guardcore").__version__}
    versions["python"] = platform.python_version()
    versions.update((name, _version(name)) for name in _DISTRIBUTIONS)
    return DoctorReport(
        versions=versions,
        isa=native.isa() if native else "",
        threads=torch.get_num_threads(),
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        cells=tuple(cell for op in ops.OPS for cell in (_cpu_cell(op), _gpu_cell(op))),
        encoders=tuple(_encoders()),
    )


def _cpu_cell(op: str) -> Cell:
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"guardcore::{op}", "CPU"):
        return Cell(op, "cpu", "C++")
    return Cell(op, "cpu", "definition", f"not built: {_why_not_built()}")


def _gpu_cell(op: str) -> Cell:
    device = "rocm" if torch.version.hip else "cuda"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"guardcore::{op}", "CUDA"):
        return Cell(op, device, "definition", "triton is not installed: pip install 'guardcore-vlm[gpu]'")
    if not (torch.version.cuda or torch.version.hip):
        return Cell(op, device, "nothing", f"torch {torch.__version__} is built without CUDA and ROCm")
    return Cell(op, device, "Triton", "" if torch.cuda.is_available() else "no GPU here that torch can use")


def _why_not_built() -> str:
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        return "no C++ compiler on PATH; install one, or a wheel for this platform"
    return "this is the pure wheel; install with torch present: pip install --no-build-isolation guardcore-vlm"


def _encoders() -> Iterable[EncoderState]:
    weights = resources.files("guardcore") / "data" / "builtin.safetensors"
    yield EncoderState(
        "builtin", weights.is_file(), "" if weights.is_file() else "the wheel has no builtin.safetensors"
    )
    for spec, module, extra in (
        ("open_clip:MODEL/PRETRAINED", "open_clip", "open_clip"),
        ("transformers:ID_OR_DIRECTORY", "transformers", "transformers"),
    ):
        there = find_spec(module) is not None
        yield EncoderState(spec, there, "" if there else f"pip install 'guardcore-vlm[{extra}]'")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])
