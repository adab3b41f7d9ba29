"""Host time of an eager PyTorch program and of DeepSpeed's ZeRO-3 around it, where the device costs nothing.

    python benchmarks/hooks.py [--cpu]

Forward and backward passes of two transformers with the depth and the modules of models of 7 billion parameters, but
widths of 16, on one CPU core: alone, and as one of four ranks under ZeRO-3 whose collectives move nothing. The CPU time
alone over the number of operators dispatched, views too, is ``operator_s`` of the planner's hardware profiles, for a
host of this kind; what ZeRO-3 adds beyond the operators of its own, over the number of its hooks, is ``hook_s``. Both
are pooled over the models; beside each model's own time stands what the pooled rates make of it.

Around each hook DeepSpeed asks its accelerator for streams, events and profiler ranges. On a CPU there are none; they
are asked for here as on CUDA (`act_as_cuda`), unless ``--cpu``.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # it compiles what it defines: before CUDA seems to be there
import torch
import torch.distributed as dist
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.published_models import SimpleTransformer
from launch.planner.simulation import patches

RANKS, LAYERS, SIZE, TOKENS, VOCABULARY, REPEATS = 4, 32, 16, 4, 100, 25
#: Parameters of these models over those of the same at width 4096: DeepSpeed's buckets shrink alike, so that it gathers
#: and reduces as many at a time.
SCALE = (SIZE / 4096) ** 2


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "llama",
                hidden_size=SIZE,
                intermediate_size=11 * SIZE // 4,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                vocab_size=VOCABULARY,
                use_cache=False,
            )
        )

    def forward(self, ids):
        return self.model(input_ids=ids).logits


MODELS = {"Llama": Llama, "with checkpointed layers": lambda: SimpleTransformer(VOCABULARY, SIZE, LAYERS, 4, TOKENS)}


class Counter(TorchDispatchMode):
    """Counts operators."""

    def __init__(self):
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Step:
    """The CPU seconds of the fastest of several passes, which nothing else disturbed, and what one does."""

    seconds: float
    operators: int
    hooks: int


def act_as_cuda() -> None:
    """Let the CPU accelerator do on the host what DeepSpeed's CUDA accelerator does there, by torch.cuda's own Python.

    The C functions behind it, which a CPU build of torch has not, do nothing. With a card they take time too: this is a
    lower bound, and calls to the driver are ``launch_s`` of a profile.
    """

    def nothing(*args, **kwargs):
        return None

    torch.backends.cuda.is_built = torch.cuda._is_compiled = lambda: True
    torch.cuda._initialized = True
    torch._C._cuda_getDeviceCount, torch._C._cuda_getDevice = lambda: 1, lambda: 0
    torch._C._cuda_getCurrentStream, torch._C._cuda_setStream = lambda device: (0, 0, 1), nothing
    for base in (torch._C._CudaStreamBase, torch._C._CudaEventBase):  # of which a CPU build has empty ones
        base.__new__, base.__init__ = lambda cls, *args, **kwargs: object.__new__(cls), nothing
        base.record = base.wait = base.synchronize = nothing
        base.query = lambda self: True
        base.stream_id = base.device_index = base.device_type = base.device = 0
    torch.cuda.nvtx._nvtx.rangePushA, torch.cuda.nvtx._nvtx.rangePop = torch._C._itt.rangePush, torch._C._itt.rangePop
    torch.Tensor.record_stream = lambda tensor, stream: tensor.resolve_conj()  # an operator that does nothing
    for name in (
        "Stream",
        "Event",
        "stream",
        "current_stream",
        "default_stream",
        "range_push",
        "range_pop",
        "_get_nvtx_domain",
        "supports_nvtx_domain",
        "is_synchronized_device",
        "resolves_data_dependency",
        "handles_memory_backpressure",
    ):
        setattr(CPU_Accelerator, name, CUDA_Accelerator.__dict__[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="DeepSpeed's CPU accelerator as it is")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Without LOCAL_SIZE, which DeepSpeed's launcher sets, the CPU accelerator starts a program at each reduction to
    # count its devices.
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(RANKS), LOCAL_SIZE="1", DS_ACCELERATOR="cpu")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False)
    recorder = SimpleNamespace(trace=[])  # of hooks alone
    for patch in (patches.ranks_agree, patches.hooks):
        patch(recorder, None)
    ids, loss_of = torch.zeros(1, TOKENS, dtype=torch.long), nn.CrossEntropyLoss()

    def measure(model, backward) -> Step:
        def step():
            backward(loss_of(model(ids).view(-1, VOCABULARY), ids.view(-1)))

        for _ in range(3):  # DeepSpeed learns the order of the modules in the first
            step()
        times = []
        for _ in range(REPEATS):
            recorder.trace.clear()
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
        with Counter() as counter:
            step()
        return Step(min(times), counter.operators, len(recorder.trace) // 2)  # the counted pass was another

    alone = [measure(make(), torch.Tensor.backward) for make in MODELS.values()]
    if not args.cpu:
        act_as_cuda()
    under = [measure(*_engine(make())) for make in MODELS.values()]
    operator = sum(s.seconds for s in alone) / sum(s.operators for s in alone)
    hook = sum(s.seconds - operator * s.operators for s in under) / sum(s.hooks for s in under)
    print(f"operator_s {1e6 * operator:.1f} microseconds, hook_s {1e6 * hook:.0f} microseconds")
    for name, *pair in zip(MODELS, alone, under, strict=True):
        for what, step in zip(("alone", "under ZeRO-3"), pair, strict=True):
            rates = operator * step.operators + hook * step.hooks
            print(
                f"{name}, {what}: {1e3 * step.seconds:.0f} ms for {step.operators} operators and {step.hooks} hooks, "
                f"{1e3 * rates:.0f} by these rates"
            )


def _engine(model: nn.Module):
    """The model under ZeRO-3, and its backward."""
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persistence_threshold": 0,
                "overlap_comm": True,
                "reduce_bucket_size": int(5e7 * SCALE),
                "stage3_prefetch_bucket_size": int(5e7 * SCALE),
                "stage3_max_live_parameters": int(1e9 * SCALE),
                "stage3_max_reuse_distance": int(1e9 * SCALE),
            },
        },
    )
    return engine, engine.backward


if __name__ == "__main__":
    main()
