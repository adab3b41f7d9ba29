"""The attention kernel that a card would choose, by shapes alone (aten's sdp_utils.cpp)."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from astrobio.config import load_preset, preset_names
from astrobio.language import language_config
from launch.planner.job import make_job
from launch.planner.simulation import pool
from launch.planner.simulation.backends import attend
from launch.planner.simulation.parts import GPU
from launch.planner.simulation.trace import Allocated

AMPERE, VOLTA, TURING = (8, 6), (7, 0), (7, 5)
FLASH, EFFICIENT, FORMULA = "flash", "efficient", "formula"
HALF, BF16, SINGLE = torch.float16, torch.bfloat16, torch.float32


class Operators(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "dtype, head, masked, capability, kernel",
    [
        (HALF, 64, False, AMPERE, FLASH),
        (BF16, 128, False, AMPERE, FLASH),
        (HALF, 68, False, AMPERE, FLASH),
        (HALF, 64, True, AMPERE, EFFICIENT),
        (HALF, 68, True, AMPERE, FORMULA),
        (BF16, 64, True, AMPERE, EFFICIENT),
        (HALF, 64, False, TURING, EFFICIENT),
        (HALF, 68, False, VOLTA, FORMULA),
        (BF16, 64, False, VOLTA, FORMULA),
        (SINGLE, 68, False, AMPERE, EFFICIENT),
        (SINGLE, 66, False, AMPERE, FORMULA),
        (SINGLE, 66, False, VOLTA, EFFICIENT),
    ],
)
def test_the_kernel_follows_from_type_head_size_mask_and_card(dtype, head, masked, capability, kernel):
    query, key, value = (torch.empty(2, 4, 16, head, dtype=dtype, device="meta") for _ in range(3))
    mask = torch.empty(2, 1, 1, 16, dtype=torch.bool, device="meta") if masked else None
    with Operators() as run:
        out = attend(query, key, value, mask, capability=capability)
    assert out.shape == query.shape
    names = " ".join(run.names)
    found = [name for name in (FLASH, EFFICIENT) if f"_scaled_dot_product_{name}_attention" in names] or [FORMULA]
    assert found == [kernel]
    assert ("bmm" in names or "matmul" in names) is (kernel == FORMULA)


@pytest.mark.parametrize("preset", preset_names())
def test_no_preset_has_heads_that_a_kernel_refuses(preset):
    config = load_preset(preset)
    language = language_config(config.language)
    sizes = {
        "language": getattr(language, "head_dim", None) or language.hidden_size // language.num_attention_heads,
        **{
            name: part.hidden_size // part.heads
            for name in ("climate", "metabolism", "spectrum", "fusion")
            if (part := getattr(config, name))
        },
    }
    assert {name: size for name, size in sizes.items() if size % 8} == {}


def test_a_plan_of_a_plain_model_holds_no_scores(tmp_path):
    """A Llama-7B folder as others train it: of no operator the ranks would hold a [B, H, L, L] tensor, nor a mask."""
    heads, length, layers = 32, 4096, 32
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "vocab_size": 32000,
                "max_position_embeddings": length,
            }
        )
    )
    simulations = {}
    for stage in (2, 3):
        for checkpointed in (True, False):
            config = {
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 8,
                "bf16": {"enabled": True},
                "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
                "zero_optimization": {"stage": stage},
            }
            if checkpointed:
                config["activation_checkpointing"] = {"partition_activations": False}
            job = make_job(str(tmp_path), config, "a100-80", seq_length=length, ranks=8)
            # without the validation, in whose batches of 8 hidden states in fp32 are as large as scores of bools
            simulations[f"{stage} {checkpointed}"] = job.simulation(beyond_training=False)
    held = {}
    for name, result in pool.run_all(simulations).items():
        scores = [heads * length * length * itemsize for itemsize in (1, 2, 4)]
        sizes = {event.size for event in result.allocations if type(event) is Allocated}
        assert sizes and sizes.isdisjoint(scores), name
        held[name] = next(phase for phase in result.phases[3:] if phase.name == "backward").peaks[GPU].bytes
    for stage in (2, 3):
        assert held[f"{stage} True"] < held[f"{stage} False"]
