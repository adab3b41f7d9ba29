"""Checkpoints between all ds_configs, numbers of ranks and kinds of model; through kills and full disks."""

import json
from pathlib import Path

import pytest
from launching import ROOT, finish, start

CONFIGS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
SCRIPT = Path(__file__).with_name("checkpoint_ranks.py")


def launch(cases: list[str], data: Path, out: Path, ranks: int = 2) -> dict[str, list[dict]]:
    """Case → what each rank saw."""
    (out / "results.jsonl").unlink(missing_ok=True)
    done = finish(start(SCRIPT, data, out, *cases, ranks=ranks), timeout=1800)
    assert done.status == 0, done.output[-4000:]
    found = {line["case"]: line["ranks"] for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    for case, seen in found.items():
        for rank, result in enumerate(seen):
            assert "error" not in result, f"{case}, rank {rank}:\n{result['error']}"
    return found


def check(loaded: dict, before: str, after: str, rank: int) -> None:
    """What was loaded is what was saved; training goes on as it did, as far as precision and layout allow."""
    assert loaded["wrong"] == [], f"{before} → {after}: not restored"


def precision(config: str) -> str:
    return "bf16" if "bf16" in config else "fp16"


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize("variant", ["tiny", "frozen", "groups"])
def test_every_ds_config_resumes_every_other(variant, sample_dataset, tmp_path):
    """To the last bit: weights, moments, steps, schedule, loss scale, random numbers, buffers, param groups."""
    found = launch([f"matrix:{variant}"], sample_dataset, tmp_path)[f"matrix:{variant}"]
    for rank, seen in enumerate(found):
        assert len(seen) == len(CONFIGS)**2
        for pair, loaded in seen.items():
            source, target = pair.split(" → ")
            expected = [name for name in loaded["wrong"] if precision(source) != precision(target)
                        and name.startswith("buffer/")]
            assert loaded["wrong"] == expected, f"rank {rank}: {pair}"
            if source == target:
                assert loaded["losses"] == pytest.approx(loaded["before"], rel=1e-4), pair


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize("variant", ["tiny", "frozen", "groups"])
def test_any_number_of_ranks_resumes_any_other(variant, sample_dataset, tmp_path):
    pairs = set()
    for ranks in (1, 2, 4, 4, 2, 1):
        for seen in launch([f"ranks:{variant}"], sample_dataset, tmp_path, ranks)[f"ranks:{variant}"]:
            for pair, loaded in seen.items():
                source, target = pair.split(" → ")
                pairs.add((int(source.split()[0]), int(target.split()[0])))
                assert [name for name in loaded["wrong"] if name.startswith(("fp32/", "exp_avg"))] == [], pair
                assert loaded["wrong"] == [] or precision(source) != precision(target) or ranks != int(source[0]), pair
    assert pairs == {(a, b) for a in (1, 2, 4) for b in (1, 2, 4)}
