"""ds_configs in the shapes that others publish, shortened, and what is true of them under DeepSpeed 0.19.8."""

ADAMW = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
WARM_UP = {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}}
FP16 = {
    "enabled": "auto",
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
BATCHES = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "wall_clock_breakdown": False,
}
ON_HOST = {"device": "cpu", "pin_memory": True}
STAGE_3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}

#: No problem; what the remarks are about.
CLEAN = {
    # haotian-liu/LLaVA, scripts/zero2.json, zero3.json, zero3_offload.json
    "llava_zero2": (
        {
            **BATCHES,
            "fp16": FP16,
            "bf16": {"enabled": "auto"},
            "zero_optimization": {
                "stage": 2,
                "overlap_comm": True,
                "contiguous_gradients": True,
                "sub_group_size": 1e9,
                "reduce_bucket_size": "auto",
            },
        },
        {"optimizer", "scheduler", "zero_optimization.sub_group_size"},
    ),
    "llava_zero3": (
        {**BATCHES, "fp16": FP16, "bf16": {"enabled": "auto"}, "zero_optimization": STAGE_3},
        {"optimizer", "scheduler"},
    ),
    "llava_zero3_offload": (
        {
            **BATCHES,
            "fp16": FP16,
            "bf16": {"enabled": "auto"},
            "optimizer": ADAMW,
            "scheduler": WARM_UP,
            "steps_per_print": 1e5,
            "zero_optimization": {
                **{key: value for key, value in STAGE_3.items() if "gather" not in key},
                "gather_16bit_weights_on_model_save": True,
                "offload_optimizer": ON_HOST,
                "offload_param": ON_HOST,
            },
        },
        set(),
    ),
    # huggingface/transformers, docs/source/en/deepspeed.md: ZeRO-3 with NVMe
    "transformers_nvme": (
        {
            **BATCHES,
            "fp16": FP16,
            "optimizer": ADAMW,
            "scheduler": WARM_UP,
            "steps_per_print": 2000,
            "aio": {
                "block_size": 262144,
                "queue_depth": 32,
                "single_submit": False,
                "overlap_events": True,
                "intra_op_parallelism": 1,
            },
            "zero_optimization": {
                **STAGE_3,
                "offload_optimizer": {
                    "device": "nvme",
                    "nvme_path": "/local_nvme",
                    "pin_memory": True,
                    "buffer_count": 4,
                    "fast_init": False,
                },
                "offload_param": {
                    "device": "nvme",
                    "nvme_path": "/local_nvme",
                    "pin_memory": True,
                    "buffer_count": 5,
                    "buffer_size": 1e8,
                    "max_in_cpu": 1e9,
                },
            },
        },
        set(),
    ),
    # axolotl-ai-cloud/axolotl, deepspeed_configs/zero3_bf16_cpuoffload_all.json
    "axolotl_offload": (
        {
            **BATCHES,
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": True},
            "zero_optimization": {
                "stage": 3,
                "offload_optimizer": ON_HOST,
                "offload_param": ON_HOST,
                "overlap_comm": True,
                "sub_group_size": 0,
                "reduce_bucket_size": "auto",
                "max_live_parameters": 0,
                "max_reuse_distance": 0,
                "gather_16bit_weights_on_model_save": True,
            },
        },
        {"optimizer", "scheduler"},
    ),
    # microsoft/DeepSpeedExamples, cifar/ds_config.json
    "examples_cifar": (
        {
            "train_batch_size": 4,
            "steps_per_print": 2000,
            "gradient_clipping": 1.0,
            "optimizer": {
                "type": "Adam",
                "params": {"lr": 0.001, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7},
            },
            "scheduler": {
                "type": "WarmupLR",
                "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000},
            },
            "prescale_gradients": False,
            "fp16": {
                "enabled": True,
                "fp16_master_weights_and_grads": True,
                "loss_scale": 0,
                "loss_scale_window": 500,
                "initial_scale_power": 15,
            },
            "zero_optimization": {
                "stage": 2,
                "allgather_partitions": True,
                "reduce_scatter": True,
                "allgather_bucket_size": 50000000,
                "reduce_bucket_size": 50000000,
                "cpu_offload": True,
            },
        },
        {"zero_optimization.cpu_offload"},
    ),
    # microsoft/DeepSpeedExamples, Megatron-LM/scripts/ds_zero2_config.json
    "examples_megatron": (
        {
            "train_batch_size": 16,
            "gradient_accumulation_steps": 1,
            "steps_per_print": 1,
            "zero_optimization": {"stage": 2},
            "gradient_clipping": 1.0,
            "optimizer": {"type": "Adam", "params": {"lr": 0.00015}},
            "fp16": {"enabled": True},
            "activation_checkpointing": {"partition_activations": True, "contiguous_memory_optimization": False},
        },
        {"scheduler"},
    ),
}
#: Written for older versions: the keys that are truly wrong now.
OUTDATED = {
    # microsoft/DeepSpeedExamples, Megatron-LM-v1.1.5-ZeRO3/examples/ds_zero_stage_infinity_config.json
    "examples_infinity": (
        {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persitance_threshold": 1e5,
                "reduce_bucket_size": 90000000,
                "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme_data", "buffer_count": 4},
                "offload_param": {"device": "nvme", "nvme_path": "/nvme_data", "max_in_cpu": 1},
            },
            "fp16": {"enabled": True, "loss_scale": 1024},
            "aio": {"block_size": 1048576, "queue_depth": 16, "thread_count": 2},
        },
        {"zero_optimization.stage3_param_persitance_threshold", "aio.thread_count"},
    ),
    # axolotl-ai-cloud/axolotl, deepspeed_configs/zero2_torch_compile.json
    "axolotl_compile": (
        {
            **BATCHES,
            "compile": {"disable": False, "backend": "inductor"},
            "bf16": {"enabled": "auto"},
            "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        },
        {"compile.disable", "compile.backend"},
    ),
    # microsoft/DeepSpeedExamples, bing_bert/deepspeed_bsz64k_lamb_config_seq128.json
    "examples_bert": (
        {
            "train_batch_size": 65536,
            "train_micro_batch_size_per_gpu": 64,
            "optimizer": {"type": "Lamb", "params": {"lr": 11e-3, "max_coeff": 0.3}},
            "fp16": {"enabled": True, "loss_scale": 0},
            "sparse_attention": {"mode": "fixed", "block": 16},
        },
        {"sparse_attention"},
    ),
    # huggingface/transformers, tests/deepspeed/ds_config_zero3.json
    "transformers_test": (
        {
            "train_micro_batch_size_per_gpu": 1,
            "fp16": {"enabled": True},
            "zero_optimization": {
                "stage": 3,
                "sub_group_size": 1e14,
                "reduce_bucket_size": 0,
                "stage3_prefetch_bucket_size": 0,
            },
        },
        {"zero_optimization.reduce_bucket_size"},
    ),
}
