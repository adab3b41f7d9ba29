"""ZeRO-3 with a compressed AdamW, in every place; the cases are in compressed_cases.py."""

from pathlib import Path

import pytest
from compressed_cases import PLACES, STEPS
from launching import run_cases

SCRIPT = Path(__file__).with_name("ranks.py")
#: Where nothing at all may differ from the state on the host.
ALIKE = ("card", "nvme", "pipelined", "all on nvme")


@pytest.fixture(scope="module")
def results(sample_dataset, tmp_path_factory) -> dict[str, list[dict]]:
    cases = [*(f"compressed:{place}" for place in PLACES), "compressed_by_hand"]
    found = run_cases(SCRIPT, cases, sample_dataset, tmp_path_factory.mktemp("compressed"))
    for case, ranks in found.items():
        for rank in ranks:
            assert "error" not in rank, f"{case}:\n{rank.get('error')}"
    return found


@pytest.mark.nvme
@pytest.mark.parametrize("place", ALIKE)
def test_it_trains_alike_wherever_its_state_is(results, place):
    for here, host in zip(results[f"compressed:{place}"], results["compressed:host"], strict=True):
        assert len(here["prints"]) > 100 and len(here["losses"]) == 2 * STEPS
        assert here == host


@pytest.mark.parametrize("place", ["host", "fp32 gradients", "small sub-groups"])
def test_it_trains_as_fp32_does(results, place):
    for here, exact in zip(results[f"compressed:{place}"], results["compressed:uncompressed"], strict=True):
        assert (here["class"], exact["class"]) == ("CompressedStage3", "LeanStage3")
        assert here["skipped"] == exact["skipped"] == 1
        assert here["losses"] == pytest.approx(exact["losses"], rel=0.02)
        assert here["losses"] != exact["losses"]


def test_its_state_is_read_and_written_by_hand(results):
    for rank in results["compressed_by_hand"]:
        assert rank["master"] < 1e-6
        assert rank["moment"] < 1e-6  # all of a block alike: its scale
        assert rank["decayed"] == pytest.approx(0.95, abs=0.01)
        assert "launch.checkpoints" in rank["refused"]
