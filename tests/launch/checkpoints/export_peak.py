"""Export a checkpoint in shards of 40 MB, and tell by how many bytes the memory rose: export_peak.py CHECKPOINT OUT."""

import sys
from pathlib import Path

import psutil
import torch

from launch.checkpoints.export import Source, _whole, _write_shards
from launch.checkpoints.manifest import Manifest
from launch.memory import forget_peak, peak_resident_bytes

if __name__ == "__main__":
    saved, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir()
    tensors = list(_whole(Source(saved, Manifest.read(saved)), torch.bfloat16))
    forget_peak()
    before = psutil.Process().memory_info().rss
    _write_shards(out, tensors, 40_000_000, iter)
    print(peak_resident_bytes() - before)
