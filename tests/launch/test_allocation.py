"""torch is told to allocate in expandable segments, before it is imported, unless the environment says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Run a script up to its import of torch, and tell what torch would read.
AT_IMPORT = """
import importlib.abc, os, runpy, sys

class Torch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("PYTORCH_ALLOC_CONF"), sys.modules["launch"].expandable_segments())
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Torch())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def at_import(script: str, **settings: str) -> str:
    known = {key: value for key, value in os.environ.items() if "ALLOC_CONF" not in key}
    done = subprocess.run([sys.executable, "-c", AT_IMPORT, script], cwd=ROOT, env={**known, **settings},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("script", ["launch/train.py", "launch/experiments/full_size.py"])
def test_before_torch_is_imported(script):
    assert at_import(script) == "expandable_segments:True True"


def test_the_user_decides():
    assert at_import("launch/train.py", PYTORCH_ALLOC_CONF="max_split_size_mb:512") == "max_split_size_mb:512 False"
    assert at_import("launch/train.py", PYTORCH_CUDA_ALLOC_CONF="expandable_segments: true") == "None True"
