"""What ranks save and load, many cases in one launch; test_checkpoint_ranks.py judges it."""

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import cases
import deepspeed
import deepspeed.comm as dist
import torch
from cases import batch_of, make_engine, step
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from project import DS_CONFIGS
from torch import nn

from astrobio.config import load_preset
from launch.checkpoints.folder import valid_checkpoints
from launch.checkpoints.keeper import Checkpoints
from launch.checkpoints.manifest import Manifest, verify
from launch.checkpoints.save import SaveFailed
from launch.checkpoints.universal import convert
from launch.ds_config.auto import resolve
from launch.ds_config.config import DsConfig
from launch.ds_config.read import read_ds_config
from launch.zero.optimizer import own_optimizer
from launch.zero.state import EngineState

#: What all engines here have in common: one micro-step a step, a loss scale that does not overflow at once.
COMMON = {"gradient_accumulation_steps": 1, "fp16.initial_scale_power": 8}


class Small(nn.Module):
    """Three matrices, of which each half is large enough to be swapped to NVMe, one of them frozen, biases that are
    not, and the running mean of what it saw, as BatchNorm keeps it."""

    modalities = ()

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1024, 1024), nn.Linear(1024, 1024)
        self.fixed = nn.Linear(1024, 1024, bias=False).requires_grad_(False)

    def with_buffers(self):
        """Not under zero.Init, which makes every tensor half as precise."""
        self.register_buffer("mean", torch.zeros(1024))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        return self

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().float().mean(0), 0.1)
            self.seen += len(x)
        return (self.second(torch.relu(self.first(x - self.mean.to(x.dtype)))) - self.fixed(x)).float().square().mean()


def small_engine(config: str, changes: dict, lr: float = 1e-2):
    """`Small` with a param group for its matrices and another for its biases; no scheduler, which would give both the
    same learning rate."""
    raw = read_ds_config(DS_CONFIGS[config], changes)
    raw.pop("scheduler")
    ds_config = resolve(
        raw,
        world_size=dist.get_world_size(),
        nvme_folder=cases.OUT / "nvme",
        total_steps=100,
        largest_parameter=1 << 20,
    )
    torch.manual_seed(int(1e4 * lr))
    init = deepspeed.zero.Init(config_dict_or_path=ds_config.raw) if ds_config.stage == 3 else contextlib.nullcontext()
    with init:
        model = Small()
    model.with_buffers()
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if "weight" in name and p.requires_grad],
            "lr": lr,
            "weight_decay": 10 * lr,
        },
        {"params": [p for name, p in model.named_parameters() if "bias" in name], "lr": 3 * lr, "weight_decay": 0.0},
    ]
    with own_optimizer(ds_config):
        return deepspeed.initialize(model=model, config=ds_config.raw, model_parameters=groups)[0]


