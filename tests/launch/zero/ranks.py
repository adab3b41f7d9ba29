"""What two ranks do together, many cases in one launch; test_ranks.py judges what they saw."""

import functools
import gc
import os
import weakref
from pathlib import Path

import cases
import deepspeed
import deepspeed.comm as dist
import peft
import psutil
import torch
from cases import CASES, batch_of, case, make_engine, step
from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper as Swapper
from deepspeed.utils import safe_get_full_grad
from memory import forget_peak, peak_bytes
from peft import LoraConfig
from project import DS_CONFIGS
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from astrobio.config import load_preset
from astrobio.sampler import SampleOrder
from astrobio.stack import AstrobioStack
from launch.diagnose import GradientWatch, nonfinite_forward
from launch.ds_config.auto import resolve
from launch.ds_config.config import DsConfig
from launch.ds_config.read import read_ds_config
from launch.planner.search import LAYERS
from launch.zero.activation import checkpoint
from launch.zero.engine import build_stack


class LiveBytes(TorchDispatchMode):
    """Counts bytes of the storages made under it that are still alive."""

    def __init__(self):
        super().__init__()
        self.live, self._seen = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_):
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size


def trained(config: str) -> dict:
    """Two optimizer steps, each over samples with their modalities and samples with none; which parameters moved."""
    in_bf16 = "bf16" in config
    engine = make_engine(
        config,
        {
            "scheduler.params.cycle_min_lr": 1e-2,
            "scheduler.params.cycle_max_lr": 2e-2,
            **({} if in_bf16 else {"fp16.initial_scale_power": 8}),
        },
    )
    before = weights(engine)
    rank = dist.get_rank()
    size = 2 if in_bf16 else 8  # bf16 takes most processors ten times as long
    batches = [batch_of(range(size * (2 * i + rank), size * (2 * i + rank + 1))) for i in range(4)]
    for i in (1, 3):
        for name in engine.module.modalities:
            batches[i] = batches[i].without(name)
    losses = step(engine, batches)
    after = weights(engine)
    norm = engine.get_global_grad_norm()
    return {
        "losses": losses,
        "steps": engine.global_steps,
        "skipped": engine.skipped_steps,
        "grad_norm": float(norm),
        "unmoved": [name for name in before if torch.equal(before[name], after[name])],
        "parameters": len(before),
    }


def weights(engine) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = parameter.detach().float().cpu().clone()
    return found


for _name in DS_CONFIGS:
    CASES[f"ds_config:{_name}"] = lambda name=_name: trained(name)


#: Wide enough that in fp32 half a large weight is above the 1 MiB from which DeepSpeed puts it on NVMe.
WIDE = {"language.config.hidden_size": 256, "language.config.intermediate_size": 2048, "climate.hidden_size": 384}
#: As `astrobio plan --advice` recommends it.
WHOLE_LAYERS = {"zero_optimization.leaf_module.classes": LAYERS}
TRAINED_IN_PART = {
    "all": {},
    "frozen language": {"freeze": ["language"]},
    "frozen datacube": {"freeze": ["climate"]},
    "adapters": {"language.lora": {"rank": 4}},
}


