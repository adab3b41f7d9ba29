"""The kernel of the compressed AdamW, against a plain one in torch."""

import math

import pytest
import torch

from launch.zero.compressed_adamw import CompressedAdamW, CompressedAdamWBuilder, Share
from launch.zero.ops import COMPRESSED, build

KINDS = [(dtype, bits) for dtype in (torch.bfloat16, torch.float16) for bits in (16, 8)]
GROUP = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01}
N = 10_007


@pytest.fixture(scope="module", autouse=True)
def compiled():
    build([COMPRESSED])


def whole(bits: int, block: int = 128, numel: int = N) -> CompressedAdamW:
    return CompressedAdamW([Share(0, numel, 0, 7)], numel, block, bits)


def gradients(step: int, dtype: torch.dtype, numel: int = N) -> torch.Tensor:
    """Of sizes that differ a thousandfold, within a block too."""
    generator = torch.Generator().manual_seed(step)
    sizes = torch.logspace(-3, 0, numel) * torch.logspace(-1.5, 0, 100).repeat(numel // 100 + 1)[:numel]
    return (torch.randn(numel, generator=generator) * sizes).to(dtype)


def adamw(master, m, v, gradient, step):
    """The plain one, in fp32."""
    beta1, beta2 = GROUP["betas"]
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = v.sqrt() / math.sqrt(1 - beta2**step) + GROUP["eps"]
    master.mul_(1 - GROUP["lr"] * GROUP["weight_decay"]).addcdiv_(
        m, denominator, value=-GROUP["lr"] / (1 - beta1**step)
    )


def trained(dtype, bits, steps=20, block=128, gradient_dtype=None):
    """(sub-group, state, weight) after some steps of gradients that are scaled by 4."""
    group, weight = whole(bits, block), (torch.randn(N, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    state = group.empty()
    for step in range(1, steps + 1):
        group.step(state, weight, 4 * gradients(step, gradient_dtype or dtype), 0.25, step, GROUP)
    return group, state, weight


@pytest.mark.parametrize("dtype, bits", KINDS)
@pytest.mark.parametrize("gradient_dtype", [None, torch.float32])
def test_steps_are_adamws(dtype, bits, gradient_dtype):
    group, state, weight = trained(dtype, bits, gradient_dtype=gradient_dtype)
    first = (torch.randn(N, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype).float()
    master, m, v = first.clone(), torch.zeros(N), torch.zeros(N)
    for step in range(1, 21):
        adamw(master, m, v, gradients(step, gradient_dtype or dtype).float(), step)
    found = group.decode(state, weight)
    # The way of 20 steps, and what 8 bits of the moments change of it.
    assert (found["fp32"] - master).norm() < 0.05 * (master - first).norm()
    assert (found["exp_avg"] - m).norm() < 0.05 * m.norm()
    assert (found["exp_avg_sq"] - v).norm() < 0.08 * v.norm()
    ratio = found["exp_avg_sq"].double().sum() / v.double().sum()
    assert ratio == pytest.approx(1, abs=0.01), "rounding has no direction"
    assert torch.allclose(weight.float(), found["fp32"], rtol=2**-8, atol=2**-24)


@pytest.mark.parametrize("dtype, bits", KINDS)
def test_what_was_decoded_is_encoded_as_it_was(dtype, bits):
    group, state, weight = trained(dtype, bits)
    decoded = group.decode(state, weight)
    again, other = group.empty(), torch.zeros_like(weight)
    group.encode(again, other, *decoded.values())
    assert torch.equal(again.view(torch.uint8), state.view(torch.uint8)) and torch.equal(other, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_remainder_of_16_bits_keeps_all_of_fp32(dtype):
    group, weight = whole(16), torch.zeros(N, dtype=dtype)
    state, zero = group.empty(), torch.zeros(N)
    sizes = torch.logspace(-38 if dtype is torch.bfloat16 else math.log10(2**-17), 4, N)
    master = (sizes * torch.where(torch.arange(N) % 2 == 0, 1, -1)).clone()
    if dtype is torch.bfloat16:  # halfway between two of its numbers, below an even and an odd one
        master.view(torch.int32)[:4] = torch.tensor([0x3F808000, 0x3F818000, -0x407F8000, 0x7F7FFFFF])
    group.encode(state, weight, master, zero, zero)
    assert torch.equal(group.decode(state, weight)["fp32"], master)
    assert torch.allclose(weight[4:].float(), master[4:], rtol=2**-8, atol=2**-25)


def test_below_fp16s_range_a_master_weight_is_a_multiple_of_2_to_the_minus_40():
    group, weight = whole(16), torch.zeros(N, dtype=torch.float16)
    state, zero, master = group.empty(), torch.zeros(N), torch.linspace(-(2**-17), 2**-17, N)
    group.encode(state, weight, master, zero, zero)
    assert (group.decode(state, weight)["fp32"] - master).abs().max() <= 2**-41
    master[0] = 1e6
    group.encode(state, weight, master, zero, zero)
    assert group.decode(state, weight)["fp32"][0] == math.inf and weight[0] == math.inf


@pytest.mark.parametrize("dtype, relative", [(torch.bfloat16, 2**-16), (torch.float16, 2**-18)])
def test_a_remainder_of_8_bits_keeps_the_bits_that_it_says(dtype, relative):
    group, weight = whole(8), torch.zeros(N, dtype=dtype)
    state, zero, master = group.empty(), torch.zeros(N), torch.logspace(-3, 4, N)
    group.encode(state, weight, master, zero, zero)
    assert ((group.decode(state, weight)["fp32"] - master).abs() / master).max() <= relative


def test_a_change_smaller_than_a_step_of_the_code_is_not_lost():
    """A second moment that falls by 0.1% a step, and one that rises, beside a large one that keeps the scale."""
    group, weight = whole(16), torch.zeros(N, dtype=torch.bfloat16)
    state, settings = group.empty(), GROUP | {"lr": 0.0, "betas": (0.9, 0.999)}
    v = torch.full((N,), 0.01)
    v[::128] = 1.0
    group.encode(state, weight, torch.zeros(N), torch.zeros(N), v)
    begin = group.decode(state, weight)["exp_avg_sq"]
    gradient = torch.zeros(N)
    gradient[::128], gradient[1::2] = 1.0, 0.15
    for step in range(1, 301):
        group.step(state, weight, gradient, 1.0, step, settings)
    end = group.decode(state, weight)["exp_avg_sq"]
    keeps = torch.arange(N) % 128 != 0
    falls, rises = keeps & (gradient == 0), keeps & (gradient > 0)
    kept = 0.999**300
    assert (end[falls] / begin[falls]).mean() == pytest.approx(kept, rel=0.03)
    assert (end[rises] / (kept * begin[rises] + (1 - kept) * 0.15**2)).mean() == pytest.approx(1, rel=0.03)


def test_a_second_moment_does_not_become_zero_and_a_code_does_not_overflow():
    """Many steps of one block whose elements differ a millionfold."""
    group, weight = CompressedAdamW([Share(0, 32, 0, 1)], 32, 32, 16), torch.zeros(32, dtype=torch.bfloat16)
    state, gradient = group.empty(), torch.logspace(-6, 0, 32)
    for step in range(1, 3001):
        group.step(state, weight, gradient, 1.0, step, GROUP | {"lr": 0.0})
        found = group.decode(state, weight)
        assert (found["exp_avg_sq"] > 0).all()
        assert found["exp_avg"][-1] > 0.09 and found["exp_avg_sq"][-1] > 0.04, step


def test_gradients_of_zero_leave_no_moments_and_decay_the_weight():
    group, weight = whole(16), torch.ones(N, dtype=torch.bfloat16)
    state = group.empty()
    group.step(state, weight, torch.zeros(N), 1.0, 1, GROUP)
    found = group.decode(state, weight)
    assert not found["exp_avg"].any() and not found["exp_avg_sq"].any()
    assert torch.allclose(found["fp32"], torch.tensor(1 - 1e-5))


def test_a_parameter_steps_alike_wherever_its_share_begins():
    """Blocks and random numbers are counted from the parameter's beginning: cut where a block ends, nothing differs."""
    together, state, weight = trained(torch.bfloat16, 16, steps=5)
    expected = together.decode(state, weight)
    first = (torch.randn(N, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    for start, stop in ((0, 50 * 128), (50 * 128, N)):
        # Behind 12 elements of another parameter, in another sub-group's buffer.
        shares = [Share(0, 12, 0, 3), Share(12, stop - start, start, 7)]
        group = CompressedAdamW(shares, 12 + stop - start, 128, 16)
        state, weight = group.empty(), torch.cat([torch.zeros(12, dtype=torch.bfloat16), first[start:stop]])
        for step in range(1, 6):
            gradient = torch.cat([torch.ones(12), 4 * gradients(step, torch.bfloat16).float()[start:stop]])
            group.step(state, weight, gradient.to(torch.bfloat16), 0.25, step, GROUP)
        found = group.decode(state, weight)
        for key, values in expected.items():
            assert torch.equal(found[key][12:], values[start:stop]), key


def test_without_vector_instructions_the_results_are_the_same_to_the_last_bit(tmp_path):
    class Portable(CompressedAdamWBuilder):
        NAME = "compressed_adamw_portable"

        def cxx_args(self):
            return [arg for arg in super().cxx_args() if not arg.startswith(("-march", "-mcpu"))]

    plain = Portable().load(verbose=False)
    native = CompressedAdamWBuilder().load(verbose=False)
    assert plain is not native
    for dtype, bits in KINDS:
        group, state, weight = trained(dtype, bits, steps=3)
        other, others = group.empty(), (torch.randn(N, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
        for step in range(1, 4):
            gradient = 4 * gradients(step, dtype)
            segments = torch.tensor([[0, N, 0, 7, 0]])
            kernel = plain.Compressed(others, other, segments, 1, N, group.blocks, 128, dtype is torch.bfloat16, bits)
            kernel.step(gradient, 0.25, step, 1e-3, 0.9, 0.95, 1e-8, 0.01, True)
        assert torch.equal(other.view(torch.uint8), state.view(torch.uint8)) and torch.equal(others, weight)
