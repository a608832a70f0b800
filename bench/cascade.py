"""What does a decision cost when bounds come first? `python -m bench.cascade [--scenes 400] [--threads 1]`.

Traffic as the built-in encoder makes it: generated scenes, 5 % of them with an unsafe object, screened at the shipped
thresholds of the rule `normalized`. Timed are the product of patches and prototypes alone (torch.mm, with and without
the prototypes that only pad a category), the cascade, and the solver on every pair. Embedding is not in the times.
Nothing is timed unless the cascade's hits are those of solving everything and its bounds hold in float64.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import guardcore
from bench import results_file
from bench.detection_data import TEST_SEED, generator, styles
from bench.measure import interleave
from guardcore import ops, reference
from guardcore.detector.detector import Detector
from guardcore.detector.judging import flag_thresholds
from guardcore.detector.scoring import SolverOptions
from guardcore.patches import PatchMode, extract_patches
from guardcore.prototypes.bank import PrototypeBank

ONE_UNSAFE_IN = 20
_CHUNK = 64


@dataclass(frozen=True)
class Traffic:
    """Patches [B, N, D] of B pictures, what they are compared with, and the thresholds [C]."""

    patches: Tensor
    bank: PrototypeBank
    thresholds: Tensor
    options: SolverOptions

    def screen(self) -> ops.ScreenOutput:
        """The cascade."""
        bank = self.bank
        return ops.sinkhorn_screen(self.patches, bank.prototypes, self.thresholds, None, bank.weights, **self.options)

    def solve(self) -> ops.SinkhornOutput:
        """Every pair."""
        return ops.sinkhorn(self.patches, self.bank.prototypes, None, self.bank.weights, **self.options)


def traffic(scenes: int) -> Traffic:
    """Draw and embed scenes 0 ... scenes - 1, the last of every twenty with an unsafe object."""
    detector = Detector(guardcore.load_encoder("builtin"), guardcore.Policy.builtin("demo"), scoring="normalized")
    source = generator(styles()[0], TEST_SEED)
    kinds = ["unsafe" if index % ONE_UNSAFE_IN == ONE_UNSAFE_IN - 1 else "benign" for index in range(scenes)]
    pictures = [Image.fromarray(source.scene(index, kind).image) for index, kind in enumerate(kinds)]
    sets = [
        item
        for start in range(0, scenes, _CHUNK)
        for item in extract_patches(detector.encoder, pictures[start : start + _CHUNK], PatchMode())
    ]
    thresholds = torch.from_numpy(flag_thresholds(detector.policy, detector.calibration))
    options = detector.scoring.solver_options(detector.bank)
    return Traffic(torch.stack([item.embeddings for item in sets]).float(), detector.bank, thresholds, options)


def gate(load: Traffic) -> dict[str, Any]:
    """The shares of hits and of what was cleared; SystemExit if a hit differs or a bound does not hold."""
    screened, solved = load.screen(), load.solve()
    hits = solved.patch_score.amin(-1) <= load.thresholds
    if not torch.equal(~screened.cleared & (screened.patch_score.amin(-1) <= load.thresholds), hits):
        raise SystemExit("not timed: the cascade's hits are not those of solving every pair")
    bank, everything = load.bank, torch.full_like(load.thresholds, -torch.inf)
    points = (load.patches.double(), bank.prototypes.double(), everything, None, bank.weights)
    excess = float((screened.bound.double() - reference.sinkhorn_screen(*points).bound).max())
    if not excess <= 0:
        raise SystemExit(f"not timed: a bound is {excess} above its value in float64")
    return {
        "hits": float(hits.double().mean()),
        "pictures_with_hits": float(hits.any(1).double().mean()),
        "pairs_cleared": float(screened.cleared.double().mean()),
        "pictures_cleared": float(screened.cleared.all(1).double().mean()),
    }


def measure(load: Traffic, rounds: int) -> list[dict[str, Any]]:
    """Time the contenders in turns; one row each."""
    rows, bank = load.patches.flatten(0, 1), load.bank
    padded = bank.prototypes.flatten(0, 1).T.contiguous()
    kept = bank.prototypes[bank.weights > 0].T.contiguous()
    contenders = {
        f"torch.mm, {padded.shape[1]} columns": lambda: torch.mm(rows, padded),
        f"torch.mm, {kept.shape[1]} columns": lambda: torch.mm(rows, kept),
        "cascade": load.screen,
        "sinkhorn, every pair": load.solve,
    }
    timings = interleave(contenders, rounds)
    product = next(iter(timings.values())).cpu
    return [
        {
            "contender": name, "cpu_ms": timing.cpu, "cpu_q1": timing.cpu_quartiles[0],
            "cpu_q3": timing.cpu_quartiles[1], "wall_ms": timing.wall, "over_product": timing.cpu / product,
            "ns_a_patch": timing.cpu * 1e6 / len(rows),
        }
        for name, timing in timings.items()
    ]  # fmt: skip


def show(rows: list[dict[str, Any]], shares: dict[str, Any], title: str) -> None:
    """Print the rows as a table."""
    table = Table("", "CPU ms", "quartiles", "wall ms", "ns a patch", "x torch.mm", title=title)
    for r in rows:
        table.add_row(
            r["contender"], f"{r['cpu_ms']:.2f}", f"{r['cpu_q1']:.2f} - {r['cpu_q3']:.2f}", f"{r['wall_ms']:.2f}",
            f"{r['ns_a_patch']:.0f}", f"{r['over_product']:.2f}",
        )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    console.print(", ".join(f"{name.replace('_', ' ')} {value:.2%}" for name, value in shares.items()))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        load = traffic(arguments.scenes)
        shares = gate(load)
        rows = measure(load, arguments.rounds)
    B, N, D = load.patches.shape
    settings = {"scenes": B, "patches": N, "width": D, "epsilon": load.options["epsilon"]}
    show(rows, shares, f"{B} scenes of {N} patches, width {D}, {arguments.threads} thread(s)")
    results_file.append("cascade", [row | shares | settings for row in rows])


if __name__ == "__main__":
    main()