def gradients(which: str) -> dict:
    """Gradients of the second step in fp32, beside those of plain torch on one process: with and without activation
    checkpointing, parameters on the CPU and on NVMe. The learning rate is 0, so that the weights stay."""
    # An adapter starts as zero, and so would half of its gradients.
    peft.LoraConfig = functools.partial(LoraConfig, init_lora_weights=False)
    config = load_preset("tiny", {**WIDE, **TRAINED_IN_PART[which]})
    shares = [batch_of(range(2 * rank, 2 * rank + 2)) for rank in range(dist.get_world_size())]

    def loss_of(module, rank):
        torch.manual_seed(100 + rank)  # masks, noise and dropped modalities
        return module(shares[rank]).loss

    reference = build_stack(config, DsConfig.parse({}), seed=0).train()
    for rank in range(len(shares)):
        (loss_of(reference, rank) / len(shares)).backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
    largest = max(float(grad.norm()) for grad in expected.values())

    found = {"expected": len(expected), "frozen": sum(not p.requires_grad for p in reference.parameters())}
    on_nvme = {"zero_optimization.offload_param.max_in_cpu": 0}
    kept = ("activation_checkpointing",)
    for name, ds_config, changes, without in (
        ("cpu, checkpointing", "zero3_offload", {}, ()),
        ("cpu, kept activations", "zero3_offload", {}, kept),
        ("nvme, checkpointing", "zero3_nvme", on_nvme, ()),
        ("nvme, kept activations", "zero3_nvme", on_nvme, kept),
        ("whole layers, checkpointing", "zero3_resident", WHOLE_LAYERS, ()),
        ("whole layers, kept activations", "zero3_resident", WHOLE_LAYERS, kept),
    ):
        engine = make_engine(
            ds_config,
            {
                "fp16": {"enabled": False},
                "gradient_accumulation_steps": 1,
                "zero_optimization.offload_optimizer": {"device": "cpu"},
                **changes,
                "optimizer.params": {"lr": 0.0, "weight_decay": 0.0},
            },
            without=("scheduler", *without),
            stack=config,
        )
        engine.backward(loss_of(engine, dist.get_rank()))
        engine.step()
        engine.backward(loss_of(engine, dist.get_rank()))
        missing, differences = [], {}
        for parameter, p in engine.module.named_parameters():
            if parameter in expected:
                grad = safe_get_full_grad(p)
                if grad is None or (float(grad.norm()) == 0 and float(expected[parameter].norm()) > 0):
                    missing.append(parameter)
                else:
                    differences[parameter] = float((grad - expected[parameter]).norm()) / max(
                        float(expected[parameter].norm()), 1e-4 * largest
                    )
        there = [p for p in engine.module.parameters() if p.ds_tensor.final_location == "nvme"]
        found[name] = {
            "missing": missing,
            "worst": max((value, parameter) for parameter, value in differences.items()),
            "on_nvme": len(there),
            "frozen_on_nvme": sum(not p.requires_grad for p in there),
        }
        engine.step()
        engine.destroy()
    return found


for _which in TRAINED_IN_PART:
    CASES[f"gradients:{_which}"] = lambda which=_which: gradients(which)


STEPS = 200
PRECISIONS = {
    "fp32": {"fp16": {"enabled": False}},
    "fp16": {},
    "bf16": {"fp16": {"enabled": False}, "bf16": {"enabled": True}},
}


def trajectory(precision: str) -> dict:
    """The losses of `STEPS` optimizer steps through the engine, as zero3_offload has them, and of a plain loop of torch
    over the same records with the same random numbers, in fp32."""
    rise = round(0.3 * STEPS)
    engine = make_engine(
        "zero3_offload",
        {
            "gradient_accumulation_steps": 1,
            "scheduler.params.cycle_first_step_size": rise,
            "scheduler.params.cycle_second_step_size": STEPS - rise,
            **PRECISIONS[precision],
        },
    )
    ranks, order = dist.get_world_size(), SampleOrder(len(cases.DATA), 0)
    micro_batches = [
        [batch_of(order.indices(2 * (ranks * i + rank), 2)) for rank in range(ranks)] for i in range(STEPS)
    ]
    found = [step(engine, [shares[dist.get_rank()]])[0] for shares in micro_batches]
    skipped = engine.skipped_steps
    engine.destroy()
    mean = torch.tensor(found)
    dist.all_reduce(mean)
    return {"launcher": (mean / ranks).tolist(), "plain": plain_loop(micro_batches, rise), "skipped": skipped}


