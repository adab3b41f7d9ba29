"""Checkpoints as files: fingerprints, what verifies and what does not, what is kept, and exports."""

import json
import random
from pathlib import Path

import pytest
import torch
from breaking import cut_short, flip
from launching import run_script
from safetensors.torch import load_file
from saving import some_tensors, write_checkpoint

from astrobio.config import ConfigError
from launch.checkpoints import folder
from launch.checkpoints.export import Source, export
from launch.checkpoints.fingerprint import Fingerprint, fingerprint
from launch.checkpoints.manifest import MANIFEST, Damaged, Manifest, check_sizes, verify
from launch.cli import main


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
)
def test_fingerprints_of_parts_add_up_to_that_of_the_whole(dtype):
    torch.manual_seed(1)
    whole = (100 * torch.randn(70_001)).to(dtype)
    for seed in range(5):
        cuts = [0, *sorted(random.Random(seed).sample(range(1, len(whole)), 7)), len(whole)]
        parts = [fingerprint(whole[a:b], a) for a, b in zip(cuts, cuts[1:], strict=False)]
        assert sum(parts, Fingerprint()) == fingerprint(whole)
    assert Fingerprint.parse(str(fingerprint(whole))) == fingerprint(whole)


def test_a_fingerprint_sees_one_bit_an_exchange_and_a_shift():
    torch.manual_seed(1)
    whole = torch.randn(100_000)
    seen = {fingerprint(whole)}
    bit = whole.clone()
    bit.view(torch.int32)[77_777] ^= 1
    exchanged = whole.clone()
    exchanged[[5, 50_000]] = whole[[50_000, 5]]
    seen |= {
        fingerprint(bit),
        fingerprint(exchanged),
        fingerprint(whole.roll(1)),
        fingerprint(-whole),
        fingerprint(whole, 2),
    }
    assert len(seen) == 6


def test_any_program_can_read_the_files(tmp_path):
    tensors = some_tensors()
    saved = write_checkpoint(tmp_path, 5, tensors)
    halves = [load_file(saved / f"rank_0000{rank}.safetensors")["fp32/a"] for rank in range(2)]
    assert torch.equal(torch.cat(halves).view(1001, 3), tensors["fp32/a"])
    source = Source(saved, Manifest.read(saved))
    assert all(torch.equal(source.read(key), tensor) for key, tensor in tensors.items())


