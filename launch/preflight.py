"""Everything that is checked and decided before the ranks meet: a mistake ends here, with its name and its cure."""

import contextlib
import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import datasets
import deepspeed
import psutil
import torch
import transformers
import yaml
from filelock import FileLock

from astrobio.config import ConfigError, StackConfig, load_preset
from astrobio.dataset import dataset_problems, load_tokenizer
from astrobio.files import write_whole
from astrobio.language import language_config
from astrobio.pretrained import Pretrained
from astrobio.stack import AstrobioStack
from launch import ROOT
from launch.checkpoints.compatibility import changes, dataset_hash, refusals
from launch.checkpoints.folder import LATEST, checkpoints, damage_of, is_checkpoint, pointer_problem
from launch.checkpoints.manifest import MANIFEST, Manifest, check_sizes
from launch.claim import claim, own_folder, remove_dead
from launch.ds_config.auto import resolve
from launch.ds_config.check import check
from launch.ds_config.config import batch_sizes, precision
from launch.ds_config.facts import facts_of, network_of
from launch.ds_config.finding import raise_problems
from launch.ds_config.read import read_ds_config
from launch.options import Options
from launch.planner.auto import choose_model
from launch.run_plan import RunPlan
from launch.zero import ops

DEFAULT_DATA = ROOT / "data" / "sample"
RUNS = ROOT / "runs"


def preflight(options: Options) -> RunPlan:
    """Check the options against the machine and each other, and resolve them.

    Raises:
        ConfigError: with every problem found at the first stage that has any.
    """
    world_size, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    train = options.train_config()
    raw = read_ds_config(options.ds_config, options.changes["ds_config"])
    named = f"--ds_config {options.ds_config}"
    name, reason = options.model, "as asked for"
    if options.model == "auto":
        raise_problems(check(raw, world_size=world_size), named)  # the choice needs a config that is sound by itself
        name, reason = choose_model(raw, world_size, Path(os.environ.get("ASTROBIO_NVME", RUNS)))
    stack = load_preset(name, options.changes["model"])
    network = network_of(stack, name)
    _check_pretrained(network)
    facts = facts_of(network)
    resume, run, resume_notes = _run_and_resume(options, stack.name)
    swap = Path(os.environ.get("ASTROBIO_NVME") or run)
    findings = check(raw, world_size=world_size, facts=facts, nvme_folder=swap)
    raise_problems(findings, named)
    check_attention(network.language.attention, precision(raw), options.ds_config)
    saved = check_sizes(resume[0]) if resume else None

    data = options.data or DEFAULT_DATA
    if options.data is None:
        ensure_sample(data)
    problems = dataset_problems(data, hash_files=local_rank == 0)
    if problems:
        raise ConfigError("\n".join(f"--data {problem}" for problem in problems))
    tokenizer = _tokenizer(data, stack)
    records = len(datasets.load_from_disk(str(data / "train")))

    micro, accumulation = batch_sizes(raw, world_size)
    if saved is not None:
        accumulation = _keep_global_batch(resume[0], saved, micro, world_size)
        raw["gradient_accumulation_steps"] = accumulation
        raw.pop("train_batch_size", None)
    steps_per_epoch = records / (micro * accumulation * world_size)
    ds_config = resolve(
        raw,
        world_size=world_size,
        nvme_folder=swap,
        largest_parameter=facts.largest,
        hidden_size=facts.hidden_size,
        total_steps=math.ceil(train.epochs * steps_per_epoch),
        run=run,
    )
    if saved is not None:
        problems = refusals(saved, network, stack.name, data)
        if problems:
            raise ConfigError("\n".join(f"--resume {resume[0]}: {problem}" for problem in problems))
        resume_notes += changes(saved, network, ds_config, world_size)
    ops.build(ops.needed(ds_config))
    _check_port()
    claim(run, f"--run {run}")
    parents = {key: Path(path) for key, path in ds_config.nvme_paths.items()}
    for parent in set(parents.values()):
        remove_dead(parent)
    for key, parent in parents.items():
        claim(own_folder(parent, run), f"{key} = {parent}", emptied=True)
    return RunPlan(
        stack=stack,
        ds_config=ds_config.changed({key: str(own_folder(parent, run)) for key, parent in parents.items()}),
        train=train,
        parameters=facts.parameters,
        trainable=facts.trainable,
        attention=network.language.attention,
        data=data,
        tokenizer=tokenizer,
        run=run,
        resume=resume,
        resume_notes=resume_notes,
        max_steps=options.max_steps,
        micro_batch=micro,
        accumulation=accumulation,
        world_size=world_size,
        steps_per_epoch=steps_per_epoch,
        model_reason=f"{name} ({facts.parameters / 1e6:,.1f} M parameters): {reason}",
        remarks=[str(finding) for finding in findings if not finding.problem],
    )


