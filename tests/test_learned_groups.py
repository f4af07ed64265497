"""Learned group convolution: what it drops and when, and that what comes out of it computes the same."""

from __future__ import annotations

from typing import Any

import pytest

from latbench.errors import ModelError
from latbench.spaces.densecell import BN_RELU, CONV1, DEPTHWISE, GROUP3, IDENTITY, LEARNED, DenseCell

torch = pytest.importorskip("torch")
from latbench import digits  # noqa: E402
from latbench.learned_groups import LASSO, CondensingNetwork, LearnedGroupConv  # noqa: E402

ARCHS = [
    (BN_RELU, LEARNED, BN_RELU, GROUP3),
    (BN_RELU, LEARNED, BN_RELU, LEARNED),
    (IDENTITY, LEARNED, IDENTITY, LEARNED),
    (BN_RELU, DEPTHWISE, BN_RELU, LEARNED),
]


def _conv(channels: int = 12, out: int = 8, groups: int = 4, condense: int = 4) -> LearnedGroupConv:
    torch.manual_seed(0)
    return LearnedGroupConv(torch.nn.Conv2d(channels, out, 1, bias=False), groups, condense)


def _space(**params: Any) -> DenseCell:
    return DenseCell(**{"cells": [2, 1], "growth": [8, 16], "resolution": 8, "num_classes": 3, **params})


def test_inputs_are_dropped_in_stages_during_the_first_half() -> None:
    conv, left = _conv(), []
    for progress in (0.0, 0.16, 0.17, 0.33, 0.34, 0.49, 0.5, 1.0):
        conv.set_progress(progress)
        left.append({int(conv.mask[o].sum()) for o in range(8)})
    # Three stages: at a sixth, a third and a half of the training each group drops a quarter of its inputs.
    assert left == [{12}, {12}, {9}, {9}, {6}, {6}, {3}, {3}]


def test_a_stage_that_was_missed_is_caught_up_and_none_is_undone() -> None:
    conv = _conv()
    conv.set_progress(1.0)
    assert int(conv.stage) == 3
    assert conv.mask.sum() == 8 * 3
    before = conv.mask.clone()
    conv.set_progress(0.0)
    assert torch.equal(conv.mask, before)


def test_a_group_drops_the_inputs_whose_weights_are_smallest_together() -> None:
    conv = _conv(channels=4, out=4, groups=2, condense=2)
    with torch.no_grad():
        # Outputs 0 and 2 form group 0, outputs 1 and 3 group 1; input 3 is strong for output 2 alone.
        conv.weight[:, :, 0, 0] = torch.tensor(
            [[1.0, 2.0, 0.5, 0.1], [0.1, 0.1, 3.0, 2.0], [1.0, -2.0, 0.5, 5.0], [0.1, 0.3, 3.0, 2.0]]
        )
    conv.set_progress(0.5)
    assert conv.kept().tolist() == [[1, 3], [2, 3]]
    assert conv.mask.tolist() == [[0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]]


def test_dropped_inputs_are_not_read_and_not_trained() -> None:
    conv, x = _conv(), torch.randn(2, 12, 3, 3)
    conv.set_progress(0.5)
    out = conv(x)
    out.square().sum().backward()
    dropped = conv.mask == 0
    assert not conv.weight.grad[:, :, 0, 0][dropped].any()
    x2 = x.clone()
    gone = next(c for c in range(12) if not conv.mask[0, c])
    x2[:, gone] += 1
    assert torch.equal(conv(x2)[:, 0], out[:, 0])


