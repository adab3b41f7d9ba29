"""torch is told to allocate in expandable segments, before it is imported, unless the environment says otherwise."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import IMPORTS
from project import ROOT

import launch
from launch.ds_config import machine


def at_import(script: str, **settings: str) -> str:
    known = {key: value for key, value in os.environ.items() if "ALLOC_CONF" not in key}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("leave_at_torch.py"), script],
        cwd=ROOT,
        env={**known, **IMPORTS, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("script", ["launch/train.py", "launch/experiments/full_size.py"])
def test_before_torch_is_imported(script):
    assert at_import(script) == f"expandable_segments:True,pinned_max_cached_size_mb:8 True {8 << 20} False"


def test_the_user_decides():
    assert (
        at_import("launch/train.py", PYTORCH_ALLOC_CONF="max_split_size_mb:512")
        == "max_split_size_mb:512 False None False"
    )
    assert at_import("launch/train.py", PYTORCH_CUDA_ALLOC_CONF="expandable_segments: true") == "None True None False"


@pytest.mark.parametrize(
    ("settings", "rounding", "unsafe"),
    [
        ("pinned_max_round_threshold_mb:16", 16, True),
        ("pinned_max_cached_size_mb:16", 16, False),
        ("pinned_max_round_threshold_mb:16,pinned_max_cached_size_mb:16", 16, False),
        ("pinned_max_round_threshold_mb:16,pinned_max_cached_size_mb:32", 16, True),
        ("pinned_max_round_threshold_mb:64, pinned_max_cached_size_mb:32", 32, False),
    ],
)
def test_blocks_that_are_kept_must_be_rounded(monkeypatch, settings, rounding, unsafe):
    """By torch 2.13.0's rule a freed block is taken for any size of its power of two."""
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", settings)
    assert (launch.locked_rounding(), launch.keeps_unrounded()) == (rounding << 20, unsafe)
    monkeypatch.setattr(machine, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
    assert [finding.key for finding in machine._allocator()] == ["PYTORCH_ALLOC_CONF"] * unsafe


def test_torch_still_hands_out_unrounded_blocks():
    """When this fails, torch looks at the size of what it kept: `keeps_unrounded` may go."""
    source = (Path(torch.__file__).parent / "include/ATen/core/CachingHostAllocator.h").read_text()
    body = source.split("virtual B* get_free_block(size_t size")[1].split("return nullptr;")[0]
    assert "size_" not in body.replace("size_index", "").replace("size_t", "")
