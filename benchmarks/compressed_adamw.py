"""The compressed AdamW: its kernel's rate beside DeepSpeed's CPU Adam, and how a model converges with it.

    python benchmarks/compressed_adamw.py kernel [--parameters 100000000]
    python benchmarks/compressed_adamw.py convergence --data data/sample [--steps 1500] [--out build/convergence]

`convergence` trains a language model of 30 M parameters on the dataset's texts, its weights in bf16, once
for each way to keep the optimizer's state: in fp32; compressed; and in 8 bits without companding, as a check that the
comparison can fail. Data, first weights and order are the same. It writes the losses as CSV and the curves as SVG.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from astrobio.dataset import AstrobioDataset
from launch.zero.accelerator import keep_freed_activations, prepare_accelerator
from launch.zero.compressed_adamw import CompressedAdamW, Share

GROUP = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-5}
BATCH, LENGTH, PEAK, WARM_UP = 4, 32, 1e-3, 100


def kernel(parameters: int) -> None:
    """Parameters a second, in turns, with all cores."""
    weight = torch.nn.Parameter(torch.randn(parameters))
    weight.grad = torch.randn(parameters)
    adam = DeepSpeedCPUAdam([weight], **GROUP)
    steps: dict[str, Callable[[], object]] = {"DeepSpeed's CPU Adam": adam.step}
    for dtype in (torch.bfloat16, torch.float16):
        for bits in (16, 8):
            steps[f"compressed, {dtype}, remainders of {bits} bits"] = _compressed_step(parameters, dtype, bits)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(6):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first allocates
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["DeepSpeed's CPU Adam"])
    print(f"{parameters:,} parameters, {torch.get_num_threads()} threads")
    for name, times in seconds.items():
        each = statistics.median(times)
        print(f"{name:45} {parameters / each / 1e9:5.2f}e9 a second, {base / each:.2f} times DeepSpeed's")


def _compressed_step(parameters: int, dtype: torch.dtype, bits: int) -> Callable[[], object]:
    group = CompressedAdamW([Share(0, parameters, 0, 0)], parameters, 256, bits)
    state, weight = group.empty(), torch.randn(parameters).to(dtype)
    gradient = torch.randn(parameters).to(dtype)
    return lambda: group.step(state, weight, gradient, 1.0, 2, GROUP)


class Model:
    """A small Llama: its weights in bf16 and its gradients in fp32, one flat buffer each. It computes in fp32, which is
    faster on most CPUs."""

    def __init__(self, vocabulary: int):
        torch.manual_seed(0)
        self.net = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=448,
                intermediate_size=1536,
                num_hidden_layers=10,
                num_attention_heads=7,
                num_key_value_heads=7,
                max_position_embeddings=LENGTH,
            )
        )
        parameters = list(self.net.parameters())
        self.values = torch.cat([p.detach().flatten() for p in parameters])
        self.weight = self.values.to(torch.bfloat16)
        self.gradient = torch.zeros_like(self.values)
        self.shares, at = [], 0
        for number, parameter in enumerate(parameters):
            size = parameter.numel()
            self.shares.append(Share(at, size, 0, number))
            parameter.data = self.values.narrow(0, at, size).view(parameter.shape)
            parameter.grad = self.gradient.narrow(0, at, size).view(parameter.shape)
            at += size

    def loss(self, tokens: Tensor) -> float:
        """Of one batch; leaves the gradient, clipped to a norm of 1."""
        self.gradient.zero_()
        self.values.copy_(self.weight)
        loss = self.net(input_ids=tokens, labels=tokens).loss
        loss.backward()
        norm = float(self.gradient.norm())
        self.gradient.mul_(min(1.0, 1.0 / (norm + 1e-6)))
        return loss.item()


class Fp32:
    """AdamW with its state in fp32; ``even_steps``: moments are rounded to even steps of a block's largest."""

    def __init__(self, model: Model, even_steps: bool = False):
        self.model, self.even_steps = model, even_steps
        self.master = model.weight.float()
        self.moments = torch.zeros_like(self.master), torch.zeros_like(self.master)

    def step(self, number: int, rate: float) -> None:
        (m, v), gradient = self.moments, self.model.gradient
        beta1, beta2 = GROUP["betas"]
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = v.sqrt().div_((1 - beta2**number) ** 0.5).add_(GROUP["eps"])
        self.master.mul_(1 - rate * GROUP["weight_decay"])
        self.master.addcdiv_(m, denominator, value=-rate / (1 - beta1**number))
        self.model.weight.copy_(self.master)
        if self.even_steps:
            for moment, codes in zip(self.moments, (127, 255), strict=True):
                _round_evenly(moment, codes)


