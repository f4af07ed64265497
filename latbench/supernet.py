"""All choices of all positions of a space as one torch module that runs any architecture.

The wiring is that of ``space.network(arch)``: block by block, each block the module that ``to_torch`` makes of it, so
that a supernet and the networks cut out of it are the same code. ``state_dict()`` names a weight
``positions.<i>.choices.<c>.<node>.<weight>`` (with the block's own scope before the node where a position becomes
several blocks), and ``fixed.<block>.<node>.<weight>`` for the blocks that every network has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from latbench.errors import ArchitectureError, ModelError
from latbench.network import Block
from latbench.op import Op
from latbench.space import Arch, SearchSpace
from latbench.torch_build import TorchNetwork
from latbench.torch_layers import Function
from latbench.weights import network_weights
from latbench.with_torch import Tensor, nn

#: How many architectures' wirings are remembered.
PLANS = 1024
#: Makes a position's output from the modules of its choices, in order, and its input.
Mixer = Callable[[Sequence[nn.Module], Tensor], Tensor]


class Supernet(nn.Module):  # type: ignore[misc]
    """Runs any architecture of ``space`` with shared weights; new ones are in training mode.

    Raises :class:`ModelError` for a space in which the weights of a block at one place depend on other positions: such
    a space overrides :meth:`SearchSpace.supernet`.
    """

    def __init__(self, space: SearchSpace, *, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self.fixed = nn.ModuleDict()
        self.positions = nn.ModuleList(Position(space, i) for i in range(space.positions))
        self._keys: dict[tuple[str, int], str] = {}
        self._stateless: dict[str, nn.Module] = {}
        for arch in space.covering_archs():
            for block in space.network(arch).blocks:
                self._add(block, seed)
        self._plans: dict[Arch, _Plan] = {}

    def forward(self, x: Tensor, arch: Iterable[int], mix: Mapping[int, Mixer] | None = None) -> Tensor:
        """The output of the architecture's network, any batch size.

        ``mix`` replaces positions: ``mix[i](modules, x)`` gets the modules of all choices of position ``i``, in order,
        and the position's input, and gives its output; where a position becomes several blocks it is called for each.
        A mixed position is wired as if it had a block, whatever ``arch`` says there; so blocks behind it run even where
        the mixer gives zeros.
        """
        a, mixers = self.space.validate(arch), mix or {}
        n = self.space.positions
        if wrong := [i for i in mixers if not 0 <= i < n]:
            raise ArchitectureError(f"{self.space.name} has positions 0–{n - 1}; mix names {wrong[0]}")
        if mixers:
            a = tuple(self.positions[i].wired if i in mixers else c for i, c in enumerate(a))
        plan = self._plan(a)
        values: dict[str, Tensor] = {plan.input: x}
        for step in plan.steps:
            inputs = [values[t] for t in step.block.inputs]
            if step.position in mixers:
                y = mixers[step.position](self.positions[step.position].at(step.place), *inputs)
            else:
                y = self._module(step.block)(*inputs)
            values[step.block.outputs[0]] = y
            for t in step.done:
                del values[t]
        return values[plan.output]

    def position(self, i: int) -> Position:
        """The modules of a position's choices."""
        position: Position = self.positions[i]
        return position

    def export(self, arch: Iterable[int]) -> TorchNetwork:
        """The architecture's network as ``to_torch`` makes it, with a copy of the weights, on the same device."""
        net = self.space.network(arch)
        module = TorchNetwork(net)
        module.to(next(self.parameters()).device)
        for block in net.blocks:
            if weights := self._module(block).state_dict():
                module.get_submodule(block.name).load_state_dict(weights)
        module.train(self.training)
        return module

    def copy_from(self, module: nn.Module, arch: Iterable[int]) -> None:
        """Copy the weights of an architecture's network (from ``to_torch`` or :meth:`export`) into the supernet."""
        for block in self.space.network(arch).blocks:
            own = self._module(block)
            if own.state_dict():
                own.load_state_dict(module.get_submodule(block.name).state_dict())

    # -- how it is made -----------------------------------------------------------------------------------------

    def _add(self, block: Block, seed: int) -> None:
        i, place = _where(block)
        if i < 0 and not _has_state(block.op):
            return
        known = self._keys.setdefault((block.name, block.choice), block.op.key)
        if known != block.op.key:
            raise ModelError(
                f"{self.space.name}: {block.name} is {known} in one network and {block.op.key} in another for the same "
                "choice: the space needs a supernet of its own"
            )
        if i >= 0:
            if not self.positions[i].has(block.choice, place):
                self.positions[i].add(block.choice, place, self._made(block.op, seed))
        elif _flat(block.name) not in self.fixed:
            self.fixed[_flat(block.name)] = self._made(block.op, seed)

    def _made(self, op: Op, seed: int) -> TorchNetwork:
        net = op.expand()
        module = TorchNetwork(net)
        own_seed = np.random.SeedSequence([seed, len(self._keys)]).generate_state(1)[0]
        module.set_weights(network_weights(net, seed=int(own_seed)))
        return module

    def _module(self, block: Block) -> nn.Module:
        i, place = _where(block)
        if i < 0 and not _has_state(block.op):
            if block.op.key not in self._stateless:
                self._stateless[block.op.key] = TorchNetwork(block.op.expand())
            return self._stateless[block.op.key]
        if self._keys.get((block.name, block.choice)) != block.op.key:
            raise ModelError(f"{self.space.name}: covering_archs() does not reach {block.name}: {block.op.key}")
        return self.positions[i].at(place)[block.choice] if i >= 0 else self.fixed[_flat(block.name)]

    def _plan(self, arch: Arch) -> _Plan:
        if arch not in self._plans:
            net = self.space.network(arch)
            last = {t: i for i, b in enumerate(net.blocks) for t in b.inputs}
            steps = []
            for i, b in enumerate(net.blocks):
                done = tuple({t for t in b.inputs if last[t] == i and t not in net.outputs})
                steps.append(_Step(b, *_where(b), done))
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[arch] = _Plan(net.inputs[0], tuple(steps), net.outputs[0])
        return self._plans[arch]