def plain_loop(micro_batches: list[list], rise: int) -> list[float]:
    """What anybody would write: one process, fp32, AdamW with clipping, a learning rate that rises and falls."""
    stack = build_stack(load_preset("tiny"), DsConfig.parse({}), seed=0).train()
    optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 0.1 + 0.9 * (i / rise if i <= rise else 1 - (i - rise) / (STEPS - rise))
    )
    draws = [torch.Generator().manual_seed(1 + rank).get_state() for rank in range(len(micro_batches[0]))]
    losses = []
    for shares in micro_batches:
        total = 0.0
        for rank, batch in enumerate(shares):  # each rank draws its own masks and noise
            torch.set_rng_state(draws[rank])
            loss = stack(batch).loss / len(shares)
            draws[rank] = torch.get_rng_state()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(stack.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


for _precision in PRECISIONS:
    CASES[f"trajectory:{_precision}"] = lambda precision=_precision: trajectory(precision)


@case
def language_models() -> dict:
    """Two optimizer steps of each kind of language model under ZeRO-3, with activation checkpointing."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 2048}
    transformer = {**sizes, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = {
        "mistral": transformer,
        "qwen3": {**transformer, "head_dim": 16},
        "mixtral": {**transformer, "num_local_experts": 4},
        "mamba2": {**sizes, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "expand": 2},
    }
    found = {}
    for kind, config in kinds.items():
        stack = load_preset(
            "tiny",
            {
                "language.model_type": kind,
                "language.config": config,
                "climate": None,
                "metabolism": None,
                "spectrum": None,
                "tasks": None,
            },
        )
        engine = make_engine("zero3_offload_bf16", {"gradient_accumulation_steps": 1}, stack=stack)
        before = weights(engine)
        losses = step(engine, [batch_of([0, 1]), batch_of([2, 3])])
        after = weights(engine)
        language = [name for name in before if name.startswith("language")]
        found[kind] = {
            "losses": losses,
            "moved": sum(not torch.equal(before[n], after[n]) for n in language),
            "language": len(language),
        }
        engine.destroy()
    return found


@case
def pretrained() -> dict:
    """A checkpoint of several shards, loaded under ZeRO-3 and under ZeRO-2: the logits of transformers' own loading,
    and how far the resident memory of this rank rose above what it was."""
    folder = cases.OUT / "checkpoint"
    if dist.get_rank() == 0:
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "llama",
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=8,
                num_attention_heads=8,
                vocab_size=4096,
            )
        ).save_pretrained(folder, max_shard_size="64MB")
    dist.barrier()
    stack = load_preset(
        "tiny",
        {
            "language.config": {},
            "language.init_from": str(folder),
            "planet": None,
            "climate": None,
            "metabolism": None,
            "spectrum": None,
            "tasks": None,
            "fusion": None,
        },
    )
    shards = [path.stat().st_size for path in folder.glob("*.safetensors")]
    found = {"whole_bytes": sum(shards), "shard_bytes": max(shards), "shards": len(shards)}
    batch, ran = batch_of([0, 1]), {}
    for name in ("zero3_offload", "zero2_offload"):
        ds_config = resolve(
            read_ds_config(DS_CONFIGS[name], {"fp16": {"enabled": False}}),
            world_size=2,
            nvme_folder=cases.OUT,
            total_steps=10,
            largest_parameter=1 << 20,
        )
        gc.collect()
        forget_peak()
        before = psutil.Process().memory_info().rss
        built = build_stack(stack, ds_config, seed=0)
        found[f"{name} rose by"] = peak_bytes() - before
        engine, *_ = deepspeed.initialize(model=built, config=ds_config.raw, model_parameters=built.parameters())
        engine.eval()
        with torch.no_grad():
            ran[name] = engine.module.language(None, batch.tokens)[1]
        engine.destroy()
        del built, engine
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = own(input_ids=batch.tokens, attention_mask=batch.real.long()).logits[:, :-1]
    seen = batch.real[:, 1:]
    for name, logits in ran.items():
        found[f"{name} differs by"] = float((logits - expected)[seen].abs().max())
    return found


@case
def pretrained_encoder() -> dict:
    """A climate encoder from an exported stack, under ZeRO-3 and ZeRO-2: which of its weights are not those of the
    file, and how many of the other parts' are."""
    folder = cases.OUT / "stack"
    if dist.get_rank() == 0:
        torch.manual_seed(7)
        folder.mkdir(parents=True)
        save_file(dict(AstrobioStack(load_preset("tiny")).named_parameters()), folder / "model.safetensors")
    dist.barrier()
    expected, found = load_file(folder / "model.safetensors"), {}
    for name in ("zero3_offload", "zero2_offload"):
        engine = make_engine(
            name, {"fp16": {"enabled": False}}, stack=load_preset("tiny", {"climate.init_from": str(folder)})
        )
        equal = {part: torch.equal(values, expected[part]) for part, values in weights(engine).items()}
        found[name] = {
            "wrong": [part for part, same in equal.items() if part.startswith("climate.") and not same],
            "loaded": sum(part.startswith("climate.") for part in equal),
            "language": equal["language.model.model.embed_tokens.weight"],
        }
        engine.destroy()
    return found


@case
def accumulation_over_buckets() -> dict:
    """The gradient norm of a batch, and of the same batch accumulated twice, with buckets much smaller than the model:
    most gradients are reduced within the backward pass."""
    norms = {}
    for accumulated in (1, 2):
        engine = make_engine(
            "zero3_offload_bf16",
            {"gradient_accumulation_steps": accumulated, "zero_optimization.reduce_bucket_size": 20000},
        )
        for _ in range(accumulated):
            torch.manual_seed(1)
            step(engine, [batch_of([0, 1])])
        norms[accumulated] = float(engine.get_global_grad_norm())
        engine.destroy()
    return norms


@case
def climate_on_one_rank() -> dict:
    """Rank 0 gets only records with climate, rank 1 only without."""
    rank = dist.get_rank()
    mine = [i for i in range(len(cases.DATA)) if bool(cases.DATA.records[i]["climate_present"]) == (rank == 0)]
    found = {}
    for name, steps, changes in (("", 20, {}), ("whole layers", 3, WHOLE_LAYERS)):
        engine = make_engine(
            "zero3_offload", {"fp16.initial_scale_power": 8, "gradient_accumulation_steps": 1, **changes}
        )
        losses, norms = [], []
        for i in range(steps):
            batch = batch_of([mine[i % len(mine)]])
            assert bool(batch.present["climate"]) == (rank == 0)
            losses += step(engine, [batch])
            norms.append(float(engine.get_global_grad_norm()))
        found[name] = {"losses": losses, "norms": norms, "skipped": engine.skipped_steps}
        engine.destroy()
    return found


@case
def activation_checkpointing() -> dict:
    """One forward and backward pass with the JSON block, and without it: loss, gradient norm, bytes kept."""
    seen = {}
    block = "activation_checkpointing"
    for name, changes in (
        ("without", {}),
        ("with", {}),
        ("partitioned", {f"{block}.partition_activations": True}),
        ("cpu", {f"{block}.cpu_checkpointing": True}),
    ):
        engine = make_engine(
            "zero3_offload",
            {"fp16.initial_scale_power": 8, "gradient_accumulation_steps": 1, **changes},
            without=(block,) if name == "without" else (),
        )
        batch = batch_of(range(4))
        torch.manual_seed(7)
        gc.collect()
        with LiveBytes() as bytes_now:
            out = engine(batch)
            gc.collect()
            kept = bytes_now.live
        engine.backward(out.loss)
        engine.step()
        seen[name] = {"loss": out.loss.item(), "kept_bytes": kept, "grad_norm": float(engine.get_global_grad_norm())}
        engine.destroy()
    return seen


@case
def shared_memory() -> dict:
    """What of this launch has a name in shared memory, where a killed run would leave it."""
    return {"left": [path.name for path in Path("/dev/shm").glob(f"deepspeed_*_{os.environ['MASTER_PORT']}_*")]}


@case
def nonfinite() -> dict:
    """A weight that is not a number, found in the forward pass and in the backward pass."""
    engine = make_engine("zero3_offload", {"gradient_accumulation_steps": 1, "fp16.initial_scale_power": 8})
    batches = [batch_of([0, 1])]
    clean = nonfinite_forward(engine, batches)
    watch = GradientWatch(engine.module)
    watch.arm()
    step(engine, batches)
    clean_gradient = watch.origin()
    parameter = engine.module.spectrum.queries.out[1].weight
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data[0, 0] = float("nan")
    forward = nonfinite_forward(engine, batches)
    step(engine, batches)
    return {"clean": clean, "clean_gradient": clean_gradient, "forward": forward, "backward": watch.origin()}


@case
def upstream() -> dict:
    """What the workarounds in launch/zero are there for, without them: what is True here is still broken."""
    found = {}
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=2000
    )
    ds_config = read_ds_config(
        DS_CONFIGS["zero3_offload_bf16"],
        {f"scheduler.params.cycle_{which}_step_size": 10 for which in ("first", "second")},
    )
    with deepspeed.zero.Init(config_dict_or_path=ds_config):
        embedding = AutoModelForCausalLM.from_config(config).get_input_embeddings().weight
    with deepspeed.zero.GatheredParameters([embedding]):
        found["language weights are not transformers' own under zero.Init"] = float(embedding.std()) > 0.5

    block = {"activation_checkpointing": {"cpu_checkpointing": True}, "train_micro_batch_size_per_gpu": 1}
    deepspeed.checkpointing.configure(None, deepspeed_config=block)
    x = torch.ones(8, 8, requires_grad=True)
    try:
        deepspeed.checkpointing.checkpoint(lambda y: (y * y).sum(), x * 1.0).backward()
        found["cpu_checkpointing breaks on the CPU"] = not torch.equal(x.grad, torch.full_like(x, 2.0))
    except RuntimeError:
        found["cpu_checkpointing breaks on the CPU"] = True
    deepspeed.checkpointing.reset()

    engine = make_engine("zero3_resident_nvme", {"fp16.initial_scale_power": 8})
    engine.optimizer.cur_scale = 32
    engine.save_checkpoint(str(cases.OUT / "upstream"), tag="saved", save_latest=False)
    engine.destroy()
    engine = make_engine("zero3_resident_nvme", {"fp16.initial_scale_power": 8})
    engine.load_checkpoint(str(cases.OUT / "upstream"), tag="saved")
    found["an optimizer on NVMe is not restored"] = engine.optimizer.cur_scale != 32
    engine.destroy()
    return found


