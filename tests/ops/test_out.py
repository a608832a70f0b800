"""Operators that write into the caller's tensors: same numbers, no memory but theirs, every misuse named."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from guardcore import ops
from guardcore.ops import buffers as writing
from guardcore.ops.sinkhorn import SINKHORN

OPS = ("sinkhorn", "sinkhorn_packed", "joint_sinkhorn", "joint_sinkhorn_packed")
OPTIONS = {"epsilon": 0.05, "max_iterations": 20, "tolerance": 1e-4, "relaxation": None}
OFFSETS = torch.tensor([0, 3, 3, 14], dtype=torch.int32)  # the second item is empty


class Problem:
    """Arguments of an operator, by the names of its public call, and buffers for them."""

    def __init__(self, op: str, dtype: torch.dtype = torch.float32) -> None:
        self.op, self.packed, self.joint = op, "packed" in op, "joint" in op
        g = torch.Generator().manual_seed(0)
        patches, prototypes = torch.randn(2, 7, 5, generator=g), torch.randn(3, 4, 5, generator=g)
        weights = torch.rand(2, 7, generator=g)
        patches[1, 6, 2] = torch.nan  # an item that cannot be judged must be written too
        points: dict[str, Any] = {"patches": patches.to(dtype), "prototypes": prototypes.to(dtype)}
        self.sizes: dict[str, Any] = {}
        if self.packed:
            points["patches"], weights = points["patches"].flatten(0, 1), weights.flatten()
            self.sizes["cu_seqlens"] = OFFSETS
        if self.joint:
            points["prototypes"] = points["prototypes"][0].contiguous()
            self.sizes["num_groups"] = 2
        self.points = points
        self.arguments = {**points, **self.sizes, "patch_weights": weights, **OPTIONS}
        if self.joint:
            self.arguments["group"] = torch.tensor([0, 1, 0, 1])

    def buffers(self) -> Any:
        """Buffers full of NaN and of a number of iterations that no call makes."""
        family = ops.joint_sinkhorn_buffers if self.joint else ops.sinkhorn_buffers
        made = family(**self.points, **self.sizes)
        for tensor in made[:-1]:
            tensor.fill_(torch.nan if tensor.is_floating_point() else -7)
        return made

    def run(self, **changes: Any) -> Any:
        return getattr(ops, self.op)(**{**self.arguments, **changes})

    def positional(self, out: Any) -> tuple[Any, ...]:
        """Arguments of the torch op."""
        named = {"prototype_weights": None, **self.arguments}
        schema = getattr(torch.ops.guardcore, f"{self.op}_out").default._schema
        return tuple(named[argument.name] for argument in schema.arguments if argument.name in named) + tuple(out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_buffers_get_the_same_bits(op, dtype):
    problem = Problem(op, dtype)
    buffers, expected = problem.buffers(), problem.run()
    got = problem.run(out=buffers)
    assert type(got) is type(expected)
    for name, tensor, value in zip(expected._fields, got, expected, strict=True):
        assert tensor is getattr(buffers, name)
        torch.testing.assert_close(tensor, value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_the_potentials_give_the_plan():
    problem = Problem("sinkhorn")
    buffers = problem.buffers()
    problem.run(out=buffers)
    patches, prototypes = (torch.nn.functional.normalize(problem.points[k], dim=-1) for k in ("patches", "prototypes"))
    weights = problem.arguments["patch_weights"][0]
    cost = 1 - torch.einsum("nd,cmd->cnm", patches[0], prototypes)
    plan = ((buffers.f[0][..., None] + buffers.g[0][:, None] - cost) / OPTIONS["epsilon"]).exp()
    plan *= (weights / weights.sum())[:, None] / prototypes.shape[1]
    torch.testing.assert_close((plan * cost).sum((-1, -2)), buffers.distance[0], rtol=1e-4, atol=1e-6)


def test_buffers_serve_many_calls():
    """Nothing of the call before shows."""
    problem = Problem("sinkhorn")
    buffers = problem.buffers()
    problem.run(patches=torch.full((2, 7, 5), torch.inf), out=buffers)
    assert buffers.distance.isnan().all()
    clean = torch.randn(2, 7, 5)
    problem.run(patches=clean, out=buffers)
    assert torch.equal(buffers.patch_score, problem.run(patches=clean).patch_score)


def test_no_items_is_a_legal_batch():
    patches, prototypes = torch.empty(0, 7, 5), torch.randn(3, 4, 5)
    assert ops.sinkhorn(patches, prototypes, out=ops.sinkhorn_buffers(patches, prototypes)).distance.shape == (0, 3)


def test_buffers_without_a_device_have_shapes():
    problem = Problem("sinkhorn_packed")
    made = ops.sinkhorn_buffers(**{k: v.to("meta") for k, v in (problem.points | problem.sizes).items()})
    assert [list(t.shape) for t in made[:-1]] == [[3, 3], [3, 14], [3, 14], [3, 3], [3, 3], [3, 3], [3, 14], [3, 3, 4]]
    assert made.workspace is None


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op):
    problem = Problem(op)
    torch.library.opcheck(getattr(torch.ops.guardcore, f"{op}_out"), problem.positional(problem.buffers()))


def screen(patches: Tensor, prototypes: Tensor, buffers: Any) -> Tensor:
    ops.sinkhorn(2 * patches, prototypes, out=buffers)
    return buffers.patch_score.amin(-1) + buffers.iterations


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_into_one_graph(backend, dynamic):
    compiled = torch.compile(screen, fullgraph=True, backend=backend, dynamic=dynamic)
    for B in (2, 3, 5):
        patches, prototypes = torch.randn(B, 7, 5), torch.randn(3, 4, 5)
        expected, got = (ops.sinkhorn_buffers(patches, prototypes) for _ in range(2))
        torch.testing.assert_close(compiled(patches, prototypes, got), screen(patches, prototypes, expected))
        for one, other in zip(got[:-1], expected[:-1], strict=True):
            assert torch.equal(one, other)


def test_runs_in_inference_mode():
    problem = Problem("sinkhorn")
    expected = problem.run().iterations
    with torch.inference_mode():
        assert torch.equal(problem.run(out=problem.buffers()).iterations, expected)
        made_inside = problem.buffers()
    assert torch.equal(problem.run(out=made_inside).iterations, expected)


@pytest.mark.parametrize("name", ["patches", "prototypes", "patch_weights", "out.f"])
def test_a_gradient_is_refused(name):
    problem = Problem("sinkhorn")
    buffers = problem.buffers()
    tensor = buffers.f if name == "out.f" else problem.arguments[name]
    tensor.requires_grad_()
    with pytest.raises(RuntimeError, match=f"^{name} requires a gradient"):
        problem.run(out=buffers)
    with pytest.raises(Exception, match=f"{name} requires a gradient"):
        torch.compile(lambda: problem.run(out=buffers), backend="aot_eager")()
    with torch.no_grad():
        assert torch.equal(problem.run(out=buffers).iterations, problem.run().iterations)


def test_a_tangent_is_refused():
    problem = Problem("joint_sinkhorn")
    with forward_ad.dual_level():
        patches = forward_ad.make_dual(problem.points["patches"], torch.ones(2, 7, 5))
        with pytest.raises(RuntimeError, match="patches has a tangent"):
            problem.run(patches=patches, out=problem.buffers())


def test_autograd_learns_what_was_overwritten():
    problem = Problem("sinkhorn")
    buffers, scale = problem.buffers(), torch.ones(2, 3, requires_grad=True)
    loss = (scale * buffers.distance).sum()
    problem.run(out=buffers)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


WRONG = {
    "shape": (lambda t: t.new_empty(*t.shape, 1), ValueError, "must have shape"),
    "one-more": (lambda t: t.new_empty(t.shape[0] + 1, *t.shape[1:]), ValueError, "must have shape"),
    "broadcasts": (lambda t: t[:1].clone(), ValueError, "must have shape"),
    "dtype": (lambda t: t.double(), TypeError, "must be torch"),
    "device": (lambda t: t.to("meta"), ValueError, "must be on cpu"),
    "strides": (lambda t: t.new_empty(*t.shape, 2)[..., 0], ValueError, "must be contiguous"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("op", OPS)
def test_wrong_results_are_named(op, wrong):
    spoil, error, message = WRONG[wrong]
    problem = Problem(op)
    buffers = problem.buffers()
    for name in buffers._fields[:-1]:
        spoiled = buffers._replace(**{name: spoil(getattr(buffers, name))})
        with pytest.raises(error, match=f"^out.{name} {message}"):
            problem.run(out=spoiled)
        with pytest.raises(error, match=f"^out.{name} {message}"):  # whoever calls the torch op gets no less
            getattr(torch.ops.guardcore, f"{op}_out")(*problem.positional(spoiled))
    assert all(t.isnan().all() for t in buffers[:-1] if t.is_floating_point()), "nothing is written before the checks"


def test_wrong_results_are_found_in_a_trace():
    problem = Problem("sinkhorn")
    buffers = problem.buffers()._replace(g=torch.empty(2, 3, 5))
    with pytest.raises(Exception, match=r"out\.g must have shape"):
        torch.compile(lambda: problem.run(out=buffers), fullgraph=True, backend="aot_eager")()


@pytest.mark.parametrize(
    ("op", "name", "value", "error", "message"),
    [
        ("sinkhorn", "patches", torch.ones(2, 5, 7).mT, ValueError, "must be contiguous"),
        ("sinkhorn", "prototypes", torch.ones(3, 5, 4).mT, ValueError, "must be contiguous"),
        ("sinkhorn", "patch_weights", torch.ones(7, 2).mT, ValueError, "must be contiguous"),
        ("sinkhorn", "patch_weights", torch.ones(2, 7).double(), TypeError, "must be torch.float32"),
        ("sinkhorn", "patch_weights", -torch.ones(2, 7), ValueError, "must be finite"),
        ("sinkhorn_packed", "prototype_weights", torch.ones(3, 4).half(), TypeError, "must be torch.float32"),
        ("sinkhorn_packed", "cu_seqlens", OFFSETS.long(), TypeError, "must be torch.int32"),
        ("sinkhorn_packed", "cu_seqlens", OFFSETS + 1, ValueError, "must start at 0"),
        ("joint_sinkhorn", "group", torch.tensor([0, 1, 0, 1]).int(), TypeError, "must be torch.int64"),
        ("joint_sinkhorn_packed", "group", torch.tensor([0, 1, 0, 2]), ValueError, "must be in 0 ... 1"),
        ("joint_sinkhorn_packed", "epsilon", -1.0, ValueError, "must be a finite number"),
    ],
)
def test_inputs_that_would_need_a_conversion_are_named(op, name, value, error, message):
    """A conversion allocates, which a CUDA graph must not; a CPU says so first."""
    problem = Problem(op)
    with pytest.raises(error, match=f"^{name} {message}"):
        problem.run(**{name: value}, out=problem.buffers())


def test_memory_is_not_shared():
    problem = Problem("sinkhorn")
    buffers, flat = problem.buffers(), torch.empty(100)
    with pytest.raises(ValueError, match=r"^out.patch_score must have memory of its own.*out.patch_cost"):
        problem.run(out=buffers._replace(patch_score=buffers.patch_cost))
    with pytest.raises(ValueError, match=r"^out.objective must have memory of its own.*out.distance"):
        problem.run(out=buffers._replace(distance=flat[:6].view(2, 3), objective=flat[5:11].view(2, 3)))
    with pytest.raises(ValueError, match=r"^out.patch_cost must have memory of its own.*patches"):
        problem.run(out=buffers._replace(patch_cost=problem.points["patches"].view(-1)[:42].view(2, 3, 7)))
    with pytest.raises(ValueError, match=r"^out.workspace must have memory of its own.*out.g"):
        problem.run(out=buffers._replace(workspace=buffers.g.view(-1)))
    neighbors = buffers._replace(distance=flat[:6].view(2, 3), objective=flat[6:12].view(2, 3))
    torch.testing.assert_close(problem.run(out=neighbors).distance, problem.run().distance, equal_nan=True)


@pytest.mark.parametrize("out", [torch.empty(2, 3), {"distance": torch.empty(2, 3)}, (torch.empty(2, 3),)])
def test_out_is_what_the_helper_makes(out):
    with pytest.raises(TypeError, match=r"^out must be what ops\.sinkhorn_buffers makes"):
        Problem("sinkhorn").run(out=out)


@pytest.mark.parametrize("op", OPS)
def test_gpu_buffers_have_the_workspace_that_the_launchers_ask_for(op):
    pytest.importorskip("triton")
    kernels = importlib.import_module(f"guardcore.triton_kernels.{op.removesuffix('_packed')}")
    problem = Problem(op)
    with FakeTensorMode() as mode:
        for tensors in (problem.points, problem.sizes):
            tensors.update((k, mode.from_tensor(v).cuda()) for k, v in tensors.items() if torch.is_tensor(v))
        made = problem.buffers()
        assert {tensor.device.type for tensor in made} == {"cuda"}
        assert made.workspace.shape == (kernels.workspace_numel(**problem.points, **problem.sizes),)


def launcher(monkeypatch: pytest.MonkeyPatch, numel: int) -> tuple[Any, list[tuple[Any, ...]]]:
    """The GPU side of sinkhorn_out on kernels that note their arguments and ask for `numel` numbers a sized input."""
    seen: list[tuple[Any, ...]] = []
    kernels = SimpleNamespace(
        sinkhorn_out=lambda *args: seen.append(args),
        workspace_numel=lambda **sizes: len(sizes) * numel,
    )
    monkeypatch.setitem(sys.modules, "guardcore.triton_kernels.sinkhorn", kernels)
    return writing.out_launcher(SINKHORN), seen


def test_gpu_launchers_get_the_very_tensors(monkeypatch):
    launch, seen = launcher(monkeypatch, 5)
    problem = Problem("sinkhorn")
    arguments = problem.positional(problem.buffers()._replace(workspace=torch.empty(12)))
    launch(*arguments)
    assert len(seen[0]) == len(arguments)
    assert all(one is other for one, other in zip(seen[0], arguments, strict=True))


@pytest.mark.parametrize(
    ("workspace", "message"),
    [
        (None, "must hold at least 10 float32 numbers for these sizes, got none"),
        (torch.empty(9), "must hold at least 10 float32 numbers for these sizes, got 9"),
        (torch.empty(12)[1:], "must start at a multiple of 16 bytes"),
        (torch.empty(12, 1), "must have shape"),
        (torch.empty(24)[::2], "must be contiguous"),
        (torch.empty(12, dtype=torch.int32), "must be torch.float32"),
    ],
)
def test_gpu_launchers_get_a_workspace_that_suffices(monkeypatch, workspace, message):
    launch, seen = launcher(monkeypatch, 5)
    problem = Problem("sinkhorn")
    with pytest.raises((TypeError, ValueError), match=f"^out.workspace {message}"):
        launch(*problem.positional(problem.buffers()._replace(workspace=workspace)))
    assert not seen
