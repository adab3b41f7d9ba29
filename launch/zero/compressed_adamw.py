"""AdamW whose state takes 4 bytes a parameter beside the 16-bit weight, where fp32's takes 12.

- The master weight is the 16-bit weight and a remainder of 16 bits, or 8. In bf16 a remainder of 16 bits gives fp32
  back bit for bit. In fp16 it does so from 2^-17 on; below it the steps are of 2^-40, and a weight beyond 65,504 is
  infinite. A remainder of 8 bits leaves 16 bits of the mantissa in bf16 and 19 in fp16.
- Moments are codes of 8 bits, relative to the largest of a block of elements: the first by its square root, the second
  by its fourth, so that what is small in its block still has a code of its own. They are rounded up or down at random,
  so that a change smaller than a code's step is made as often as it is due; the nearest would lose it each time.

Compression and companding as in FlashOptim (arXiv:2602.23349), which keeps such states on the card.

Blocks are counted from each parameter's beginning, whichever rank holds it and in whatever sub-group.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.ops.op_builder.cpu.builder import CPUOpBuilder
from torch import Tensor


class CompressedAdamWBuilder(CPUOpBuilder):
    """Compiles compressed_adamw.cpp as DeepSpeed's own parts are."""

    NAME = "compressed_adamw"
    BUILD_VAR = "DS_BUILD_COMPRESSED_ADAMW"

    def __init__(self):
        super().__init__(name=self.NAME)

    def absolute_name(self):
        return f"launch.zero.{self.NAME}_op"

    def sources(self):
        return [str(Path(__file__).with_suffix(".cpp"))]

    def include_paths(self):
        return []

    def cxx_args(self):
        # No fused multiply-add, so that each processor has the same results; the others let loops be vectorized.
        exact = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
        return ["-O3", "-std=c++17", "-fopenmp", self.cpu_arch(), *exact]


@dataclass(frozen=True)
class Share:
    """A rank's share of a parameter: ``numel`` elements from ``first`` on, at ``at`` of its sub-group's buffer."""

    at: int
    numel: int
    first: int
    number: int  # of the parameter, for its random numbers


class CompressedAdamW:
    """One sub-group: where its blocks are, and what is done with its state, a flat fp32 tensor to everybody else."""

    def __init__(self, shares: list[Share], numel: int, block_size: int, remainder_bits: int):
        """``numel``: elements of the sub-group's buffer, with padding."""
        self.numel, self.block_size, self.remainder_bits = numel, block_size, remainder_bits
        rows, self.blocks = [], 0
        for share in shares:
            rows.append([share.at, share.numel, share.first, share.number, self.blocks])
            self.blocks += -(-(share.first % block_size + share.numel) // block_size)
        self._segments = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)

    @property
    def state_numel(self) -> int:
        """Elements of the state, 4 bytes each: two scales a block; for each parameter a remainder and two codes."""
        return -(-(8 * self.blocks + self.numel * (self.remainder_bits // 8 + 2)) // 4)

    def empty(self) -> Tensor:
        """The state of weights that have not moved: without remainders and moments."""
        return torch.zeros(self.state_numel)

    def step(
        self, state: Tensor, weight: Tensor, gradient: Tensor, gradient_scale: float, number: int, group: dict[str, Any]
    ) -> None:
        """AdamW's step ``number``, from 1.

        Args:
            weight: of 16 bits, on the host; updated in place, like ``state``.
            gradient: of any of the three precisions; times ``gradient_scale`` it is the loss's.
            group: the optimizer's param group with its settings.
        """
        beta1, beta2 = group["betas"]
        self._compressed(state, weight).step(
            gradient,
            gradient_scale,
            number,
            group["lr"],
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            bool(group.get("bias_correction", True)),
        )

    def decode(self, state: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """The master weights and both moments in fp32, by the names that checkpoints have for them."""
        decoded = {key: torch.zeros(self.numel) for key in ("fp32", "exp_avg", "exp_avg_sq")}
        self._compressed(state, weight).decode(*decoded.values())
        return decoded

    def encode(self, state: Tensor, weight: Tensor, master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """The way back, to the nearest; what was decoded becomes what it was."""
        self._compressed(state, weight).encode(master, exp_avg, exp_avg_sq)

    def _compressed(self, state: Tensor, weight: Tensor):
        return (
            CompressedAdamWBuilder()
            .load(verbose=False)
            .Compressed(
                weight,
                state,
                self._segments,
                len(self._segments),
                self.numel,
                self.blocks,
                self.block_size,
                weight.dtype == torch.bfloat16,
                self.remainder_bits,
            )
        )