def test_the_lasso_sums_norms_of_groups_and_ends_with_the_last_stage() -> None:
    conv = _conv(channels=3, out=2, groups=2, condense=3)
    with torch.no_grad():
        conv.weight[:, :, 0, 0] = torch.tensor([[3.0, 4.0, 1.0], [1.0, 2.0, 2.0]])
    assert conv.lasso().item() == pytest.approx(13.0)
    conv.set_progress(0.25)
    assert conv.lasso().item() == pytest.approx(3 + 4 + 2 + 2)
    conv.set_progress(0.5)
    assert conv.lasso().item() == 0
    wide = _conv(channels=2, out=4, groups=2, condense=2)
    with torch.no_grad():
        wide.weight[:, :, 0, 0] = torch.tensor([[3.0, 0.0], [0.0, 5.0], [4.0, 0.0], [0.0, 12.0]])
    assert wide.lasso().item() == pytest.approx(5 + 13)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="groups must divide the outputs"):
        _conv(out=6)
    with pytest.raises(ModelError, match="every group must keep an input"):
        _conv(channels=3)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("condense", [2, 4, 8])
def test_a_condensed_network_computes_what_the_trained_one_did(arch: tuple[int, ...], condense: int) -> None:
    space = _space(condense=condense)
    module, x = space.trainable(arch, seed=1), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for step in range(8):
        module.set_progress(step / 8)
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(module(x), torch.arange(16) % 3) + module.penalty()).backward()
        optimizer.step()
    net = module.condensed()
    assert net.params == space.network(arch).params
    assert net.macs == space.network(arch).macs
    assert [b.name for b in net.blocks] == [b.name for b in space.network(arch).blocks]
    with torch.no_grad():
        torch.testing.assert_close(net.to_torch()(x), module.eval()(x), rtol=1e-4, atol=1e-5)


def test_training_starts_from_an_ordinary_convolution_and_its_penalty_is_the_lasso() -> None:
    module = _space().trainable(ARCHS[0])
    # Two cells in the first dense block, one in the second, one learned convolution each.
    assert sorted(module.learned) == ["positions.1.s0c0", "positions.1.s0c1", "positions.1.s1c0"]
    assert module.training
    assert LASSO == 1e-5
    want = LASSO * sum(conv.lasso() for conv in module.learned.values())
    assert module.penalty().item() == pytest.approx(want.item())
    assert all(conv.mask.all() for conv in module.learned.values())


def test_a_cell_without_learned_groups_has_nothing_to_condense() -> None:
    space = _space()
    arch = (BN_RELU, CONV1, BN_RELU, GROUP3)
    module = space.trainable(arch, seed=2)
    module.set_progress(1.0)
    assert module.penalty().item() == 0
    assert module.condensed().key == space.network(arch).key


def test_condensation_that_has_not_ended_is_not_converted() -> None:
    module = _space().trainable(ARCHS[0])
    module.set_progress(0.2)
    with pytest.raises(ModelError, match=r"condensation is at stage 1 of 3: set_progress\(0\.5\)"):
        module.condensed()


def test_masks_and_stages_are_saved_and_loaded() -> None:
    space = _space()
    a, b = space.trainable(ARCHS[0], seed=1), space.trainable(ARCHS[0], seed=2)
    a.set_progress(0.5)
    b.load_state_dict(a.state_dict())
    assert b.condensed().key == a.condensed().key
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(a.eval()(x), b.eval()(x))


def test_the_digits_train_a_cell_with_condensation_and_what_they_give_back_is_condensed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[float] = []
    real = CondensingNetwork.set_progress
    monkeypatch.setattr(CondensingNetwork, "set_progress", lambda self, p: (told.append(p), real(self, p))[1])
    space = _space(cells=[1, 1], num_classes=10)
    drawn = space.network((BN_RELU, LEARNED, BN_RELU, GROUP3))
    net = digits.train(drawn, epochs=1, seed=0)
    assert told == [step / 20 for step in range(21)]
    before, after = ([n.op["indices"] for n in x.nodes if n.op.kind == "gather"] for x in (drawn, net))
    assert [len(i) for i in before] == [len(i) for i in after]
    assert before != after
    assert net.weights is not None
    error, _ = digits.train_and_score(drawn, epochs=1, batch_size=50, lr=0.1, seed=0)
    assert 0 < error < 0.9
    # A single step is enough to come to the end.
    assert digits.train(drawn, epochs=1, batch_size=1000, seed=0).weights is not None
