"""Conformance of search spaces: subclass :class:`SpaceConformance`, give it the fixture ``space``, inherit its tests.

::

    class TestMySpace(SpaceConformance):
        @pytest.fixture
        def space(self):
            return load_space("myspace", resolution=32)

Give it a small version: networks are built, and run in torch where torch is installed.
"""

from __future__ import annotations

import json
from collections import Counter
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from latbench.errors import ArchitectureError, NotAdditiveError
from latbench.load import load_space
from latbench.op import Op
from latbench.space import SearchSpace
from latbench.visit import ArchEstimates


class HashedCosts:
    """A latency model whose milliseconds are a fixed, arbitrary function of an Op's key: for tests of sums."""

    overhead_ms = 0.25

    def op_cost(self, key: str) -> float:
        """Milliseconds of one Op key, between 0 and 1."""
        return int.from_bytes(sha256(key.encode()).digest()[:4], "little") / 2**32

    def op_costs(self, keys: list[str]) -> npt.NDArray[np.float64]:
        """Milliseconds of each Op key."""
        return np.array([self.op_cost(k) for k in keys])

    def predict_archs(self, space: SearchSpace, archs: npt.ArrayLike) -> ArchEstimates:
        """Sums over the Ops of each architecture's network, plus the overhead; NaN where one of them costs NaN."""
        keys, counts = space.usage(archs)
        value = np.where(counts > 0, counts * self.op_costs(keys), 0.0).sum(axis=1) + self.overhead_ms
        return ArchEstimates(value, value, value, np.isfinite(value))


