"""ZeRO-3 with one fp32 gradient at a time, beside DeepSpeed's own; the cases are in lean_cases.py."""

from pathlib import Path

import pytest
from launching import run_cases
from lean_cases import CONFIGS, STEPS

SCRIPT = Path(__file__).with_name("ranks.py")
SMALL = ["absent_gradients", "overflow_of_an_absent_layer", "gradients_by_hand"]


@pytest.fixture(scope="module")
def small(sample_dataset, tmp_path_factory) -> dict[str, list[dict]]:
    return run_cases(SCRIPT, SMALL, sample_dataset, tmp_path_factory.mktemp("lean"))


@pytest.fixture(scope="module")
def long(sample_dataset, tmp_path_factory) -> dict[str, list[dict]]:
    cases = [f"lean:{config}" for config in CONFIGS]
    return run_cases(SCRIPT, cases, sample_dataset, tmp_path_factory.mktemp("lean_long"))


def test_a_layer_that_is_absent_gets_the_gradients_it_has(small):
    """The last assertion fails when DeepSpeed has mended it: then lean_stage3.py's docstring can be shorter."""
    for rank in small["absent_gradients"]:
        assert "error" not in rank, rank.get("error")
        assert rank["lean"] == rank["right"]
        # 8 weights with gradients of one, and 8 with the layer's.
        assert rank["lean norms"] == pytest.approx([8 + 8 * gradient**2 for gradient in rank["right"]], abs=0.01)
        assert rank["stock"] != rank["right"]


def test_an_absent_layer_does_not_overflow_again(small):
    for rank in small["overflow_of_an_absent_layer"]:
        assert "error" not in rank, rank.get("error")
        assert rank == {"lean": 1, "stock": 2}


def test_a_gradient_is_read_and_written_between_backward_and_step(small):
    for rank in small["gradients_by_hand"]:
        assert "error" not in rank, rank.get("error")
        assert rank["own class"] and rank["lean"]["twice"]
        assert rank["lean"] == rank["stock"]


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize("config", CONFIGS)
def test_training_equals_deepspeeds_bit_for_bit(long, config):
    for rank in long[f"lean:{config}"]:
        assert "error" not in rank, rank.get("error")
        lean, stock = rank["lean"], rank["stock"]
        assert (lean.pop("class"), stock.pop("class")) == ("LeanStage3", "DeepSpeedZeroOptimizer_Stage3")
        assert len(lean["losses"]) == 2 * STEPS and len(set(lean["prints"].values())) > 100
        assert lean["skipped"] == ("bf16" not in config)
        assert lean == stock