def check_attention(attention: str, precision: str, ds_config: Path) -> None:
    """Refuse the package flash_attn where it cannot compute: its kernels are for 16 bits."""
    if precision == "fp32" and attention.startswith("flash"):
        raise ConfigError(
            f"model.language.attn_implementation = {attention}: computes in fp16 and bf16 only, and "
            f"--ds_config {ds_config} has neither enabled: take sdpa, or enable bf16"
        )


@contextlib.contextmanager
def user_errors():
    """Turn `ConfigError` into its message on stderr (once a machine) and exit status 2."""
    try:
        yield
    except ConfigError as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(f"error: {error}".replace("\n", "\nerror: "), file=sys.stderr, flush=True)
        else:
            time.sleep(5)  # the launcher kills all ranks when the first one ends: let rank 0 speak before
        raise SystemExit(2) from None


def ensure_sample(folder: Path) -> None:
    """Build the sample dataset where it is not there yet; one rank builds, the others wait at the lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "manifest.json").is_file():
            return
        print(f"building the sample dataset in {folder} (once, some minutes)", flush=True)
        built = subprocess.run([sys.executable, "-m", "data_build", "build", "sample", "--out", str(folder)], cwd=ROOT)
        if built.returncode:
            raise ConfigError(
                f"the sample dataset could not be built in {folder}: see above; to try it alone: "
                f"`astrobio data build sample --out {folder}`"
            )


def _check_port() -> None:
    """Rank 0 listens at ``MASTER_PORT``, where two runs on one machine would meet."""
    port = os.environ.get("MASTER_PORT")
    if port is None or os.environ.get("RANK") != "0":
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise ConfigError(
                f"port {port} of this machine cannot be used ({error.strerror}): another run? Give "
                f"another one, before the script: deepspeed --master_port {int(port) + 1} …"
            ) from None


def _check_pretrained(network: AstrobioStack) -> None:
    """Compare the checkpoints that parts start from with the network, by their files' headers alone."""
    problems = []
    for part, names in network.pretrained().items():
        checkpoint = Pretrained(getattr(network.config, part).init_from, part)
        if part == "language":
            problems += checkpoint.problems(network.language.model, names)
        else:
            problems += checkpoint.part_problems(part, names)
    if problems:
        raise ConfigError("\n".join(problems))


def _tokenizer(data: Path, stack: StackConfig) -> Path:
    """The folder of the tokenizer that goes with the language model: a checkpoint brings its own."""
    start = stack.language.init_from
    folder = Path(start) if start and Pretrained(start).has_tokenizer else data / "tokenizer"
    tokens = len(load_tokenizer(folder))
    vocabulary = language_config(stack.language).vocab_size
    if tokens > vocabulary:
        raise ConfigError(
            f"{folder}: the tokenizer has {tokens} tokens, but language.config.vocab_size of model "
            f"{stack.name!r} is {vocabulary}: raise it with --set model.language.config.vocab_size="
            f"{tokens}, or take the dataset the model belongs to"
        )
    return folder


