"""Mistakes planted one by one in a shipped ds_config, and what the check must name of each."""

import json

from project import DS_CONFIGS

from astrobio.config import set_dotted
from launch.ds_config.facts import ModelFacts

Z = "zero_optimization"
#: A model of one repeated layer of seven matrices, most of it frozen.
MODEL = ModelFacts(parameters=10**9, trainable=10**7, largest=2 * 10**8, hidden_size=4096, layers=((10**6,) * 7,))
NVME = {
    f"{Z}.offload_param": {"device": "nvme", "nvme_path": "/swap", "buffer_count": 10, "buffer_size": "auto"},
    f"{Z}.offload_optimizer": {"device": "nvme", "nvme_path": "/swap"},
    f"{Z}.stage3_max_reuse_distance": 0,
}

#: (what is changed in zero3_offload.json, the key that must be named, words of the message)
MISTAKES = [
    # names
    ({"gradient_cliping": 1.0}, "gradient_cliping", "did you mean 'gradient_clipping'"),
    ({"offload_optimizer": {"device": "cpu"}}, "offload_optimizer", "it belongs in zero_optimization"),
    ({"load_universal_checkpoint": True}, "load_universal_checkpoint", "checkpoint.load_universal"),
    ({"sparse_gradients": True}, "sparse_gradients", "removed from DeepSpeed"),
    ({"elasticity": {"enabled": True}}, "elasticity", "removed from DeepSpeed"),
    ({f"{Z}.mics_shard_size": 8}, f"{Z}.mics_shard_size", "removed from DeepSpeed"),
    (
        {f"{Z}.stage3_param_persitence_threshold": 1},
        f"{Z}.stage3_param_persitence_threshold",
        "did you mean 'stage3_param_persistence_threshold'",
    ),
    ({f"{Z}.offload_param.pin_mem": True}, f"{Z}.offload_param.pin_mem", "did you mean 'pin_memory'"),
    ({f"{Z}.leaf_module.class": ["A"]}, f"{Z}.leaf_module.class", "did you mean 'classes'"),
    ({f"{Z}.zenflow.topk": 0.1}, f"{Z}.zenflow.topk", "topk_ratio"),
    ({"fp16.inital_scale_power": 8}, "fp16.inital_scale_power", "did you mean 'initial_scale_power'"),
    ({"bf16.check_overflow": True}, "bf16.check_overflow", "check_grad_overflow"),
    ({"aio.thread_count": 2}, "aio.thread_count", "intra_op_parallelism"),
    (
        {"activation_checkpointing.partitioned_activations": True},
        "activation_checkpointing.partitioned_activations",
        "partition_activations",
    ),
    ({"checkpoint.tag_validaton": "Fail"}, "checkpoint.tag_validaton", "did you mean 'tag_validation'"),
    ({"checkpoint.writer.io_buffer": 1}, "checkpoint.writer.io_buffer", "io_buffer_size"),
    ({"data_types.grad_dtype": "fp32"}, "data_types.grad_dtype", "did you mean 'grad_accum_dtype'"),
    ({"tensorboard.output": "x"}, "tensorboard.output", "did you mean 'output_path'"),
    ({"flops_profiler.step": 1}, "flops_profiler.step", "profile_step"),
    ({"compile.deep_compile": True}, "compile.deep_compile", "did you mean 'deepcompile'"),
    ({"autotuning.tuner": "random"}, "autotuning.tuner", "did you mean 'tuner_type'"),
    (
        {"data_efficiency.data_sampling.curriculum_learning.metrics": {}},
        "data_efficiency.data_sampling.curriculum_learning.metrics",
        "curriculum_metrics",
    ),
    (
        {"data_efficiency.data_routing.random_ltd.layers": 1},
        "data_efficiency.data_routing.random_ltd.layers",
        "random_ltd_layer_num",
    ),
    ({"hybrid_engine.max_tokens": 9}, "hybrid_engine.max_tokens", "max_out_tokens"),
    ({"timers.throughput.enable": True}, "timers.throughput.enable", "did you mean 'enabled'"),
    ({"comms_logger.prof": True}, "comms_logger.prof", "did you mean 'prof_ops'"),
    ({"torch_autocast.type": "bf16"}, "torch_autocast.type", "did you mean 'dtype'"),
    ({"optimizer.params.learning_rate": 1}, "optimizer.params.learning_rate", "no such parameter"),
    ({"optimizer.params.max_grad_norm": 1.0}, "optimizer.params.max_grad_norm", "gradient_clipping: 1.0"),
    ({"scheduler.params.cycle_maxlr": 1}, "scheduler.params.cycle_maxlr", "did you mean 'cycle_max_lr'"),
    # types
    ({"train_batch_size": "64"}, "train_batch_size", "is text: write 64 without quotes"),
    ({f"{Z}.reduce_bucket_size": "1e8"}, f"{Z}.reduce_bucket_size", "write 100000000 without quotes"),
    ({f"{Z}.stage": True}, f"{Z}.stage", "must be a number, is true or false"),
    ({f"{Z}.overlap_comm": "true"}, f"{Z}.overlap_comm", "must be true or false, is text"),
    ({Z: True}, Z, 'must be an object, is true or false: write {"stage": 1}'),
    ({"gradient_accumulation_steps": 32.0}, "gradient_accumulation_steps", "write 32"),
    ({f"{Z}.sub_group_size": 0.5}, f"{Z}.sub_group_size", "must be a whole number, is a fraction"),
    ({"optimizer.params.lr": "1e-4"}, "optimizer.params.lr", "must be a number"),
    ({"scheduler.params.cycle_min_lr": "0"}, "scheduler.params.cycle_min_lr", "must be a number"),
    # ranges and choices
    ({f"{Z}.stage": 4}, f"{Z}.stage", "input should be 0, 1, 2 or 3"),
    ({f"{Z}.reduce_bucket_size": 0}, f"{Z}.reduce_bucket_size", "more than 0"),
    ({f"{Z}.offload_param.device": "gpu"}, f"{Z}.offload_param.device", "'none', 'cpu' or 'nvme'"),
    ({f"{Z}.offload_optimizer.ratio": 1.5}, f"{Z}.offload_optimizer.ratio", "at most 1"),
    ({f"{Z}.legacy_stage1": True}, f"{Z}.legacy_stage1", "refuses"),
    ({"gradient_clipping": -1}, "gradient_clipping", "at least 0"),
    ({"communication_data_type": "fp8"}, "communication_data_type", "'fp16', 'bf16' or 'fp32'"),
    ({"data_types.grad_accum_dtype": "fp64"}, "data_types.grad_accum_dtype", "'fp16'"),
    ({"checkpoint.tag_validation": "maybe"}, "checkpoint.tag_validation", "'Ignore'"),
    ({"aio.queue_depth": 0}, "aio.queue_depth", "more than 0"),
    ({"fp16.loss_scale": -1}, "fp16.loss_scale", "must be >= 0"),
    ({"fp16.loss_scale_window": 0}, "fp16.loss_scale_window", "must be > 0"),
    ({"fp16.initial_scale_power": 200}, "fp16.initial_scale_power", "fp32 ends at 2^127"),
    ({"fp16.initial_scale_power": 2, "fp16.min_loss_scale": 128}, "fp16.min_loss_scale", "above the first loss scale"),
    ({"fp16.hysteresis": 0}, "fp16.hysteresis", "at least 1"),
    ({"optimizer.params.betas": [0.9, 1.0]}, "optimizer.params.betas", "from 0 to below 1"),
    ({"optimizer.type": "AdamWW"}, "optimizer.type", "did you mean 'AdamW'"),
    ({"optimizer.type": "OneBitAdam"}, "optimizer.type", "removed from DeepSpeed"),
    ({"optimizer.type": "SGD", "optimizer.params": {"lr": 0.1}}, "optimizer.type", "zero_allow_untested_optimizer"),
    ({"scheduler.type": "CosineAnnealing"}, "scheduler.type", "no such scheduler"),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}},
        "scheduler.params.warmup_num_steps",
        "at least 1",
    ),
    ({"scheduler": {"type": "WarmupDecayLR", "params": {}}}, "scheduler.params.total_num_steps", "needs it"),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "cubic"}}},
        "scheduler.params.warmup_type",
        "log and linear",
    ),
    ({"scheduler.params.cycle_min_lr": 1.0}, "scheduler.params.cycle_min_lr", "is more than cycle_max_lr"),
    # what does not go together
    ({"bf16.enabled": True}, "fp16.enabled and bf16.enabled", "one of them"),
    ({"train_batch_size": 10}, "train_batch_size", "1 × gradient_accumulation_steps 32 × 2 ranks = 64"),
    ({"train_micro_batch_size_per_gpu": None}, "train_batch_size", "must give"),
    ({f"{Z}.stage": 2}, f"{Z}.offload_param.device", "set stage to 3"),
    (
        {f"{Z}.stage": 1, f"{Z}.offload_optimizer": NVME[f"{Z}.offload_optimizer"]},
        f"{Z}.offload_optimizer.device",
        "in host memory without a word",
    ),
    ({f"{Z}.offload_param.device": "nvme"}, f"{Z}.offload_param.nvme_path", "missing"),
    ({f"{Z}.offload_optimizer": {"pin_memory": True}}, f"{Z}.offload_optimizer.device", "nothing is offloaded"),
    ({**NVME, f"{Z}.offload_optimizer.buffer_count": 2}, f"{Z}.offload_optimizer.buffer_count", "give at least 3"),
    ({**NVME, "checkpoint.load_universal": True}, "checkpoint.load_universal", "into NVMe"),
    ({"checkpoint.writer.decoupled": True}, "checkpoint.writer.decoupled", "#8500"),
    ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op", "stage 3"),
    ({"prescale_gradients": True}, "prescale_gradients", "reduce_scatter"),
    ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor", "all but 1.0"),
    ({"optimizer": {"type": "Muon", "params": {"lr": 1e-3}}}, f"{Z}.reduce_scatter", "with Muon at stage 3"),
    ({f"{Z}.zero_hpz_partition_size": 3}, f"{Z}.zero_hpz_partition_size", "does not divide the 2 ranks"),
    ({"sequence_parallel_size": 2, "data_parallel_size": 2}, "data_parallel_size", "is not the 2 ranks"),
    ({f"{Z}.compute_grad_norm": False, f"{Z}.stage": 2}, f"{Z}.compute_grad_norm", "gradient_clipping"),
    (
        {"activation_checkpointing.contiguous_memory_optimization": True},
        "activation_checkpointing.contiguous_memory_optimization",
        "the stack's parts differ: set it to false",
    ),
    ({"bf16.bf16_optimizer_states": True}, "bf16.bf16_optimizer_states", "bf16_master_weights_and_grads"),
    ({"data_types.param_dtype": "bf16"}, "data_types.param_dtype", "refuses it beside fp16"),
    (
        {f"{Z}.offload_optimizer.super_offload": True, f"{Z}.stage": 2},
        f"{Z}.offload_optimizer.super_offload",
        "stage 3",
    ),
    ({f"{Z}.zenflow": {}}, f"{Z}.zenflow", "leave it out"),
    ({f"{Z}.stage3_module_granularity_threshold": 10**4}, f"{Z}.stage3_module_granularity_threshold", "leaf_module"),
    ({"tensor_parallel.autotp_size": 2}, "tensor_parallel.autotp_size", "leave tensor_parallel out"),
    ({"expert_parallel.enabled": True}, "expert_parallel.enabled", "leave expert_parallel out"),
    ({"hybrid_engine.enabled": True}, "hybrid_engine.enabled", "leave hybrid_engine out"),
    (
        {"data_efficiency.data_routing.random_ltd.enabled": True},
        "data_efficiency.data_routing.random_ltd.enabled",
        "leave data_efficiency out",
    ),
    ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation", "after every micro-batch"),
    ({"aio.block_size": 10**6}, "aio.block_size", "write 999936"),
    ({"optimizer.params.amsgrad": True}, "optimizer.params.amsgrad", "set it to false"),
    ({"optimizer": {"type": "LBFGS", "params": {}}, "zero_allow_untested_optimizer": True}, "optimizer", "closure"),
    (
        {"optimizer": {"type": "Lion", "params": {}}, f"{Z}.offload_optimizer.ratio": 0.5},
        f"{Z}.offload_optimizer.ratio",
        "splits only Adam",
    ),
    (
        {
            "fp16.enabled": False,
            "bf16.enabled": True,
            f"{Z}.stage": 1,
            f"{Z}.offload_optimizer.device": "none",
            "data_types.grad_accum_dtype": "fp32",
        },
        "data_types.grad_accum_dtype",
        "BF16_Optimizer",
    ),
    (
        {"fp16.enabled": False, "torch_autocast": {"enabled": True, "dtype": "float16"}},
        "torch_autocast.dtype",
        "before it takes the loss scale off",
    ),
    (
        {
            "fp16.enabled": False,
            "torch_autocast": {"enabled": True, "lower_precision_safe_modules": ["torch.nn.Lineer"]},
        },
        "torch_autocast.lower_precision_safe_modules",
        "no such class",
    ),
    ({"gradient_accumulation_steps": 0.5}, "gradient_accumulation_steps", "write 1"),
    ({f"{Z}.{Z}": {"stage": 3}}, f"{Z}.{Z}", f"put what is in it into {Z} itself"),
    ({"comet.enabled": True}, "comet.enabled", "pip install comet_ml"),
    ({"steps_per_print": "auto"}, "steps_per_print", "give one"),
    # with the model
    ({**NVME, f"{Z}.offload_param.buffer_size": 10**6}, f"{Z}.offload_param.buffer_size", "100,000,000"),
    ({**NVME, f"{Z}.stage3_max_reuse_distance": 10**9}, f"{Z}.stage3_max_reuse_distance", "second step"),
    ({**NVME, f"{Z}.offload_param.buffer_count": 5}, f"{Z}.offload_param.buffer_count", "give at least 7"),
]


def changed(changes, name="zero3_offload"):
    config = json.loads(DS_CONFIGS[name].read_text())
    for key, value in changes.items():
        set_dotted(config, key, value)
    return config