def _round_evenly(moment: Tensor, codes: int, block: int = 256) -> None:
    whole = moment[: len(moment) // block * block].view(-1, block)
    low, high = whole.aminmax(dim=1, keepdim=True)
    scale = torch.maximum(high, -low).clamp_min_(1e-30).div_(codes)
    whole.div_(scale).round_().mul_(scale)


class Compressed:
    def __init__(self, model: Model, bits: int = 16):
        self.model = model
        self.group = CompressedAdamW(model.shares, len(model.weight), 256, bits)
        self.state = self.group.empty()

    def step(self, number: int, rate: float) -> None:
        self.group.step(self.state, self.model.weight, self.model.gradient, 1.0, number, GROUP | {"lr": rate})


def convergence(data: Path, steps: int, out: Path) -> None:
    dataset = AstrobioDataset(data, "train", 4096)
    tokens = torch.tensor([token for i in range(len(dataset)) for token in dataset[i]["tokens"]])
    vocabulary = len(dataset.tokenizer)
    models = {name: Model(vocabulary) for name in ("fp32", "compressed", "remainders of 8 bits", "without companding")}
    optimizers = {
        "fp32": Fp32(models["fp32"]),
        "compressed": Compressed(models["compressed"]),
        "remainders of 8 bits": Compressed(models["remainders of 8 bits"], bits=8),
        "without companding": Fp32(models["without companding"], even_steps=True),
    }
    parameters = len(models["fp32"].weight)
    print(f"{parameters / 1e6:.1f} M parameters, {len(tokens):,} tokens, {steps} steps of {BATCH} × {LENGTH}")
    out.mkdir(parents=True, exist_ok=True)
    losses: dict[str, list[float]] = {name: [] for name in models}
    generator = torch.Generator().manual_seed(1)
    with (out / "losses.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["step", *models])
        for number in range(1, steps + 1):
            starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=generator)
            batch = torch.stack([tokens[start : start + LENGTH] for start in starts])
            left = (steps - number) / (steps - WARM_UP)
            rate = PEAK * min(number / WARM_UP, max(left, 0.01))
            for name, model in models.items():
                losses[name].append(model.loss(batch))
                optimizers[name].step(number, rate)
            rows.writerow([number, *(f"{losses[name][-1]:.5f}" for name in models)])
            file.flush()
            if number % 50 == 0:
                means = ", ".join(f"{name} {statistics.mean(each[-50:]):.4f}" for name, each in losses.items())
                print(f"step {number}: {means}", flush=True)
    _report(losses, out)


def _report(losses: dict[str, list[float]], out: Path, last: int = 100) -> None:
    base = statistics.mean(losses["fp32"][-last:])
    for name, each in losses.items():
        end = statistics.mean(each[-last:])
        print(f"{name:22} {end:.4f} over the last {last} steps, {100 * (end / base - 1):+.2f}% of fp32's")
    _plot(losses, out / "convergence.svg")


def _plot(losses: dict[str, list[float]], path: Path, window: int = 25) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, each in losses.items():
        means = torch.tensor(each).unfold(0, window, window).mean(1)
        axes.semilogy([window * (i + 1) for i in range(len(means))], means, label=name, lw=1.2)
    axes.set(xlabel="step", ylabel=f"language loss, mean of {window} steps", ylim=(None, 1.2 * max(losses["fp32"])))
    axes.legend(frameon=False)
    figure.savefig(path)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("kernel").add_argument("--parameters", type=int, default=100_000_000)
    train = commands.add_parser("convergence")
    train.add_argument("--data", type=Path, default=Path("data/sample"))
    train.add_argument("--steps", type=int, default=1500)
    train.add_argument("--out", type=Path, default=Path("build/convergence"))
    args = parser.parse_args()
    prepare_accelerator()
    keep_freed_activations()
    if args.command == "kernel":
        kernel(args.parameters)
    else:
        convergence(args.data, args.steps, args.out)


if __name__ == "__main__":
    main()
