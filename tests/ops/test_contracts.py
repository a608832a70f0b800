"""What torch expects of a custom operator, for all of ours: schema, fake, autograd, compile, export, notices."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from guardcore import ops
from guardcore.ops.registration import triton_launcher

OPTIONS = (0.05, 20, 1e-4, None)
DIFFERENTIABLE = ("sinkhorn", "sinkhorn_packed")


def arguments(name: str, gradient: bool) -> tuple[object, ...]:
    """Small positional arguments of the torch op."""
    g = torch.Generator().manual_seed(0)
    if name == "calibrated_attention":
        query, key = torch.randn(2, 4, 5, 8, generator=g), torch.randn(2, 2, 7, 8, generator=g)
        kinds, rule = torch.randint(3, (2, 7), generator=g, dtype=torch.uint8), torch.rand(1, 4, 3, 3, generator=g)
        masks = torch.rand(2, 5, generator=g) > 0.3, torch.rand(2, 7, generator=g) > 0.3
        groups, start = torch.tensor([[0, 1, 1, 0, 2, 2, 2]] * 2), torch.tensor([2, 1])
        return query, key, key.flip(2), kinds, rule, *masks, groups, start, True, 0.3, 4, 5.0, True
    if name == "calibrated_attention_paged":
        query, pages = torch.randn(6, 4, 8, generator=g), torch.randn(5, 3, 2, 8, generator=g)
        table, offsets = torch.tensor([[3, 0, 4], [1, 3, -1]], dtype=torch.int32), torch.tensor([0, 4, 6])
        kinds, rule = torch.randint(3, (2, 8), generator=g, dtype=torch.uint8), torch.rand(2, 4, 3, 3, generator=g)
        lengths, rows = torch.tensor([8, 5], dtype=torch.int32), torch.rand(6, generator=g) > 0.3
        return query, pages, pages.flip(1), table, offsets.int(), lengths, kinds, rule, rows, 0.3, 4, 5.0, 4, True
    patches, prototypes = torch.randn(2, 7, 5, generator=g), torch.randn(3, 4, 5, generator=g)
    weights, group = torch.rand(2, 7, generator=g), torch.tensor([0, 1, 0, 1])
    offsets = torch.tensor([0, 3, 14], dtype=torch.int32)
    if "packed" in name:
        patches, weights = patches.flatten(0, 1), weights.flatten()
    if "joint" in name:
        prototypes = prototypes[0]
    if gradient:
        patches.requires_grad_(), prototypes.requires_grad_()
    points = (patches, offsets, prototypes) if "packed" in name else (patches, prototypes)
    if "joint" in name:
        return *points, group, weights, None, 2, *OPTIONS
    if "screen" in name:
        return *points, torch.full((3,), 2.0), weights, None, False, *OPTIONS  # opcheck takes NaN for a difference
    return *points, weights, None, *OPTIONS


@pytest.mark.parametrize("name", ops.OPS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.guardcore, name), arguments(name, gradient=name in DIFFERENTIABLE))


def loss(patches: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    out = ops.sinkhorn(patches, prototypes, epsilon=0.1)
    return out.objective.sum(), out.patch_score


def test_compiles_into_one_graph_with_gradients():
    patches, prototypes = torch.randn(2, 7, 5, requires_grad=True), torch.randn(3, 4, 5)
    objective, score = torch.compile(loss, fullgraph=True, backend="aot_eager")(patches, prototypes)
    (got,) = torch.autograd.grad(objective, patches)
    eager_objective, eager_score = loss(patches, prototypes)
    (expected,) = torch.autograd.grad(eager_objective, patches)
    torch.testing.assert_close(score, eager_score)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "changing"])
def test_compiles_into_one_graph_with_options_that_change(dynamic):
    """On its second value an option becomes a symbolic number."""

    def objective(patches: Tensor, prototypes: Tensor, epsilon: float) -> Tensor:
        options = {"epsilon": epsilon, "tolerance": epsilon / 50, "relaxation": 2 * epsilon}
        return ops.sinkhorn(patches, prototypes, **options).objective

    patches, prototypes = torch.randn(2, 7, 5), torch.randn(3, 4, 5)
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for epsilon in (0.05, 0.04, 0.03):
        expected = objective(patches, prototypes, epsilon)
        torch.testing.assert_close(compiled(patches, prototypes, epsilon), expected)


@pytest.mark.parametrize("offsets", [[0, 2**32 + 3, 2**32 + 6], [0, 4, 3, 6], [0, 3]])
def test_compiled_programs_refuse_wrong_offsets(offsets):
    """They skip the public call's look at values; in int32, 2^32 + 3 would be 3."""
    compiled = torch.compile(lambda x, o, p: ops.sinkhorn_packed(x, o, p).distance, fullgraph=True, backend="aot_eager")
    with pytest.raises((RuntimeError, ValueError), match="cu_seqlens must start at 0"):
        compiled(torch.randn(6, 5), torch.tensor(offsets), torch.randn(3, 4, 5))


