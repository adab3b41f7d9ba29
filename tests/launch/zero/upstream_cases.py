"""Cases of ranks.py that show what is still broken in DeepSpeed without the workarounds."""

import cases
import deepspeed
import torch
from cases import case, make_engine
from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper as Swapper
from project import DS_CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM

from launch.ds_config.read import read_ds_config
from launch.zero.activation import checkpoint


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
