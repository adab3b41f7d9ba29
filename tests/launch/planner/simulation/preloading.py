"""Imports what simulations are forked from, and prints which cards are visible when torch and DeepSpeed come."""

import importlib
import importlib.abc
import os
import sys


class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("torch", "deepspeed"):
            print(f"{name}: {os.environ.get('CUDA_VISIBLE_DEVICES')!r}", flush=True)


sys.meta_path.insert(0, Watch())
importlib.import_module("launch.planner.simulation.preload")
