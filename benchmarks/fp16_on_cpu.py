"""fp16 matrix products, attention and 3-D convolutions on the CPU: torch's kernels beside `launch.zero.accelerator`'s.

    python benchmarks/fp16_on_cpu.py

Prints the ratio of the median times, both measured in this run, for shapes of the tiny preset.
"""

import statistics
import time
from collections.abc import Callable

import torch

from launch.zero.accelerator import prepare_accelerator

SHAPES = ((520, 64, 1600), (400, 64, 2048), (520, 64, 256))


def median_seconds(function: Callable[[], object], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure() -> dict[str, float]:
    """Seconds of each operation."""
    torch.manual_seed(0)
    times = {}
    for m, k, n in SHAPES:
        a, b = torch.randn(m, k).half(), torch.randn(k, n).half()
        times[f"matmul {m} x {k} x {n}"] = median_seconds(lambda a=a, b=b: a @ b)
    convolution, volume = torch.nn.Conv3d(8, 8, 3).half(), torch.randn(2, 8, 12, 34, 66).half()
    query = torch.randn(8, 4, 256, 16).half().requires_grad_()
    times["attention 8 x 4 x 256 x 16, backward too"] = median_seconds(
        lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    )
    times["conv3d 2 x 8 x 12 x 34 x 66"] = median_seconds(lambda: convolution(volume))
    return times


def main() -> None:
    torch.set_num_threads(1)
    before = measure()
    prepare_accelerator()
    after = measure()
    for name, seconds in before.items():
        print(
            f"{name:40s} torch {1e3 * seconds:9.2f} ms   in fp32 {1e3 * after[name]:9.2f} ms   "
            f"{seconds / after[name]:6.1f} times faster"
        )


if __name__ == "__main__":
    main()