class SpaceConformance:
    """What the rest of latbench takes for granted of a space."""

    @pytest.fixture
    def space(self) -> SearchSpace:
        """A small version of the space under test."""
        raise pytest.UsageError(f"{type(self).__name__} needs a fixture `space`")

    @pytest.fixture
    def archs(self, space: SearchSpace) -> list[tuple[int, ...]]:
        """The covering architectures and some random ones."""
        return [*space.covering_archs(), *(space.sample(seed) for seed in range(6))]

    # -- what it says of itself ---------------------------------------------------------------------------------

    def test_its_spec_makes_an_equal_space(self, space: SearchSpace) -> None:
        spec = json.loads(json.dumps(space.spec))
        again = load_space(spec.pop("name"), **spec)
        assert again == space
        assert hash(again) == hash(space)
        assert again.num_choices == space.num_choices
        assert again.network(space.sample(0)).key == space.network(space.sample(0)).key

    def test_every_choice_has_a_label_of_its_own(self, space: SearchSpace) -> None:
        for i, n in enumerate(space.num_choices):
            assert len({space.choice_label(i, c) for c in range(n)}) == n

    def test_factors_multiply_to_at_most_the_choices(self, space: SearchSpace) -> None:
        for i, n in enumerate(space.num_choices):
            assert 1 <= int(np.prod(space.factors(i))) <= n

    def test_architectures_of_a_wrong_length_or_choice_are_refused(self, space: SearchSpace) -> None:
        arch = list(space.sample(0))
        with pytest.raises(ArchitectureError, match="positions"):
            space.network(arch[:-1])
        for wrong in (-1, space.num_choices[0]):
            with pytest.raises(ArchitectureError, match="position 0"):
                space.network([wrong, *arch[1:]])
        no_integers: list[Any] = [1.0, "1", None]
        for value in no_integers:
            with pytest.raises(ArchitectureError, match="integers"):
                space.network([value, *arch[1:]])

    # -- architectures ------------------------------------------------------------------------------------------

    def test_sampling_follows_its_seed(self, space: SearchSpace) -> None:
        assert space.sample(3) == space.sample(3)
        many = space.sample_archs(50, seed=1)
        assert np.array_equal(many, space.sample_archs(50, seed=1))
        assert np.array_equal(many, space.validate_archs(many))

    def test_encoding_round_trips(self, space: SearchSpace) -> None:
        archs = space.sample_archs(20, seed=2)
        code = space.encode(archs)
        assert code.shape == (20, sum(space.num_choices))
        assert (code.sum(axis=1) == space.positions).all()
        assert np.array_equal(space.decode(code), archs)

    def test_mutation_changes_as_many_positions_as_asked(self, space: SearchSpace) -> None:
        free = sum(n > 1 for n in space.num_choices)
        for seed in range(10):
            arch = space.sample(seed)
            for k in (1, min(3, free)):
                other = space.validate(space.mutate(arch, seed, positions=k))
                assert sum(a != b for a, b in zip(arch, other, strict=True)) == k

    def test_crossover_takes_a_head_and_a_tail(self, space: SearchSpace) -> None:
        a, b = space.sample(0), space.sample(1)
        child = space.crossover(a, b, seed=0)
        assert any(child == a[:k] + b[k:] for k in range(1, space.positions + 1))

    # -- Ops and costs ------------------------------------------------------------------------------------------

    def test_covering_architectures_reach_every_choice(self, space: SearchSpace) -> None:
        archs = [space.validate(a) for a in space.covering_archs()]
        for i, n in enumerate(space.num_choices):
            assert {a[i] for a in archs} == set(range(n))

    def test_every_node_is_in_exactly_one_block(self, space: SearchSpace, archs: list[tuple[int, ...]]) -> None:
        for arch in archs:
            net = space.network(arch)
            assert Counter(n for b in net.blocks for n in b.nodes) == Counter(n.name for n in net.nodes)

    def test_blocks_of_positions_carry_their_choice(self, space: SearchSpace, archs: list[tuple[int, ...]]) -> None:
        for arch in archs:
            for block in space.network(arch).blocks:
                if block.name.startswith("positions."):
                    assert block.choice == arch[int(block.name.split(".")[1])]
                else:
                    assert block.choice == -1

    def test_ops_lists_every_block_once(self, space: SearchSpace, archs: list[tuple[int, ...]]) -> None:
        keys = [op.key for op in space.ops()]
        assert len(set(keys)) == len(keys)
        for arch in archs:
            assert {b.op.key for b in space.network(arch).blocks} <= set(keys)

    def test_a_block_parsed_from_its_key_does_the_same_work(self, space: SearchSpace) -> None:
        for op in space.ops():
            again = Op.parse(op.key)
            assert (again.macs, again.params, again.outputs) == (op.macs, op.params, op.outputs)

    def test_usage_counts_the_blocks_of_each_network(self, space: SearchSpace, archs: list[tuple[int, ...]]) -> None:
        keys, counts = space.usage(np.array(archs))
        for arch, row in zip(archs, counts, strict=True):
            assert Counter(dict(zip(keys, row.tolist(), strict=True))) == space.network(arch).ops()

    def test_costs_add_up_or_are_refused(self, space: SearchSpace, archs: list[tuple[int, ...]]) -> None:
        model = HashedCosts()
        if not space.additive:
            with pytest.raises(NotAdditiveError):
                space.cost_matrix(model)
            return
        matrix, constant = space.cost_matrix(model)
        assert matrix.shape == (space.positions, max(space.num_choices))
        for i, n in enumerate(space.num_choices):
            assert np.isfinite(matrix[i, :n]).all()
            assert np.isnan(matrix[i, n:]).all()
        for arch in archs:
            expected = sum(model.op_cost(b.op.key) for b in space.network(arch).blocks) + model.overhead_ms
            assert constant + sum(matrix[i, c] for i, c in enumerate(arch)) == pytest.approx(expected)

    # -- torch --------------------------------------------------------------------------------------------------

    def test_a_path_of_the_supernet_gives_the_outputs_of_its_network(self, space: SearchSpace) -> None:
        torch = pytest.importorskip("torch")
        supernet = space.supernet(seed=1).eval()
        for seed in range(2):
            arch = space.sample(seed)
            net = space.network(arch)
            x = torch.randn(net.tensors[net.inputs[0]].shape, generator=torch.Generator().manual_seed(seed)).to(
                next(supernet.parameters()).dtype
            )
            with torch.no_grad():
                self._same(supernet(x, arch), supernet.export(arch)(x))
                module = net.to_torch(seed=5)
                supernet.copy_from(module, arch)
                self._same(supernet(x, arch), module(x))

    @staticmethod
    def _same(a: Any, b: Any) -> None:
        assert tuple(a.shape) == tuple(b.shape)
        assert bool((a == b).all())
