"""Every key of DeepSpeed 0.19.8's JSON, and the type of its value.

DeepSpeed has pydantic models of some blocks; they are taken as they are. The other blocks it reads key by key with
defaults, and ignores the rest without a word: those are written down here, with the place that reads them (paths are
below ``deepspeed/``).
"""

from typing import Any, Literal

from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime.config import HybridEngineConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig
from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp16", "bf16", "fp32"]
Dtype = Literal[
    "fp16",
    "float16",
    "half",
    "torch.float16",
    "bf16",
    "bfloat16",
    "torch.bfloat16",
    "fp32",
    "float32",
    "float",
    "torch.float32",
]  # runtime/config.py:143 DtypeEnum


class Block(BaseModel):
    """A block that DeepSpeed reads by hand."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Aio(Block):  # runtime/swap_tensor/aio_config.py:20
    block_size: int = Field(1 << 20, gt=0)
    queue_depth: int = Field(8, gt=0)
    intra_op_parallelism: int = Field(1, gt=0)
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


class ActivationCheckpointing(Block):  # runtime/activation_checkpointing/config.py:77
    partition_activations: bool = False
    contiguous_memory_optimization: bool = False
    cpu_checkpointing: bool = False
    number_checkpoints: int | None = Field(None, gt=0)
    synchronize_checkpoint_boundary: bool = False
    profile: bool = False


class ParallelWrite(Block):  # runtime/config.py:398
    pipeline_stage: bool = False


class CheckpointWriter(Block):  # runtime/model_checkpointing/config.py:37
    type: Literal["mock", "python", "fast", "MOCK", "PYTHON", "FAST"] = "FAST"
    io_buffer_size: int = Field(64 << 20, gt=0)
    io_buffer_double: bool = True
    show_statistics: bool = False
    data_parallel: Literal["replica", "socket", "machine", "REPLICA", "SOCKET", "MACHINE"] | None = None
    decoupled: bool = False
    io_multiplier: int = Field(1, gt=0)


class Checkpoint(Block):  # runtime/config.py:379-406, 613-622; runtime/model_checkpointing/config.py:61
    tag_validation: Literal["Ignore", "Warn", "Fail", "ignore", "warn", "fail", "IGNORE", "WARN", "FAIL"] = "WARN"
    load_universal: bool = False
    use_node_local_storage: bool = False
    parallel_write: ParallelWrite | None = None
    checkpoint_serialization: bool = True
    writer: CheckpointWriter | None = None


class DataTypes(Block):  # runtime/config.py:624-639
    grad_accum_dtype: Dtype | None = None
    param_dtype: Dtype | None = None
    buffer_dtype: Dtype | None = None
    keep_in_fp32_modules: Literal["auto"] | list[str] = "auto"


class TorchAutocast(Block):  # runtime/config.py:179-208
    enabled: bool = False
    dtype: Dtype = "bf16"
    lower_precision_safe_modules: list[str] = []


class FlopsProfiler(Block):  # profiling/config.py:28
    enabled: bool = False
    recompute_fwd_factor: float = Field(0.0, ge=0)
    profile_step: int = Field(1, ge=1)
    module_depth: int = -1
    top_modules: int = Field(1, ge=1)
    detailed: bool = True
    output_file: str | None = None


class ModelInfo(Block):  # autotuning/config.py:95, autotuning/constants.py:115
    profile: bool = False
    num_params: int | None = None
    hidden_size: int | None = None
    num_layers: int | None = None


class Autotuning(Block):  # autotuning/config.py:35
    enabled: bool = False
    fast: bool = True
    results_dir: str = Field("autotuning_results", min_length=1)
    exps_dir: str = Field("autotuning_exps", min_length=1)
    overwrite: bool = True
    start_profile_step: int = 3
    end_profile_step: int = 5
    metric: Literal["latency", "throughput", "flops", "forward", "backward", "step"] = "throughput"
    metric_path: str | None = None
    tuner_type: Literal["gridsearch", "random", "model_based"] = "gridsearch"
    tuner_early_stopping: int = 5
    tuner_num_trials: int = 50
    arg_mappings: dict[str, Any] | None = None
    model_info: ModelInfo | None = None
    model_info_path: str | None = None
    mp_size: int = 1
    max_train_batch_size: int | None = None
    min_train_batch_size: int = 1
    max_train_micro_batch_size_per_gpu: int = 1024
    min_train_micro_batch_size_per_gpu: int = 1
    num_tuning_micro_batch_sizes: int = 3


class Pipeline(Block):  # runtime/config.py:272, runtime/pipe/engine.py:135-218
    stages: Literal["auto"] | int = "auto"
    partition: str = "best"
    seed_layers: bool = False
    activation_checkpoint_interval: int = 0
    pipe_partitioned: bool = True
    grad_partitioned: bool = True
    use_reentrant: bool = True


class CurriculumSchedule(Block):  # runtime/data_pipeline/curriculum_scheduler.py
    total_curriculum_step: int | None = None
    difficulty_step: int | None = None
    root_degree: int | None = None
    difficulty: list | None = None
    max_step: list | None = None


class CurriculumMetric(Block):  # runtime/data_pipeline/data_sampling/data_sampler.py
    index_to_sample_path: str | None = None
    index_to_metric_path: str | None = None
    difficulty_type: Literal["value", "percentile"] | None = None
    clustering_type: Literal["schedule_based", "single_cluster"] | None = None
    min_difficulty: float | None = None
    max_difficulty: float | None = None
    schedule_type: Literal["fixed_discrete", "fixed_root", "fixed_linear", "custom"] | None = None
    schedule_config: CurriculumSchedule | None = None


class Curriculum(Block):  # runtime/data_pipeline/config.py:91
    enabled: bool = False
    data_cluster_path: str | None = None
    curriculum_metrics: dict[str, CurriculumMetric] | None = None


class DynamicBatching(Block):  # runtime/data_pipeline/config.py:106
    enabled: bool = False
    metrics_path: str | None = None
    lr_scaling_method: Literal["linear", "sqrt", "none"] = "linear"
    min_batch_size: int = Field(1, gt=0)
    max_batch_size: int = Field(1 << 30, gt=0)
    sequence_picking_order: Literal["random", "seqlen", "dataloader"] = "dataloader"
    max_tokens: int | None = None
    verbose: bool = False


class DataSampling(Block):  # runtime/data_pipeline/config.py:33
    enabled: bool = False
    num_epochs: int = 1000
    num_workers: int = Field(0, ge=0)
    pin_memory: bool = False
    curriculum_learning: Curriculum | None = None
    dynamic_batching: DynamicBatching | None = None


class LtdScheduleConfig(Block):  # runtime/data_pipeline/data_routing/scheduler.py
    require_steps: int | None = None
    seq_per_step: int | None = None


class LtdSchedule(Block):  # runtime/data_pipeline/data_routing/scheduler.py
    min_value: int | None = None
    max_value: int | None = None
    schedule_type: Literal["fixed_linear"] | None = None
    schedule_config: LtdScheduleConfig | None = None


class LtdRates(Block):  # runtime/data_pipeline/constants.py:112
    enabled: bool = False
    total_layer_tokens: int | None = None
    warmup_type: str | None = None
    warmup_layer_tokens: int | None = None


class RandomLtd(Block):  # runtime/data_pipeline/config.py:173, constants.py:79
    enabled: bool = False
    total_layer_num: int | None = None
    random_ltd_layer_num: int | None = None
    random_ltd_layer_id: list[int] | None = None
    model_mask_name: str | None = None
    model_type: Literal["encoder", "decoder"] | None = None
    hidden_state_order: str | None = None
    micro_batch_size: int | None = None
    global_batch_size: int | None = None
    random_ltd_schedule: LtdSchedule | None = None
    layer_token_lr_schedule: LtdRates | None = None


class DataRouting(Block):  # runtime/data_pipeline/config.py:153
    enabled: bool = False
    random_ltd: RandomLtd | None = None


class DataEfficiency(Block):  # runtime/data_pipeline/config.py:13
    enabled: bool = False
    seed: int = 1234
    data_sampling: DataSampling | None = None
    data_routing: DataRouting | None = None


class Timers(Block):  # utils/config.py:27
    throughput: DeepSpeedThroughputTimerConfig | None = None


class ExpertParallel(Block):  # module_inject/auto_ep_config.py:40; the ends of its values are checked there
    enabled: bool = False
    autoep_size: Any = 1
    expert_tensor_parallel_size: Any = 1
    validate_folding_routing: bool = False
    async_split_plan: bool = False
    preset_model: Any = None
    moe_layer_pattern: Any = None
    expert_pattern: Any = None
    router_pattern: Any = None
    use_grouped_mm: bool = True
    disable_triton_grouped_mm: bool = False
    route_norm: Any = None
    route_scale: Any = 1.0
    score_apply: Any = "auto"
    combine_impl: Any = "auto"
    row_weighting_impl: Any = "auto"
    gate_up_impl: Any = "separate"
    comm_backend: Any = "comm"
    comm_num_sm: Any = 12
    comm_qp_margin: Any = 4
    comm_max_tokens_per_rank: Any = 0
    num_expert_groups: Any = None
    num_limited_groups: Any = None
    score_func: Any = "auto"
    top_k: Any = "auto"
    load_balance_coeff: None = None
    routed_scaling_factor: Any = "auto"
    expert_w1: Any = None
    expert_w2: Any = None
    expert_w3: Any = None
    num_experts_attr: Any = None
    top_k_attr: Any = None
    has_shared_experts: Any = None
    shared_experts_pattern: Any = None
    shared_experts_gate_pattern: Any = None
    expert_activation: Any = None


class Optimizer(Block):  # runtime/config.py:288-317
    type: str
    params: dict[str, Any] | None = None
    legacy_fusion: bool = False


class Scheduler(Block):  # runtime/config.py:327-339
    type: str
    params: dict[str, Any] | None = None


class CompressedOptimizer(Block):  # ours: launch/zero/compressed_adamw.py; DeepSpeed reads no such block
    enabled: bool = False
    remainder_bits: Literal[8, 16] = 16
    block_size: Literal[32, 64, 128, 256, 512, 1024] = 256


class Schema(Block):
    """The whole file: runtime/config.py:525-656, and deepspeed/__init__.py:543 for the sizes of the device mesh."""

    train_batch_size: int | None = Field(None, gt=0)
    train_micro_batch_size_per_gpu: int | None = Field(None, gt=0)
    gradient_accumulation_steps: int | None = Field(None, gt=0)
    managed_gradient_accumulation: bool = True
    steps_per_print: int | None = Field(None, gt=0)
    dump_state: bool = False
    disable_python_gc: bool = False
    disable_allgather: bool = False
    communication_data_type: Precision | None = None
    seq_parallel_communication_data_type: Precision | None = "fp32"
    prescale_gradients: bool = False
    gradient_predivide_factor: float = Field(1.0, gt=0)
    gradient_allreduce_op: Literal["mean", "sum"] = "mean"
    gradient_clipping: float = Field(1.0, ge=0)
    zero_allow_untested_optimizer: bool = False
    zero_force_ds_cpu_optimizer: bool = True
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    vocabulary_size: int | None = None
    dataloader_drop_last: bool = False
    log_level: (
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "debug", "info", "warning", "error", "critical"] | None
    ) = None  # utils/logging.py:182
    use_data_before_expert_parallelism: bool = False
    sequence_parallel_size: int = Field(1, gt=0)
    data_parallel_size: int | None = Field(None, gt=0)
    datastates_ckpt: Any = None
    optimizer: Optimizer | None = None
    compressed_optimizer: CompressedOptimizer | None = None
    scheduler: Scheduler | None = None
    zero_optimization: DeepSpeedZeroConfig | None = None
    fp16: DeepSpeedFP16Config | None = None
    bf16: DeepSpeedBF16Config | None = None
    bfloat16: DeepSpeedBF16Config | None = None
    torch_autocast: TorchAutocast | None = None
    activation_checkpointing: ActivationCheckpointing | None = None
    aio: Aio | None = None
    checkpoint: Checkpoint | None = None
    data_types: DataTypes | None = None
    comms_logger: CommsLoggerConfig | None = None
    tensorboard: TensorBoardConfig | None = None
    wandb: WandbConfig | None = None
    csv_monitor: CSVConfig | None = None
    comet: CometConfig | None = None
    flops_profiler: FlopsProfiler | None = None
    autotuning: Autotuning | None = None
    compile: CompileConfig | None = None
    timers: Timers | None = None
    hybrid_engine: HybridEngineConfig | None = None
    pipeline: Pipeline | None = None
    data_efficiency: DataEfficiency | None = None
    tensor_parallel: TPTrainingConfig | None = None
    expert_parallel: ExpertParallel | None = None
    weight_quantization: WeightQuantConfig | None = None


#: Keys that once were, or are often taken for others, and what stands for them now. The first ones DeepSpeed still
#: translates; the others it ignores without a word, or refuses.
TRANSLATED = {
    "zero_optimization.cpu_offload": 'offload_optimizer: {"device": "cpu"}',
    "zero_optimization.cpu_offload_param": 'offload_param: {"device": "cpu"}',
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "bfloat16": "bf16",
}
STALE = {
    "aio.thread_count": "intra_op_parallelism",
    "zero_optimization.cpu_offload_use_pin_memory": "pin_memory in offload_optimizer and offload_param",
    "zero_optimization.cpu_offload_params": "offload_param",
    "zero_optimization.stage3_param_persitance_threshold": "stage3_param_persistence_threshold",
    "activation_checkpointing.partitioned_activations": "partition_activations",
    "bf16.check_overflow": "check_grad_overflow",
    "load_universal_checkpoint": "checkpoint.load_universal",
    "allgather_size": "zero_optimization.allgather_bucket_size",
    "disable_allgather_partitions": "zero_optimization.allgather_partitions",
    "fp32_allreduce": "communication_data_type",
    "compile.disable": "(no block at all)",
    "monitor_config": "tensorboard, wandb, comet or csv_monitor",
    "train_micro_batch_size": "train_micro_batch_size_per_gpu",
}
