"""Build guardcore._C, one abi3 library, where torch and a C++ compiler are at hand; a pure wheel elsewhere.

GUARDCORE_BUILD=auto (default) builds if it can and says why if it cannot, 1 insists, 0 never builds. A compiler that is
there but fails is an error, never a silent fallback.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup

CSRC = Path("csrc")
COMPILE_FLAGS = [
    "-O3",
    # Without these two GCC keeps branches and calls in the loops and does not vectorize them. -ffast-math would also
    # change what NaN means, which the kernels rely on.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",  # `omp simd` only: threads come from torch, so no OpenMP runtime is linked
    "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # the stable ABI of torch 2.10: one library for every later torch
]


def why_not() -> str | None:
    """Say what is missing for a native build, or None."""
    if os.name != "posix":
        return "the C++ kernels are built on Linux and macOS only"
    if importlib.util.find_spec("torch") is None:
        return "torch is not in the build environment (install torch, then use pip's --no-build-isolation)"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        return f"no C++ compiler: {compiler[0]} is not on PATH"
    probe = [*compiler, "-std=c++17", "-fsyntax-only", "-I", sysconfig.get_path("include"), "-x", "c++", "-"]
    outcome = subprocess.run(probe, input="#include <Python.h>\n", text=True, capture_output=True, check=False)
    if outcome.returncode:
        return f"{compiler[0]} cannot compile C++17 against Python's headers: {outcome.stderr.strip().splitlines()[:1]}"
    return None


def wants_native() -> bool:
    """Read GUARDCORE_BUILD and the machine."""
    mode = os.environ.get("GUARDCORE_BUILD", "auto")
    if mode not in {"auto", "0", "1"}:
        sys.exit(f"GUARDCORE_BUILD must be auto, 0 or 1, got {mode!r}")
    gap = "GUARDCORE_BUILD=0" if mode == "0" else why_not()
    if gap and mode == "1":
        sys.exit(f"GUARDCORE_BUILD=1, but {gap}")
    if gap:
        print(f"guardcore: building without C++ kernels ({gap}); the PyTorch definitions will run.", file=sys.stderr)
    return gap is None


def native() -> dict:
    """Arguments of setup() that build the library; torch is imported only where something is really built."""
    sources = sorted(map(str, CSRC.glob("*.cpp")))
    extension = Extension(
        "guardcore._C",
        sources,
        depends=sorted(map(str, CSRC.rglob("*.h"))),  # a change in any of them compiles again
        include_dirs=[str(CSRC)],
        extra_compile_args=COMPILE_FLAGS,
        py_limited_api=True,
        language="c++",
    )
    options = {"bdist_wheel": {"py_limited_api": "cp310"}}
    if not {"bdist_wheel", "editable_wheel", "build_ext", "develop", "install"} & set(sys.argv):
        return {"ext_modules": [extension], "options": options}
    from torch.utils import cpp_extension

    extension.include_dirs += cpp_extension.include_paths()
    extension.library_dirs += cpp_extension.library_paths()
    extension.libraries += ["torch", "torch_cpu", "c10"]
    return {"ext_modules": [extension], "options": options, "cmdclass": {"build_ext": cpp_extension.BuildExtension}}


setup(
    packages=[*find_packages(include=["guardcore", "guardcore.*"]), "guardcore.triton_kernels"],
    **(native() if wants_native() else {}),
)