class Position(nn.Module):  # type: ignore[misc]
    """The choices of one position.

    ``choices[c]`` is the module of choice ``c``; where the position becomes several blocks, a ``ModuleDict`` of them by
    name. A choice without a block is an identity, or zeros where the space says so.
    """

    def __init__(self, space: SearchSpace, i: int) -> None:
        super().__init__()
        n = space.num_choices[i]
        self.choices = nn.ModuleList(
            Function("zero", {}) if space.gives_zeros(i, c) else nn.Identity() for c in range(n)
        )
        self._blockless = [True] * n

    def choice(self, c: int) -> nn.Module:
        """The module of a choice."""
        return self.choices[c]

    @property
    def wired(self) -> int:
        """A choice that has a block."""
        return self._blockless.index(False) if False in self._blockless else 0

    def at(self, place: str) -> list[nn.Module]:
        """The modules of all choices at one of the blocks that the position becomes (``""`` where it is one)."""
        return [c[place] if isinstance(c, nn.ModuleDict) else c for c in self.choices]

    def has(self, choice: int, place: str) -> bool:
        """True if the choice has a module there."""
        module = self.choices[choice]
        return not self._blockless[choice] and (not place or place in module)

    def add(self, choice: int, place: str, module: nn.Module) -> None:
        """Set a choice's module."""
        if not place:
            self.choices[choice] = module
        elif self._blockless[choice]:
            self.choices[choice] = nn.ModuleDict({place: module})
        else:
            self.choices[choice][place] = module
        self._blockless[choice] = False


class _Step(NamedTuple):
    block: Block
    position: int
    place: str
    done: tuple[str, ...]


class _Plan(NamedTuple):
    input: str
    steps: tuple[_Step, ...]
    output: str


def _where(block: Block) -> tuple[int, str]:
    """Position and place of a block; position -1 for a fixed one."""
    if not block.name.startswith("positions."):
        return -1, ""
    _, i, *place = block.name.split(".")
    return int(i), _flat(".".join(place))


def _flat(name: str) -> str:
    return name.replace(".", "_")


@cache
def _has_state(op: Op) -> bool:
    return any(p.param_shapes for p in op.primitives)