DAMAGES = {
    "flipped byte": (lambda saved: flip(saved / "rank_00001.safetensors"), "rank_00001.safetensors"),
    "flipped byte in the header": (
        lambda saved: flip(saved / "rank_00000.safetensors", 0.003),
        "rank_00000.safetensors",
    ),
    "truncated": (lambda saved: cut_short(saved / "rank_00000.safetensors"), "rank_00000.safetensors has"),
    "a rank's file missing": (
        lambda saved: (saved / "rank_00001.safetensors").unlink(),
        "rank_00001.safetensors is missing",
    ),
    "manifest missing": (lambda saved: (saved / MANIFEST).unlink(), MANIFEST),
    "flipped byte in the manifest": (lambda saved: flip(saved / MANIFEST), MANIFEST),
    "empty manifest": (lambda saved: (saved / MANIFEST).write_text(""), MANIFEST),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_what_is_broken(damage, tmp_path, capsys):
    saved = write_checkpoint(tmp_path, 5, some_tensors())
    assert main(["checkpoint", "verify", str(tmp_path)]) == 0
    do, name = DAMAGES[damage]
    do(saved)
    with pytest.raises(Damaged, match=name):
        verify(saved)
    capsys.readouterr()
    assert main(["checkpoint", "verify", str(tmp_path), "--json"]) == 2
    [problem] = json.loads(capsys.readouterr().out)["checkpoints"][saved.name]
    assert name in problem


def test_what_can_be_seen_at_once_needs_no_reading(tmp_path):
    saved = write_checkpoint(tmp_path, 5, some_tensors())
    flip(saved / "rank_00001.safetensors")
    check_sizes(saved)  # the length is right: only reading finds it
    source = Source(saved, Manifest.read(saved))
    with pytest.raises(Damaged):
        for key in some_tensors():
            source.read(key)


def test_latest_and_best_name_checkpoints_or_say_what_is_wrong(tmp_path):
    saved = write_checkpoint(tmp_path, 5, some_tensors(10))
    assert folder.named(tmp_path, "latest") == saved and folder.named(tmp_path, "best") is None
    assert folder.pointer_problem(tmp_path, "latest") is None
    (tmp_path / "checkpoints/latest").write_text("")
    assert "latest is empty" in folder.pointer_problem(tmp_path, "latest")
    (tmp_path / "checkpoints/latest").write_text("step_00000009\n")
    assert "step_00000009" in folder.pointer_problem(tmp_path, "latest")


def test_old_checkpoints_go_and_the_last_valid_one_stays(tmp_path):
    saved = {step: write_checkpoint(tmp_path, step, some_tensors(10), elapsed_s=1800.0 * step) for step in range(1, 9)}
    folder.point(tmp_path, "best", saved[2])
    (saved[8] / "rank_00000.safetensors").unlink()
    folder.remove_old(tmp_path, keep_last=1, keep_every_h=2)
    left = [path.name for path in folder.checkpoints(tmp_path)]
    # The best; the first of hours 0-2 (1), 2-4 (4); the last valid one (7); the broken one is left alone.
    assert left == [f"step_0000000{step}" for step in (1, 2, 4, 7, 8)]
    for step in (1, 2, 4):
        (saved[step] / MANIFEST).write_text("")
    folder.remove_old(tmp_path, keep_last=1)
    assert saved[7] in folder.valid_checkpoints(tmp_path)


def test_what_a_killed_save_left_is_removed(tmp_path):
    saved = write_checkpoint(tmp_path, 5, some_tensors(10))
    partial = saved.with_name("step_00000006.partial")
    partial.mkdir()
    (partial / "rank_00000.safetensors").write_bytes(b"half")
    assert folder.checkpoints(tmp_path) == [saved]
    assert folder.remove_leftovers(tmp_path) == [partial] and not partial.exists()


def test_a_broken_checkpoint_is_set_aside_not_deleted(tmp_path):
    saved = write_checkpoint(tmp_path, 5, some_tensors(10))
    aside = folder.set_aside(saved)
    assert aside.name.endswith(".damaged") and (aside / MANIFEST).is_file()
    assert folder.checkpoints(tmp_path) == []


def test_list_shows_each_and_what_is_wrong_with_it(tmp_path, capsys):
    write_checkpoint(tmp_path, 5, some_tensors(10))
    write_checkpoint(tmp_path, 6, some_tensors(10))
    (folder.path_of(tmp_path, 6) / "rank_00000.safetensors").unlink()
    assert main(["checkpoint", "list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "step_00000005" in out and "rank_00000.safetensors is missing" in out
    assert main(["checkpoint", "list", str(tmp_path / "nothing")]) == 2


def test_an_export_holds_one_tensor_at_a_time(tmp_path):
    """320 MB in tensors of 16: the memory rises by a few of those."""
    tensors = {f"fp32/{number}": torch.randn(4_000_000) for number in range(20)}
    saved = write_checkpoint(tmp_path, 1, tensors)
    done = run_script(Path(__file__).with_name("export_peak.py"), saved, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) == 4 and int(done.stdout) < 6 * 16e6
    weights = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert all(torch.equal(weights[key.removeprefix("fp32/")], tensor.bfloat16()) for key, tensor in tensors.items())


def test_an_export_overwrites_nothing(tmp_path):
    saved = write_checkpoint(tmp_path, 1, some_tensors(10))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        export(saved, tmp_path / "out")
