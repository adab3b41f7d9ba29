"""Weights that are drawn late, and in shares: the numbers are those that drawing at once would have given."""

import math

import pytest
import torch
from torch import nn

from astrobio.config import load_preset
from astrobio.stack import AstrobioStack
from launch.ds_config.config import DsConfig
from launch.zero import weights
from launch.zero.engine import build_stack
from launch.zero.weights import PutOff


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks a tensor."""
    monkeypatch.setattr(weights, "BLOCK", 1000)


def build(make, least=256, seed=0):
    with PutOff(seed, least) as put_off:
        made = make()
    return made, put_off


def test_distributions_are_kept(small_blocks):
    linear, put_off = build(lambda: nn.Linear(300, 200))
    assert linear.weight.untyped_storage().nbytes() == 0, "nothing was put off"
    put_off.fill_all()
    bound = 1 / math.sqrt(300)
    assert linear.weight.abs().max() <= bound and linear.weight.abs().max() > 0.999 * bound
    assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)

    normal, put_off = build(lambda: nn.init.normal_(torch.empty(300, 300), 2.0, 0.5))
    put_off.fill_all()
    assert normal.mean().item() == pytest.approx(2.0, abs=0.01) and normal.std().item() == pytest.approx(0.5, rel=0.01)
    blocks = normal.flatten()[:90000].view(90, 1000)
    assert torch.corrcoef(blocks).fill_diagonal_(0).abs().max() < 0.2, "blocks repeat each other"


def test_the_last_fill_counts_and_parts_lie_over_it(small_blocks):
    def make():
        tensor = nn.Parameter(torch.empty(100, 50).uniform_(5, 6))
        nn.init.normal_(tensor, std=0.1)
        with torch.no_grad():
            tensor[3].fill_(7.0)
        return tensor

    tensor, put_off = build(make)
    put_off.fill_all()
    assert (tensor[3] == 7.0).all() and tensor[2].abs().max() < 1 and tensor[4].abs().max() < 1


def test_whoever_looks_sees_the_values(small_blocks):
    def make():
        tensor = torch.empty(5000).fill_(3.0)
        halved = tensor * 0.5
        orthogonal = nn.init.orthogonal_(torch.empty(40, 40))
        return tensor, halved, orthogonal

    (tensor, halved, orthogonal), _ = build(make)
    assert (halved == 1.5).all() and (tensor == 3.0).all()
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(40), atol=1e-5, rtol=0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_shares_are_the_same_on_any_number_of_ranks(small_blocks, ranks):
    tensor, put_off = build(lambda: nn.init.normal_(torch.empty(101, 99)))
    size = math.ceil(tensor.numel() / ranks)
    shares = []
    for start in range(0, tensor.numel(), size):
        share = torch.empty(min(size, tensor.numel() - start))
        put_off.fill_of(tensor).draw(share, start)
        shares.append(share)
    put_off.fill_all()
    assert torch.equal(torch.cat(shares), tensor.flatten()) and tensor.std() > 0.9


def test_the_seed_decides(small_blocks):
    stacks = [build_stack(load_preset("tiny"), DsConfig.parse({}), seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(stacks[0][name], stacks[1][name]) for name in stacks[0])
    assert not torch.equal(stacks[0]["language.model.lm_head.weight"], stacks[2]["language.model.lm_head.weight"])


def test_a_stack_is_as_torch_alone_would_make_it():
    """Spread of every parameter, and buffers to the last bit."""
    torch.manual_seed(0)
    plain, late = AstrobioStack(load_preset("tiny")), build_stack(load_preset("tiny"), DsConfig.parse({}), seed=0)
    for (name, one), two in zip(plain.named_parameters(), late.parameters(), strict=True):
        if one.numel() > 1000:
            assert two.std().item() == pytest.approx(one.std().item(), rel=0.1, abs=1e-6), name
    for (name, one), two in zip(plain.named_buffers(), late.buffers(), strict=True):
        assert torch.equal(one, two), name
