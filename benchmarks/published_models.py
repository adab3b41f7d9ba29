"""The models behind the published numbers of `benchmarks/published.py`, as their authors built them.

Each function is the workload of a `launch.planner.simulation.spec.Simulation`: it returns the engine and a function
that makes one loss.
"""

import contextlib

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """DeepSpeedExamples, training/bf16_master_weight/train.py: SimpleTransformerBlock."""

    def __init__(self, size: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.ff = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x):
        x = self.norm1(x + self.attention(x, x, x)[0])
        return self.norm2(x + self.ff(x))


class SimpleTransformer(nn.Module):
    """The same file: SimpleTransformerModel, with activation checkpointing."""

    def __init__(self, vocabulary: int, size: int, layers: int, heads: int, length: int):
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, size), nn.Embedding(length, size)
        self.layers = nn.ModuleList(Block(size, heads) for _ in range(layers))
        self.out = nn.Linear(size, vocabulary)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1], device=ids.device)[None].expand(len(ids), -1)
        x = self.embedding(ids) + self.position(positions)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return self.out(x)


def simple_transformer(simulation, mode):
    """R1: 6.86 B parameters, sequence 512."""
    vocabulary, length = simulation.workload["vocabulary"], simulation.seq_length
    model = SimpleTransformer(vocabulary, 4096, simulation.workload.get("layers", 32), 32, length)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=simulation.ds_config.raw)
    device = get_accelerator().current_device_name()
    loss_function = nn.CrossEntropyLoss()

    def loss_of(engine):
        ids = torch.zeros(simulation.micro_batch, length, dtype=torch.long).to(device)
        logits = engine(ids)
        return loss_function(logits.view(-1, vocabulary), ids.clone().view(-1)), simulation.micro_batch * length

    return engine, loss_of


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter beside it (Hu et al. 2021, LoRA)."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.linear, self.dropout = linear, nn.Dropout(0.05)
        self.down = nn.Linear(linear.in_features, rank, bias=False, dtype=linear.weight.dtype)
        self.up = nn.Linear(rank, linear.out_features, bias=False, dtype=linear.weight.dtype)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(self.dropout(x)))


def _add_adapters(model: nn.Module, rank: int, names: list[str]) -> None:
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in names:
                setattr(parent, name, Adapted(child, rank))


def language_model(simulation, mode):
    """A model of `transformers`: ``model_type`` and ``config``, with its own attention written out as it was before
    torch 2, and checkpointed layers if ``checkpointing``. It is built in float32 on the host, or in ``dtype``, or
    ``on_card``; sharded while it is built if ``zero_init``. ``lora``: (rank, names of modules) of adapters, which alone
    are trained. A sequence-to-sequence model reads and writes ``seq_length`` tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    wanted = simulation.workload
    config = AutoConfig.for_model(wanted["model_type"], **wanted["config"], use_cache=False)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    device = get_accelerator().current_device_name()
    with (
        torch.device(device) if wanted.get("on_card") else contextlib.nullcontext(),
        deepspeed.zero.Init(config_dict_or_path=simulation.ds_config.raw, enabled=wanted.get("zero_init", False)),
    ):
        model = kind.from_config(
            config,
            attn_implementation=wanted.get("attention", "eager"),
            dtype=getattr(torch, wanted.get("dtype", "float32")),
        )
    model.train()
    if "lora" in wanted:
        _add_adapters(model, *wanted["lora"])
    if config.is_encoder_decoder:
        config.decoder_start_token_id = model.config.decoder_start_token_id = 0
    if wanted.get("checkpointing"):
        model._set_gradient_checkpointing(True, deepspeed.checkpointing.checkpoint)
        model.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, config=simulation.ds_config.raw, model_parameters=trained)
    deepspeed.checkpointing.configure(None, deepspeed_config=simulation.ds_config.raw)

    def loss_of(engine):
        ids = torch.ones(simulation.micro_batch, simulation.seq_length, dtype=torch.long).to(device)
        return engine(input_ids=ids, labels=ids).loss, ids.numel()

    return engine, loss_of
