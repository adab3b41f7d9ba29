"""Mixtures of experts: their products of grouped matrices are counted as torch computes them."""

from pathlib import Path

import pytest
import torch
from project import DS_CONFIGS

from launch.planner.job import make_job
from launch.planner.model import count, load_model
from launch.planner.simulation import pool
from launch.planner.simulation.experts import GROUPED_MM, grouped_mm
from launch.planner.simulation.trace import Copy, Kernel

TOKENS, LAYERS, HIDDEN, INTERMEDIATE, EXPERTS = 48, 2, 64, 96, 4


def mixture(folder: Path, kind: str = "mixtral", active: int = 2) -> str:
    from transformers import AutoConfig

    experts = {
        "mixtral": {"intermediate_size": INTERMEDIATE, "num_local_experts": EXPERTS},
        "qwen3_moe": {"moe_intermediate_size": INTERMEDIATE, "num_experts": EXPERTS, "head_dim": 32},
    }
    AutoConfig.for_model(
        kind,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
        num_experts_per_tok=active,
        **experts[kind],
    ).save_pretrained(folder / f"{kind}{active}")
    return str(folder / f"{kind}{active}")


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_shapes_are_those_of_the_kernel(dtype):
    ends = torch.tensor([3, 3, 12, 20], dtype=torch.int32)
    rows, weights = torch.randn(20, 32).to(dtype), torch.randn(4, 32, 24).to(dtype)
    for a, b, offs in ((rows, weights, ends), (rows.t(), rows, ends), (weights.transpose(1, 2), weights, None)):
        real = GROUPED_MM(a, b, offs=offs)
        told = grouped_mm(*(t.to("meta") for t in (a, b)), offs)
        assert (told.shape, told.stride(), told.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("kind", ("mixtral", "qwen3_moe"))
def test_each_active_expert_counts(tmp_path, kind):
    one, two = (count(load_model(mixture(tmp_path, kind, active), TOKENS))[-1] for active in (1, 2))
    heads = {"mixtral": 4 * 16, "qwen3_moe": 4 * 32}[kind]  # Qwen3-MoE reads a head_dim that its class does not declare
    attention = 2 * HIDDEN * heads + 2 * HIDDEN * heads // 2
    assert one.parameters == two.parameters
    assert one.parameters == pytest.approx(
        2 * 1000 * HIDDEN + LAYERS * (attention + EXPERTS * 3 * HIDDEN * INTERMEDIATE), rel=0.01
    )
    assert two.flops - one.flops == LAYERS * 3 * 2 * TOKENS * HIDDEN * INTERMEDIATE


def test_a_card_without_a_kernel_for_groups_multiplies_one_after_the_other(tmp_path):
    model, simulations = mixture(tmp_path), {}
    for hardware in ("a5000x2", "h100-80"):
        for precision in ("zero3_offload", "zero3_offload_bf16"):
            job = make_job(model, DS_CONFIGS[precision], hardware, seq_length=TOKENS, ranks=2)
            simulations[f"{hardware} {precision}"] = job.simulation()
    results = pool.run_all(simulations)

    def waits(name: str) -> int:
        return sum(
            type(event) is Copy
            and event.direction == "down"
            and event.size == 4 * EXPERTS
            and event.host_waits
            and event.pageable
            for event in results[name].trace
        )

    def flops(name: str) -> int:
        return sum(event.flops for event in results[name].trace if type(event) is Kernel)

    # In each of three micro-steps 2 products a layer forward, 2 recomputed, 4 backward; 2 in a validation.
    assert waits("a5000x2 zero3_offload") == waits("a5000x2 zero3_offload_bf16") == LAYERS * (3 * (2 + 2 + 4) + 2)
    assert waits("h100-80 zero3_offload") == waits("a5000x2 zero3_offload")  # Hopper's is for bfloat16 alone
    assert waits("h100-80 zero3_offload_bf16") == 0
    assert flops("h100-80 zero3_offload_bf16") == flops("a5000x2 zero3_offload_bf16") > 0