def test_gpu_launchers_get_int32_offsets(monkeypatch):
    """The C++ kernels check 64-bit offsets; the Triton kernels read 32-bit ones."""
    seen: list[torch.dtype] = []
    launchers = SimpleNamespace(sinkhorn_packed=lambda *args: seen.append(args[1].dtype) or ())
    monkeypatch.setitem(sys.modules, "guardcore.triton_kernels.sinkhorn", launchers)
    triton_launcher("sinkhorn", "sinkhorn_packed")(torch.ones(6, 5), torch.tensor([0, 6]), torch.ones(1, 2, 5))
    assert seen == [torch.int32]


def test_compiled_programs_take_weights_and_refuse_their_gradient():
    def objective(patches: Tensor, prototypes: Tensor, weights: Tensor) -> Tensor:
        return ops.sinkhorn(patches, prototypes, weights).objective

    arguments = (torch.randn(2, 7, 5, requires_grad=True), torch.randn(3, 4, 5), torch.rand(2, 7))
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), objective(*arguments))
    arguments[2].requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(compiled(*arguments), objective(*arguments))
    with pytest.raises(Exception, match="patch_weights carries no gradient"):
        torch.compile(objective, backend="aot_eager")(*arguments)


@pytest.mark.slow
def test_compiles_with_inductor():
    patches, prototypes = torch.randn(2, 7, 5), torch.randn(3, 4, 5)
    compiled = torch.compile(lambda x, p: 1 - ops.sinkhorn(x, p).patch_score.amin(-1), fullgraph=True)
    torch.testing.assert_close(
        compiled(patches, prototypes), 1 - ops.sinkhorn(patches, prototypes).patch_score.amin(-1)
    )


class Screen(torch.nn.Module):
    def forward(self, patches: Tensor, prototypes: Tensor, weights: Tensor) -> Tensor:
        plain = ops.sinkhorn(patches, prototypes, weights).patch_score.amin(-1)
        group = torch.zeros(prototypes.shape[1], dtype=torch.int64)
        joint = ops.joint_sinkhorn(patches, prototypes[0], group, num_groups=2, relaxation=0.1)
        return plain + joint.group_mass[:, :1].amax(-1)


def test_exports_with_a_dynamic_batch():
    batch = torch.export.Dim("batch", min=1, max=64)
    example = (torch.randn(3, 7, 5), torch.randn(4, 6, 5), torch.rand(3, 7))
    program = torch.export.export(Screen(), example, dynamic_shapes=({0: batch}, None, {0: batch}))
    other = (torch.randn(5, 7, 5), example[1], torch.rand(5, 7))
    torch.testing.assert_close(program.module()(*other), Screen()(*other))


def test_meta_tensors_give_shapes_and_run_the_checks():
    patches, prototypes = torch.empty(2, 7, 5, device="meta"), torch.empty(3, 4, 5, device="meta")
    out = ops.sinkhorn(patches, prototypes)
    assert out.patch_cost.shape == (2, 3, 7)
    assert out.iterations.dtype == torch.int32
    with pytest.raises(ValueError, match="epsilon"):
        torch.ops.guardcore.sinkhorn(patches, prototypes, None, None, -1.0, 5, 0.0, None)


WITHOUT_KERNELS = """
import importlib.util, sys, warnings
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "guardcore._C" else find(name, *a)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import torch
    from guardcore import ops
    ours = lambda: [str(w.message) for w in seen if "guardcore" in str(w.message)]
    assert not ours(), "importing must say nothing"
    first = ops.sinkhorn(torch.ones(1, 3, 4), torch.ones(1, 2, 4))
    ops.sinkhorn_packed(torch.ones(3, 4), torch.tensor([0, 3]), torch.ones(1, 2, 4))
    assert len(ours()) == 1, ours()
    assert "not built" in ours()[0] and "guardcore doctor" in ours()[0]
    assert abs(float(first.distance)) < 1e-6
    from guardcore.doctor import report
    cells = [cell for cell in report().cells if cell.device == "cpu"]
    assert {cell.implementation for cell in cells} == {"definition"} and all(cell.note for cell in cells)
"""

BROKEN_KERNELS = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: find("json") if name == "guardcore._C" else find(name, *a)
import sys
sys.modules["guardcore._C"] = None
try:
    from guardcore import ops
except ImportError as error:
    assert "_C" in str(error)
else:
    raise SystemExit("a broken library went unnoticed")
"""


@pytest.mark.parametrize("script", [WITHOUT_KERNELS, BROKEN_KERNELS], ids=["not-built-says-so-once", "broken-raises"])
def test_state_of_the_build_is_never_silent(script):
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
