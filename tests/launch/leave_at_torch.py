"""Run a script up to its import of torch, tell what torch would read, and leave: leave_at_torch.py SCRIPT."""

import importlib.abc
import os
import runpy
import sys


class Torch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            launch = sys.modules["launch"]
            print(
                os.environ.get("PYTORCH_ALLOC_CONF"),
                launch.expandable_segments(),
                launch.locked_rounding(),
                launch.keeps_unrounded(),
            )
            sys.stdout.flush()
            os._exit(0)


if __name__ == "__main__":
    sys.meta_path.insert(0, Torch())
    runpy.run_path(sys.argv[1], run_name="__main__")