def _run_and_resume(options: Options, model: str) -> tuple[list[Path], Path, list[str]]:
    """The checkpoints to resume from, the newest first, the run's folder, and what is to be said of them."""
    fresh = options.run or RUNS / f"{_launch_time():%Y%m%d-%H%M%S}-{model}-{options.ds_config.stem}"
    if options.resume is None:
        if options.run and checkpoints(options.run):
            raise ConfigError(
                f"--run {options.run}: holds checkpoints of an earlier run: continue it with --resume "
                "auto, or give another folder"
            )
        return [], fresh, []
    if options.resume == "auto":
        for run in [options.run] if options.run else sorted(RUNS.glob("*"), reverse=True):
            if checkpoints(run):
                found, notes = _valid_of(run)
                return found, run, notes
        return [], fresh, []
    given = Path(options.resume)
    if is_checkpoint(given) or given.name.startswith("step_"):
        damage = damage_of(given)
        if damage is not None:
            raise ConfigError(f"--resume {damage}".replace("\n", "\n--resume "))
        return [given], options.run or given.parent.parent, []
    if not checkpoints(given):
        raise ConfigError(
            f"--resume {given}: neither a checkpoint nor a run's folder with one; a checkpoint is a "
            f"folder like RUN/checkpoints/step_00000500 with {MANIFEST}"
        )
    found, notes = _valid_of(given)
    return found, options.run or given, notes


def _valid_of(run: Path) -> tuple[list[Path], list[str]]:
    """The run's valid checkpoints, the newest first, and what is wrong with newer ones.

    Raises:
        ConfigError: all are broken.
    """
    found, broken = [], []
    for path in reversed(checkpoints(run)):
        damage = damage_of(path)
        if damage is None:
            found.append(path)
        elif not found:
            broken += [f"{path}: {problem}" for problem in damage.problems]
    if not found:
        raise ConfigError(
            "\n".join(
                [
                    *(f"--resume {problem}" for problem in broken),
                    f"--resume: no checkpoint of {run} is valid: begin anew with another --run",
                ]
            )
        )
    pointer = pointer_problem(run, LATEST)
    notes = [f"{problem}; {found[0].name} is taken" for problem in ([pointer] if pointer else []) + broken]
    return found, notes


def _launch_time() -> datetime:
    """When the launcher started: the same for all ranks of a machine, unlike the clock. Ranks of several machines must
    be given --run."""
    return datetime.fromtimestamp(
        psutil.Process(os.getppid()).create_time() if "LOCAL_RANK" in os.environ else time.time()
    )


def _keep_global_batch(resume: Path, saved: Manifest, micro: int, world_size: int) -> int:
    """Accumulation steps that keep the checkpoint's global batch under this number of ranks."""
    batch = saved.about["global_batch"]
    if batch % (micro * world_size):
        raise ConfigError(
            f"--resume {resume}: its global batch of {batch} samples cannot be made of {world_size} "
            f"ranks × train_micro_batch_size_per_gpu {micro}: choose a number of ranks and a micro-batch "
            f"whose product divides {batch}"
        )
    return batch // (micro * world_size)


def write_config(plan: RunPlan) -> None:
    """``config.yaml`` of the run's folder: all that was resolved, and what it ran with."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    content = {
        "model": dataclasses.asdict(plan.stack),
        "ds_config": plan.ds_config.raw,
        "train": dataclasses.asdict(plan.train),
        "data": {"folder": str(plan.data), "content_sha256": dataset_hash(plan.data)},
        "world_size": plan.world_size,
        "global_batch": plan.global_batch,
        "model_choice": plan.model_reason,
        "versions": {
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
            "transformers": transformers.__version__,
            "python": sys.version.split()[0],
        },
        "git": commit.stdout.strip() or None,
    }
    text = yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False)
    write_whole(plan.run / "config.yaml", text)
