"""Cases of ranks.py about language models and weights to start from."""

import gc

import cases
import deepspeed
import deepspeed.comm as dist
import psutil
import torch
from cases import batch_of, case, make_engine, step, weights
from project import DS_CONFIGS
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from astrobio.config import load_preset
from astrobio.stack import AstrobioStack
from launch.ds_config.auto import resolve
from launch.ds_config.read import read_ds_config
from launch.memory import forget_peak, peak_resident_bytes
from launch.zero.engine import build_stack


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
        found[f"{name} rose by"] = peak_resident_bytes() - before
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
def same_weights_whatever_the_stage() -> dict:
    """The language model's spread of weights under ZeRO-3, where transformers' own initialisation would be lost."""
    found = {}
    for config in ("zero3_offload_bf16", "zero2_offload"):
        engine = make_engine(config)
        embedding = weights(engine)["language.model.model.embed_tokens.weight"]
        found[config] = float(embedding.std())
        engine.destroy()
    return found
