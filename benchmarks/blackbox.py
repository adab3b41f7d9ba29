"""What recording costs a rank: a phase, a collective, a sample of the process and its machine.

python benchmarks/blackbox.py
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.postmortem.blackbox import BlackBox


def microseconds(function: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - started) / repeats * 1e6


def collective(box: BlackBox) -> None:
    box.collective("all_reduce", True)
    box.collective("all_reduce", False)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        box = BlackBox(Path(folder), 0, [])
        print(f"a phase      {microseconds(lambda: box.phase('forward'), 100_000):8.2f} µs")
        print(f"a collective {microseconds(lambda: collective(box), 100_000):8.2f} µs")
        print(f"a sample     {microseconds(box.sample, 1000):8.2f} µs, once a second")
        box.end(None)
