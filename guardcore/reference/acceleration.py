"""Leaps between Sinkhorn's iterations: fewer of them to the same tolerance, at small epsilon ten times fewer.

In x = g / epsilon the balanced iteration climbs the concave semi-dual, sum_m b_m x_m + sum_n a_n f_n(x) / epsilon.
After a row update its gradient is b_m gap_m with gap_m = 1 - w_m, where w_m is the mass that the plan puts on prototype
m over its demand b_m, and the column update, the plain step, is x_m -= log w_m. A leap is a step of the memoryless BFGS
method (Shanno 1978, doi 10.1287/moor.3.3.244) in the metric of b, <p, q> = sum_m b_m p_m q_m, from the last step s and
the drop y of the gap along it:

    alpha = <s, gap> / <s, y>,  gamma = <s, y> / <y, y>,
    d = gamma (gap - alpha y) + (2 alpha - gamma <y, gap> / <s, y>) s.

A leap must climb. By the trapezoidal rule the dual has fallen if the slope <d, gap> has turned by more than it was
before: then the leap is shortened, once, to where a linear slope is zero, and after that undone in favor of the plain
step. Nothing is promised by a leap: a solve ends after a plain step only, by the same criterion as without leaps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LONGEST = 10.0  # of a leap, in any coordinate of x: a factor of 22,000 on a column
SHORTEST_CUT, LONGEST_CUT = 0.1, 0.9  # bounds of the factor that shortens a leap
WELL = 0.1  # a plain step that leaves this share of the error is followed by another
FAR, FAR_WELL = 1.0, 0.5  # beyond a factor e on a column plain steps go first, as long as each halves its logarithm
ROOM = 3  # iterations that a leap may need until it is undone and a plain step has followed
MOST_FAILURES = 20  # the pause after a leap that was undone doubles until here


class Sums(NamedTuple):
    """Over the prototypes of a problem, weighted by b, at the present point.

    error: sum b |gap|, a bound of the row error after the next plain step. far: largest |log w|. size: sum b |d|.
    along: <d, gap>, drop: <d, y>, and the products of gap and y.
    """

    error: Tensor
    far: Tensor
    size: Tensor
    along: Tensor
    drop: Tensor
    gap_gap: Tensor
    gap_y: Tensor
    y_y: Tensor


class Leaps:
    """Which steps of a solve leap, for problems of any leading shape; b[..., M] are their column marginals."""

    def __init__(self, b: Tensor, max_iterations: int, tolerance: float) -> None:
        self.b = b
        self.last_start = max_iterations - ROOM
        self.noise = 8 * torch.finfo(b.dtype).eps  # relative, of a sum over patches
        self.enough = max(tolerance, self.noise)
        zero = torch.zeros_like(b.sum(-1))
        no = torch.zeros_like(zero, dtype=torch.bool)
        # of the point that was kept last, and of the step scale * direction from there
        self.log_w, self.direction = torch.zeros_like(b), torch.zeros_like(b)
        self.scale, self.slope, self.error, self.far = zero, zero, zero, zero
        self.leapt, self.shortened, self.was_plain = no, no, no
        self.failures = self.pause = torch.zeros_like(zero, dtype=torch.int64)

    def __call__(self, log_w: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """Decide iteration number `iteration` >= 1 at the point of log_w[..., M].

        Returns moves[...] and step[..., M]: a problem that moves goes to x + step; the others take the plain step.
        """
        log_w = torch.where(self.b > 0, log_w, 0.0)
        now = self._sums(log_w)
        fell = self.leapt & ~(now.along >= -self.slope)
        shorten = fell & ~self.shortened & (now.along < 0) & now.error.isfinite()
        undo = fell & ~shorten
        direction, slope = self._bfgs(log_w, now)
        leap = ~fell & (slope > 0) & self._may_leap(now, iteration)
        longest = direction.abs().amax(-1)
        scale = torch.where(leap & (longest > LONGEST), LONGEST / longest, 1.0)
        cut = self.scale * (self.slope / (self.slope - now.along)).clamp(SHORTEST_CUT, LONGEST_CUT)
        scale = torch.where(shorten, cut, scale)
        direction = _choose(leap, direction, _choose(shorten, self.direction, _choose(undo, -self.log_w, -log_w)))
        taken = torch.where(fell, self.scale, 0.0).unsqueeze(-1) * self.direction  # what the fallen leap has moved
        self._pause(undo, fell)
        self.log_w = _choose(fell, self.log_w, log_w)
        self.direction, self.scale = direction, scale
        self.slope = torch.where(fell, self.slope, slope)
        self.error, self.far = torch.where(fell, self.error, now.error), torch.where(fell, self.far, now.far)
        self.leapt, self.shortened, self.was_plain = leap | shorten, shorten, ~(leap | shorten)
        return leap | fell, scale.unsqueeze(-1) * direction - taken

    def _sums(self, log_w: Tensor) -> Sums:
        gap, y = self._gap_and_drop(log_w)
        d = self.direction
        products = (gap.abs(), d.abs(), d * gap, d * y, gap * gap, gap * y, y * y)
        error, *rest = ((self.b * product).sum(-1) for product in products)
        return Sums(error, log_w.abs().amax(-1), *rest)

    def _gap_and_drop(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """The gap at the present point, and how much it dropped since the one kept last."""
        return 1 - log_w.exp(), log_w.exp() - self.log_w.exp()

    def _bfgs(self, log_w: Tensor, now: Sums) -> tuple[Tensor, Tensor]:
        """The direction d[..., M] and its slope <d, gap>[...], not above 0 if the last step says nothing.

        Where the gap dropped by no more than noise, the dual is flat: as far along the last step as noise lets it be
        said, if that is longer than the step was.
        """
        gap, y = self._gap_and_drop(log_w)
        noise = self.noise * now.size
        curved = now.drop > noise
        alpha = torch.where(curved, now.along / now.drop, 0.0)
        gamma = torch.where(curved, self.scale * now.drop / now.y_y, 0.0)
        flat = self.scale * now.along / noise
        along = torch.where(curved, 2 * alpha * self.scale - gamma * now.gap_y / now.drop, flat)
        direction = gamma.unsqueeze(-1) * (gap - alpha.unsqueeze(-1) * y) + along.unsqueeze(-1) * self.direction
        slope = gamma * (now.gap_gap - alpha * now.gap_y) + along * now.along
        return direction, torch.where(curved | (along > 1), slope, 0.0)

    def _may_leap(self, now: Sums, iteration: int) -> Tensor:
        """There is room and time, and plain steps do not do well by themselves."""
        swift = self.was_plain & (now.error < WELL * self.error)
        far = (now.far > FAR) & ~(self.was_plain & (now.far > FAR_WELL * self.far))
        room = iteration <= self.last_start
        return ~swift & ~far & (self.pause == 0) & (now.error > self.enough) & room

    def _pause(self, undo: Tensor, fell: Tensor) -> None:
        """After each leap that was undone, twice as many plain steps: a hard problem costs a few sweeps, no more."""
        self.failures = (self.failures + undo).clamp(max=MOST_FAILURES)
        passed = torch.where(fell, self.pause, (self.pause - 1).clamp(min=0))
        self.pause = torch.where(undo, 2**self.failures, passed)


def _choose(problems: Tensor, these: Tensor, those: Tensor) -> Tensor:
    """[..., M]: `these` where problems[...], else `those`."""
    return torch.where(problems.unsqueeze(-1), these, those)
