"""All contenders, in the order in which tables list them."""

from __future__ import annotations

from bench.rivals import compiled, flash, geomloss, numba_one_pass, ott, ours, pot, torch_loops

CONTENDERS = {
    contender.name: contender
    for module in (ours, numba_one_pass, compiled, torch_loops, pot, ott, geomloss, flash)
    for contender in module.CONTENDERS
}