def small_steps(engine, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        torch.manual_seed(1000 * engine.global_steps + dist.get_rank())
        loss = engine(torch.randn(4, 1024).to(next(iter(engine.module.parameters())).dtype))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def stack_steps(engine, steps: int) -> list[float]:
    ranks_now = dist.get_world_size()
    losses = []
    for _ in range(steps):
        first = 4 * engine.global_steps + 4 // ranks_now * dist.get_rank()
        losses += step(engine, [batch_of(range(first, first + 4 // ranks_now))])
    return losses


class Variant:
    """A model to be saved and loaded: how to make it under a ds_config, and how to train it."""

    def __init__(self, name: str):
        self.name = name
        self.steps = small_steps if name == "groups" else stack_steps

    def engine(self, config: str, again: bool = False, **changes):
        """``again``: with other first weights, and other settings than those that are to be restored."""
        changes = {**COMMON, **changes}
        if config == "zero3_nvme":
            changes["zero_optimization.offload_param.max_in_cpu"] = 0  # else these small models never leave the memory
        if self.name == "groups":
            return small_engine(config, changes, lr=5e-2 if again else 1e-2)
        stack = load_preset("tiny", {"freeze": ["language"]} if self.name == "frozen" else {})
        return make_engine(config, changes, stack=stack, seed=7 if again else 0)


def groups_in_memory(engine) -> Iterator[dict[str, nn.Parameter]]:
    """The trained parameters by name, sub-group by sub-group. DeepSpeed's functions would read a whole sub-group from
    NVMe for every tensor; here each is read once."""
    state, parameters = EngineState(engine), dict(engine.module.named_parameters())
    state.link_fragments()
    if not state.sharded:
        yield {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        return
    in_memory = mock.patch.object(engine.optimizer, "_swappable_optimizer_subgroup", return_value=False)
    for group in state.groups:
        with state.opened(group), in_memory:
            yield {part.name: parameters[part.name] for part in group.parts}


def contents(engine) -> dict[str, torch.Tensor]:
    """All that is learned, through DeepSpeed's own functions, on every rank."""
    found = {}
    for trained in groups_in_memory(engine):
        for name, parameter in trained.items():
            found[f"fp32/{name}"] = safe_get_full_fp32_param(parameter).cpu().clone()
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"{key}/{name}"] = safe_get_full_optimizer_state(parameter, key).cpu().clone()
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):  # from NVMe, if it is there
            found[f"model/{name}"] = parameter.detach().cpu().clone()
    return found | {
        f"buffer/{name}": buffer.cpu().clone()
        for name, buffer in engine.module.named_buffers()
        if buffer.dtype != torch.bool
    }


def differences(before: dict, after: dict) -> list[str]:
    """What is not the same; the model's own weights up to the precision they have now."""
    wrong = [*(before.keys() ^ after.keys())]
    for key in before.keys() & after.keys():
        was, now = before[key], after[key]
        if key.startswith("model/") and was.dtype != now.dtype:
            was = before[f"fp32/{key[6:]}"] if f"fp32/{key[6:]}" in before else was
            was = was.to(now.dtype)
        if was.shape != now.shape or not torch.equal(was, now):
            wrong.append(key)
    return sorted(wrong)


def settings(engine) -> dict:
    """What is neither weight nor moment, in JSON."""
    optimizer = engine.optimizer
    states = optimizer.optimizer.state.values()
    return {
        "steps": engine.global_steps,
        "samples": engine.global_samples,
        "skipped": engine.skipped_steps,
        "adam_steps": sorted({float(state["step"]) for state in states if "step" in state}),
        "scale": float(optimizer.cur_scale),
        "scheduler": None if engine.lr_scheduler is None else engine.lr_scheduler.state_dict(),
        "groups": [
            {key: group[key] for key in ("lr", "weight_decay", "eps", "betas")}
            for group in optimizer.optimizer.param_groups
        ],
    }


def about(engine) -> dict:
    return {"model": "tiny", "global_batch": 4, "elapsed_s": 60.0 * engine.global_steps}


def save_one(variant: Variant, config: str, run: Path) -> dict:
    """Train three steps, save, and train two more; the numbers beside it for later."""
    engine = variant.engine(config)
    variant.steps(engine, 3)
    if engine.optimizer.cur_scale > 1:
        engine.optimizer.cur_scale = 64.0  # not what it begins with
    path = Checkpoints(engine, run, DsConfig.parse(engine.config)).save(about(engine))
    seen = {"settings": settings(engine), "random": torch.get_rng_state().tolist()[:64]}
    saved = contents(engine)
    losses = torch.tensor(variant.steps(engine, 2))
    dist.all_reduce(losses)
    seen["losses"] = (losses / dist.get_world_size()).tolist()
    torch.save(saved, run / f"contents_{dist.get_rank()}.pt")  # each rank has buffers of its own
    if dist.get_rank() == 0:
        (run / "seen.json").write_text(json.dumps(seen))
    engine.destroy()
    return {"path": str(path), "fp16": DsConfig.parse(engine.config).precision == "fp16"}


def load_one(variant: Variant, engine, run: Path, steps: int = 2) -> dict:
    """Load what `save_one` saved; what is otherwise than it was there, and the losses of the next steps."""
    [path] = valid_checkpoints(run)
    Checkpoints(engine, run, DsConfig.parse(engine.config)).resume([path])
    before, now = json.loads((run / "seen.json").read_text()), settings(engine)
    both_fp16 = DsConfig.parse(engine.config).precision == Manifest.read(path).ds_config.precision == "fp16"
    own = run / f"contents_{dist.get_rank()}.pt"
    wrong = differences(torch.load(own if own.exists() else run / "contents_0.pt"), contents(engine))
    wrong += [
        key
        for key in before["settings"]
        if json.loads(json.dumps(now[key])) != before["settings"][key] and (key != "scale" or both_fp16)
    ]
    if dist.get_rank() == 0 and torch.get_rng_state().tolist()[:64] != before["random"]:
        wrong.append("random numbers")
    losses = torch.tensor(variant.steps(engine, steps))
    dist.all_reduce(losses)
    return {"wrong": wrong, "losses": (losses / dist.get_world_size()).tolist(), "before": before["losses"]}


def matrix(name: str) -> dict:
    """Every ds_config's checkpoint into every other's engine."""
    variant, found = Variant(name), {}
    for source in DS_CONFIGS:
        save_one(variant, source, cases.OUT / name / source)
    for target in DS_CONFIGS:
        engine = variant.engine(target, again=True)
        variant.steps(engine, 1)
        for source in DS_CONFIGS:
            found[f"{source} → {target}"] = load_one(variant, engine, cases.OUT / name / source)
        engine.destroy()
    return found


#: One ds_config of each kind, for what takes a launch for each number of ranks.
KINDS = ("zero3_nvme", "zero2_offload", "zero3_offload_bf16", "zero3_resident_nvme_8bit")


def numbers_of_ranks(name: str) -> dict:
    """Load what launches with other numbers of ranks saved, then save for those to come."""
    variant, found, here = Variant(name), {}, dist.get_world_size()
    runs = cases.OUT / f"{name}_ranks"
    for config in KINDS:
        engine = None
        for run in sorted(runs.glob("*")) if runs.is_dir() else []:
            if valid_checkpoints(run):
                engine = engine or variant.engine(config, again=True)
                found[f"{run.name} → {here} {config}"] = load_one(variant, engine, run, steps=0)
        if engine:
            engine.destroy()
    dist.barrier()
    for config in KINDS:
        run = runs / f"{here} {config}"
        if not run.is_dir():
            save_one(variant, config, run)
    return found


for _name in ("tiny", "frozen", "groups"):
    cases.CASES[f"matrix:{_name}"] = lambda name=_name: matrix(name)
    cases.CASES[f"ranks:{_name}"] = lambda name=_name: numbers_of_ranks(name)


@cases.case
def small_disk() -> dict:
    """Into a folder whose disk is too small, and onto one that fills up while files are written."""
    engine = Variant("groups").engine("zero3_offload")
    small_steps(engine, 1)
    run = cases.OUT / "disk/run"
    checkpoints = Checkpoints(engine, run, DsConfig.parse(engine.config))
    first = checkpoints.save(about(engine))
    found = {}
    small_steps(engine, 1)
    filler = run / "filler"
    if dist.get_rank() == 0:
        filler.write_bytes(bytes(60_000_000))
    dist.barrier()
    for name in ("refused beforehand", "in the middle"):
        if name == "in the middle":  # as if another process had filled it after the check
            shutil.disk_usage = lambda folder: SimpleNamespace(free=1 << 40)
        try:
            checkpoints.save(about(engine))
            found[name] = "saved"
        except SaveFailed as failed:
            found[name] = str(failed)
        found[f"{name}, left"] = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
        found[f"{name}, valid"] = valid_checkpoints(run) == [first]
        small_steps(engine, 1)
    dist.barrier()
    if dist.get_rank() == 0:
        filler.unlink()
    dist.barrier()
    found["after room was made"] = "saved" if checkpoints.save(about(engine)).is_dir() else "not saved"
    return found


EXPORTS = {"tiny": {}, "adapters": {"language.lora": {"rank": 4}}}


@cases.case
def trained_for_export() -> dict:
    """Stacks trained in fp32 with all of their state on NVMe, saved, and what they make of a batch."""
    for name, changes in EXPORTS.items():
        engine = make_engine(
            "zero3_nvme",
            {
                **COMMON,
                "fp16": {"enabled": False},
                "scheduler.params.cycle_min_lr": 1e-2,
                "scheduler.params.cycle_max_lr": 2e-2,
            },
            stack=load_preset("tiny", changes),
        )
        stack_steps(engine, 3)
        Checkpoints(engine, cases.OUT / name, DsConfig.parse(engine.config)).save(
            {**about(engine), "stack": dataclasses.asdict(engine.module.config)}
        )
        engine.eval()
        batch = batch_of(range(4))
        with torch.no_grad():
            out = engine(batch)
            text = engine.module.language(None, batch.tokens)[1]
        if dist.get_rank() == 0:
            torch.save({"logits": out.logits, "text": text}, cases.OUT / name / "logits.pt")
        engine.destroy()
    return {}


@cases.case
def frozen_twice() -> dict:
    """Two checkpoints of a partly frozen model: how many names the frozen parameters' file has, and what loads."""
    variant, run = Variant("frozen"), cases.OUT / "frozen_twice"
    engine = variant.engine("zero3_nvme")
    checkpoints = Checkpoints(engine, run, DsConfig.parse(engine.config))
    found = {}
    for _ in range(2):
        variant.steps(engine, 1)
        path = checkpoints.save(about(engine))
    found["names"] = [(path / f"frozen_0000{rank}.safetensors").stat().st_nlink for rank in range(2)]
    found["verified"] = verify(path).step
    found["resumed"] = checkpoints.resume([path])[1].step
    variant.steps(engine, 1)
    found["after a resume"] = (checkpoints.save(about(engine)) / "frozen_00000.safetensors").stat().st_nlink
    engine.destroy()
    return found


@cases.case
def universal() -> dict:
    """What bare DeepSpeed makes of a checkpoint that was converted to its universal format."""
    engine = Variant("groups").engine("zero3_nvme")
    small_steps(engine, 3)
    path = Checkpoints(engine, cases.OUT / "universal", DsConfig.parse(engine.config)).save(about(engine))
    before, out = contents(engine), cases.OUT / "converted"
    engine.destroy()
    if dist.get_rank() == 0:
        convert(path, out)
    dist.barrier()
    found = {}
    for config in ("zero3_offload", "zero2_offload"):
        bare = Variant("groups").engine(config, again=True, **{"checkpoint": {"load_universal": True}})
        bare.load_checkpoint(str(out), tag="universal")
        found[config] = [key for key in differences(before, contents(bare)) if not key.startswith("buffer/")]
        found[f"{config}, steps"] = bare.global_steps
        bare.destroy()
    return found


@cases.case
def save_until_killed() -> dict:
    """Resume the newest valid checkpoint, if there is one, and save after every step, until the test kills it."""
    engine = Variant("groups").engine("zero3_offload")
    run = cases.OUT / "killed"
    saved = valid_checkpoints(run)
    checkpoints = Checkpoints(engine, run, DsConfig.parse(engine.config))
    if saved:
        checkpoints.resume(saved[::-1])
    if dist.get_rank() == 0:  # in one piece: unbuffered, print writes word for word, and ranks share the pipe
        sys.stdout.write(f"resumed {engine.global_steps}\n")
    while True:
        small_steps(engine, 1)
        checkpoints.save(about(engine), best=engine.global_steps % 3 == 0)


if __name__ == "__main__":
    cases.main()
