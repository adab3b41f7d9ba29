"""The largest micro-batch and the longest text."""

from pathlib import Path

from launch.planner import largest

ROOT = Path(__file__).resolve().parents[3]


def test_the_longest_text_leaves_positions_to_the_modalities(monkeypatch):
    """On cards that hold anything: 17b has 8,192 positions, 144 of them for the modalities."""
    monkeypatch.setattr(largest, "_most_that_fits", lambda job_of, machine, most: most)
    found = largest.largest_of("17b", ROOT / "ds_configs/zero3_nvme.json", "a5000x2")
    assert found["seq_length"] == (8192 - 144) // 256 * 256
