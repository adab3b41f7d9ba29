"""Hardware profiles: the shipped ones, and the one that is measured."""

import json
import os

import torch

from launch.planner.hardware import load_hardware, measure
from launch.planner.hardware.profile import profile_names


def test_every_number_of_every_profile_has_a_source():
    for name in profile_names():
        machine = load_hardware(name)
        assert machine.sources and all(len(source) > 4 for source in machine.sources.values())
        assert machine.peak_flops_per_s >= machine.fp16_flops_per_s


def test_this_machine_is_measured_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    machine = load_hardware("this")
    assert machine.host_memory_bytes > 1e9 and machine.nvme_read_bytes_per_s > 1e6 and machine.fp32_flops_per_s > 1e8
    told = capsys.readouterr()
    assert "measuring" in told.err and not told.out  # where a plan's JSON goes
    assert load_hardware("this") == machine and "measuring" not in capsys.readouterr().err
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0, 0))
    next(tmp_path.glob("hardware-*.json")).unlink()
    machine = load_hardware("this")
    assert not torch.cuda.is_initialized()
    assert "load 3.0" in capsys.readouterr().err
    kept = next(tmp_path.glob("hardware-*.json"))
    fields = json.loads(kept.read_text())
    kept.write_text(json.dumps({key: value for key, value in fields.items() if key != "hook_s"}))
    monkeypatch.setattr(measure, "_measure_apart", lambda folder: fields)
    assert load_hardware("this") == machine, "what an earlier version kept, without a field, is measured anew"


def test_another_card_or_torch_is_another_machine(tmp_path, monkeypatch):
    """Rented boxes share names. The folder has what NVIDIA's driver writes there."""

    def with_card(name: str) -> str:
        folder = tmp_path / name.replace(" ", "_") / "0000:01:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 79\n")
        return known(folder.parent)

    def known(folder) -> str:
        return measure._parts(measure.card_names(folder))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [known(tmp_path / "none"), with_card("NVIDIA RTX A5000"), with_card("NVIDIA H100")]
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu128")
    found.append(known(tmp_path / "NVIDIA_H100"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found.append(known(tmp_path / "NVIDIA_H100"))
    assert len(set(found)) == len(found)
