"""Whether the choices of a space can stand in for each other in one network, as searches by gradients need it."""

from __future__ import annotations

from typing import Any

from latbench.errors import ConfigError
from latbench.space import SearchSpace


def check_mixes(searcher: str, space: SearchSpace) -> None:
    """Raise :class:`ConfigError` unless the choices of every position can stand in for each other.

    Then they take and give the same shapes at the same places, whatever the other positions are.
    """
    blocks: dict[tuple[int, int], dict[str, set[Any]]] = {}
    for arch in space.covering_archs():
        for i, c in enumerate(arch):
            blocks.setdefault((i, c), {})
        for b in space.network(arch).blocks:
            if b.name.startswith("positions."):
                i = int(b.name.split(".")[1])
                blocks[i, arch[i]].setdefault(b.name, set()).add((b.op.inputs, b.op.outputs))
    why = ""
    for i, n in enumerate(space.num_choices):
        found = [blocks.get((i, c), {}) for c in range(n)]
        wired = [f for f in found if f]
        if not wired:
            why = f"position {i} has no block of its own"
        elif any(f.keys() != wired[0].keys() for f in wired):
            why = f"choices of position {i} are wired differently"
        else:
            for name in wired[0]:
                shapes = set.union(*(f[name] for f in wired))
                if len(shapes) > 1:
                    why = f"choices of position {i} take or give different shapes"
                elif len(wired) < n and any(takes[:1] != gives for takes, gives in shapes):
                    why = f"a choice of position {i} has no block, and the others change the shape"
        if why:
            raise ConfigError(
                f"{searcher}: {space.name} cannot be searched by mixing choices: {why}; spaces that can: proxyless, "
                "proxyless-cifar, mobilenetv3, nasbench201"
            )
