"""What two ranks do together; one launch of ranks.py serves all of these tests."""

import json
import math
from pathlib import Path

import pytest
from launching import ROOT, finish, start

CONFIGS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))


@pytest.fixture(scope="module")
def results(sample_dataset, tmp_path_factory) -> dict[str, list[dict]]:
    """Case → what each rank saw."""
    out = tmp_path_factory.mktemp("ranks")
    done = finish(start(Path(__file__).with_name("ranks.py"), sample_dataset, out), timeout=600)
    assert done.status == 0, done.output[-4000:]
    return {line["case"]: line["ranks"] for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


def seen(results, name: str) -> list[dict]:
    for rank, result in enumerate(results[name]):
        assert "error" not in result, f"rank {rank}:\n{result['error']}"
    return results[name]


@pytest.mark.nvme
@pytest.mark.parametrize("config", CONFIGS)
def test_every_ds_config_trains(results, config):
    ranks = seen(results, f"ds_config:{config}")
    for rank in ranks:
        assert rank["steps"] == 2 and rank["skipped"] == 0
        assert all(math.isfinite(loss) for loss in rank["losses"]) and math.isfinite(rank["grad_norm"])
        assert rank["unmoved"] == [], "parameters that two optimizer steps did not change"
        assert rank["parameters"] > 100
    assert ranks[0]["losses"] != ranks[1]["losses"], "the ranks read the same records"
    assert ranks[0]["grad_norm"] == ranks[1]["grad_norm"]


def test_where_the_state_lives_does_not_change_the_numbers(results):
    """All fp16 ZeRO-3 configs move the same numbers through other memories. The device's Adam rounds otherwise."""
    reference = seen(results, "ds_config:zero3_offload")[0]["losses"]
    for config in ("zero3_nvme", "zero3_offload_nvme", "zero3_resident", "zero3_resident_nvme"):
        assert seen(results, f"ds_config:{config}")[0]["losses"] == reference
    assert seen(results, "ds_config:zero3")[0]["losses"] == pytest.approx(reference, rel=1e-3)


def test_ranks_with_other_modalities_do_not_hang(results):
    ranks = seen(results, "climate_on_one_rank")
    for rank in ranks:
        assert len(rank["losses"]) == 20 and rank["skipped"] == 0
        assert all(math.isfinite(number) and number > 0 for number in rank["losses"] + rank["norms"])
    assert ranks[0]["norms"] == ranks[1]["norms"]


def test_activation_checkpointing_follows_the_json(results):
    """Without it a block's inner activations stay; with it only its inputs do. The forward pass is the same but for
    attention kernels that round otherwise where no gradient is asked for."""
    for rank in seen(results, "activation_checkpointing"):
        for name in ("with", "partitioned", "cpu"):
            assert rank[name]["loss"] == pytest.approx(rank["without"]["loss"], rel=1e-5)
            assert rank[name]["grad_norm"] == pytest.approx(rank["without"]["grad_norm"], rel=2e-3)
            assert rank[name]["kept_bytes"] < 0.6 * rank["without"]["kept_bytes"]


def test_a_number_that_is_not_finite_is_traced_to_its_module(results):
    for rank in seen(results, "nonfinite"):
        assert rank["clean"] is None and rank["clean_gradient"] is None
        assert rank["forward"] == "spectrum.queries.out.1 (rank 0)"
        assert rank["backward"] is not None


def test_language_weights_are_transformers_own(results):
    for rank in seen(results, "same_weights_whatever_the_stage"):
        for spread in rank.values():
            assert spread == pytest.approx(0.02, rel=0.02)


@pytest.mark.nvme
def test_the_workarounds_are_still_needed(results):
    """Fails when DeepSpeed or transformers has mended one: then its workaround can go."""
    for rank in seen(results, "upstream"):
        assert len(rank) == 3
        assert [name for name, broken in rank.items() if not broken] == []
