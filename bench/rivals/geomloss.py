"""GeomLoss: batched, in the log domain, both potentials at once, epsilon annealed from the cost's diameter.

It spends its iterations on the way down and one at the target, and has no stop rule that is looked at: there is nothing
like plain iterations to compare with. Its distances are compared with the optimum, and must come within 10 %.
"""

from __future__ import annotations

from torch import Tensor

from bench.rivals.contender import Contender, by_plans


def annealed(cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> Tensor:
    """Return the plans of geomloss.ot.solve_batch after that many annealing steps."""
    from geomloss import ot

    del tolerance
    return ot.solve_batch(cost, reg=epsilon, max_iter=iterations).plan


CONTENDERS = (
    Contender("geomloss ot.solve_batch", by_plans(annealed), "geomloss", criterion=None, optimum=True, gate=0.1),
)