@case
def same_weights_whatever_the_stage() -> dict:
    """The language model's spread of weights under ZeRO-3, where transformers' own initialisation would be lost."""
    found = {}
    for config in ("zero3_offload_bf16", "zero2_offload"):
        engine = make_engine(config)
        embedding = weights(engine)["language.model.model.embed_tokens.weight"]
        found[config] = float(embedding.std())
        engine.destroy()
    return found


@case
def upstream_nvme_prefetch() -> dict:
    """What `launch.zero.nvme.mend_prefetch` is there for: three steps of a model of 8 layers on NVMe, all but the last
    frozen, with activation checkpointing; without the mending and with it."""

    def three_steps() -> str:
        ds_config = {
            "train_micro_batch_size_per_gpu": 1,
            "activation_checkpointing": {},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
            "zero_optimization": {
                "stage": 3,
                "stage3_max_reuse_distance": 0,
                "offload_optimizer": {"device": "cpu"},
                "offload_param": {
                    "device": "nvme",
                    "nvme_path": str(cases.OUT / "prefetch"),
                    "buffer_count": 12,
                    "buffer_size": 1 << 22,
                },
            },
        }
        with deepspeed.zero.Init(config_dict_or_path=ds_config):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(
                    "llama",
                    hidden_size=1024,
                    intermediate_size=2816,
                    num_hidden_layers=8,
                    num_attention_heads=8,
                    vocab_size=2048,
                    use_cache=False,
                )
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layers.7." in name)
        deepspeed.checkpointing.configure(None, deepspeed_config=ds_config)
        model._set_gradient_checkpointing(True, checkpoint)
        model.enable_input_require_grads()
        engine, *_ = deepspeed.initialize(
            model=model, config=ds_config, model_parameters=[p for p in model.parameters() if p.requires_grad]
        )
        tokens = torch.arange(16)[None]
        try:
            for _ in range(3):
                engine.backward(engine(input_ids=tokens, labels=tokens).loss)
                engine.step()
        except AssertionError as error:
            return str(error)
        return "trained"

    mended = Swapper.swap_in
    Swapper.swap_in = mended.__wrapped__
    found = {"without": three_steps()}
    Swapper.swap_in = mended
    return found | {"with": three_steps()}


if __name__ == "__main__":
    cases.main()
