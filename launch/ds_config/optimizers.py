"""The optimizer and scheduler blocks: their parameters are the arguments of the classes that DeepSpeed builds."""

import importlib.util
import inspect
import math
from typing import Any, TypeGuard

import torch
from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

from astrobio.config import suggestion, told
from launch.ds_config.config import AUTO, DsConfig, value_of
from launch.ds_config.finding import ABSENT, Finding, remark

#: Taken out of the parameters before the class sees them: runtime/engine.py:2377, 2486.
ADAM_SWITCHES = ("adam_w_mode", "torch_adam", "fp32_optimizer_states")
#: runtime/engine.py:2413, deepspeed/__init__.py:335
MUON = ("lr", "muon_lr", "adam_lr", "momentum", "weight_decay", "ns_method", "betas", "eps", "per_head_muon")
#: Removed with DeepSpeed's compressed communication.
ONE_BIT = ("onebitadam", "zerooneadam", "onebitlamb")
#: Master weights of 16 bits: runtime/zero/stage3.py, stage_1_and_2.py.
MASTERS = (
    "fp16.fp16_master_weights_and_grads",
    "bf16.bf16_master_weights_and_grads",
    "bfloat16.bf16_master_weights_and_grads",
)
#: zero/utils.py:45, by the names that the JSON has for them.
KNOWN_TO_ZERO = ("adam", "adamw", "adagrad", "lion", "muon", "Adam", "AdamW", "Adagrad")


def optimizer_findings(config: dict) -> list[Finding]:
    """Problems of the optimizer block: its type, the names of its parameters, and their ranges."""
    block = config.get("optimizer")
    if not isinstance(block, dict):
        return []
    kind = block.get("type")
    if not isinstance(kind, str):
        return [Finding("optimizer.type", block.get("type", ABSENT), "the optimizer has no type", "give one, as AdamW")]
    if kind.lower() in ONE_BIT:
        return [Finding("optimizer.type", kind, "removed from DeepSpeed", "take AdamW")]
    params, offloads = block.get("params"), DsConfig.parse(config).optimizer_offload.device != "none"
    known, left_out = _arguments(kind, params if isinstance(params, dict) else {}, offloads)
    if known is None:
        names = [*DEEPSPEED_OPTIMIZERS, *_torch_optimizers()]
        return [
            Finding(
                "optimizer.type",
                kind,
                "neither DeepSpeed nor torch.optim has such an optimizer",
                suggestion(kind, names).removeprefix("; "),
            )
        ]
    found = _zero_findings(config, kind) + _lamb_findings(config, kind)
    if not isinstance(params, dict):
        return found
    for key, value in params.items():
        if key == "max_grad_norm":
            found.append(
                Finding(
                    "optimizer.params.max_grad_norm",
                    value,
                    "refused by DeepSpeed",
                    f"write it as gradient_clipping: {value} at the top level",
                )
            )
        elif key in left_out:
            found.append(Finding(f"optimizer.params.{key}", value, left_out[key]))
        elif key not in known:
            found.append(
                Finding(
                    f"optimizer.params.{key}",
                    value,
                    f"{kind} has no such parameter",
                    suggestion(key, known).removeprefix("; "),
                )
            )
    found += _rate_findings(params, known)
    return found if any(finding.problem for finding in found) else found + _tried(config, kind, params, offloads)


def _tried(config: dict, kind: str, params: dict, offloads: bool) -> list[Finding]:
    """Problems that appear at the optimizer's first step. One of torch's is built and takes a step; DeepSpeed's need
    compiled ops, so that their rules are written down here."""
    name = kind.lower()
    adam = name in ("adam", "adamw") and not params.get("torch_adam")
    masters = [key for key in MASTERS if value_of(config, key) is True]
    if masters and not adam:
        return [
            Finding(key, True, f"only DeepSpeed's own Adam supports it, not {kind}", "set it to false")
            for key in masters
        ]
    if adam:
        if params.get("amsgrad"):
            return [
                Finding(
                    "optimizer.params.amsgrad",
                    params["amsgrad"],
                    "DeepSpeed's Adam does not have it",
                    "set it to false, or torch_adam to true beside a resident optimizer",
                )
            ]
        return []
    if name == "lion" and offloads:
        ratio = value_of(config, "zero_optimization.offload_optimizer.ratio")
        if isinstance(ratio, int | float) and ratio < 1:
            return [
                Finding(
                    "zero_optimization.offload_optimizer.ratio",
                    ratio,
                    "DeepSpeed splits only Adam between cards and CPU",
                    "leave it out",
                )
            ]
        return []
    if name in ("muadam", "muadamw", "musgd") and importlib.util.find_spec("mup") is None:
        return [Finding("optimizer.type", kind, "needs the package mup, which is not installed", "pip install mup")]
    cls = getattr(torch.optim, {"adam": "AdamW", "adamw": "AdamW", "adagrad": "Adagrad"}.get(name, kind), None)
    if cls is None or cls is torch.optim.Adagrad and offloads:
        return []
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    given = {key: value for key, value in params.items() if value != AUTO and key not in ADAM_SWITCHES}
    try:
        cls([weight], **given).step()
    except Exception as error:  # each class has its own
        return [Finding("optimizer", kind, f"takes no step: {told(error)}", "take AdamW, or mend its params")]
    return []


def _torch_optimizers() -> list[str]:
    return [name for name in dir(torch.optim) if inspect.isclass(getattr(torch.optim, name)) and name != "Optimizer"]


def _arguments(kind: str, params: dict, offloads: bool) -> tuple[set[str] | None, dict[str, str]]:
    """The parameters that the JSON may give, as runtime/engine.py:2476 builds the optimizer, and those of the class
    that it may not, with the reason; None where there is no such class."""
    name = kind.lower()
    if name in ("adam", "adamw"):
        if params.get("torch_adam"):
            return _of(torch.optim.AdamW) | set(ADAM_SWITCHES), {}
        known = _of(DeepSpeedCPUAdam if offloads else FusedAdam) | set(ADAM_SWITCHES)
        return known - {"adamw_mode"}, {"adamw_mode": "DeepSpeed gives it itself: write adam_w_mode"}
    if name == "muon":
        return {*MUON, *ADAM_SWITCHES}, {}
    if name == "lamb":
        return _of(FusedLamb) - {"max_grad_norm"}, {}
    if name == "adagrad":
        return _of(DeepSpeedCPUAdagrad if offloads else torch.optim.Adagrad), {}
    if name == "lion":
        return _of(DeepSpeedCPULion if offloads else FusedLion), {}
    if name in ("muadam", "muadamw", "musgd"):
        return _of(torch.optim.SGD if name == "musgd" else torch.optim.AdamW), {}
    if kind in _torch_optimizers():
        return _of(getattr(torch.optim, kind)), {}
    return None, {}


def _of(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters) - {"params", "model_params"}


def _zero_findings(config: dict, kind: str) -> list[Finding]:
    if not value_of(config, "zero_optimization.stage") or config.get("zero_allow_untested_optimizer") is True:
        return []
    if kind in KNOWN_TO_ZERO or kind.lower() in ("adam", "adamw", "adagrad", "lion", "muon"):
        return []
    return [
        Finding(
            "optimizer.type",
            kind,
            "not tested with ZeRO, which DeepSpeed refuses",
            "take AdamW, or set zero_allow_untested_optimizer: true",
        )
    ]


def _lamb_findings(config: dict, kind: str) -> list[Finding]:
    fp16 = config.get("fp16")
    dynamic = fp16 is not None and fp16.get("enabled") is not False and not fp16.get("loss_scale")
    if kind.lower() != "lamb" or dynamic:
        return []
    return [
        Finding(
            "optimizer.type",
            kind,
            "DeepSpeed's Lamb needs fp16 with dynamic loss scaling",
            'set fp16: {"enabled": true, "loss_scale": 0}, or take AdamW',
        )
    ]


def _rate_findings(params: dict, known: set[str]) -> list[Finding]:
    found = []
    for key, value in params.items():
        if key not in known or value == "auto":
            continue
        path = f"optimizer.params.{key}"
        if key in ("lr", "muon_lr", "adam_lr", "eps", "weight_decay", "momentum"):
            low = 0
            if not _is_number(value):
                found.append(Finding(path, value, "must be a number", "write it without quotes"))
            elif value < low or not math.isfinite(value):
                found.append(Finding(path, value, "must be at least 0"))
            elif key == "lr" and value == 0:
                found.append(
                    remark(
                        path,
                        value,
                        "nothing is learned at a learning rate of 0",
                        "give one, unless the scheduler sets it",
                    )
                )
        elif key == "betas":
            pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
            if not pair or not all(0 <= beta < 1 for beta in value):
                found.append(Finding(path, value, "must be two numbers from 0 to below 1", "[0.9, 0.999] is usual"))
    return found


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def scheduler_findings(config: dict) -> list[Finding]:
    """Problems of the scheduler block: its type, unknown and missing parameters, and their ranges."""
    block = config.get("scheduler")
    if not isinstance(block, dict):
        return []
    kind = block.get("type")
    if kind is None:
        return [
            Finding(
                "scheduler.type",
                ABSENT,
                "the scheduler has no type",
                f"one of {', '.join(lr_schedules.VALID_LR_SCHEDULES)}",
            )
        ]
    if kind not in lr_schedules.VALID_LR_SCHEDULES:
        return [
            Finding(
                "scheduler.type",
                kind,
                "DeepSpeed has no such scheduler",
                suggestion(str(kind), lr_schedules.VALID_LR_SCHEDULES).removeprefix("; "),
            )
        ]
    signature = inspect.signature(getattr(lr_schedules, kind).__init__).parameters
    known = {name: parameter for name, parameter in signature.items() if name not in ("self", "optimizer")}
    params = block.get("params")
    params = params if isinstance(params, dict) else {}
    found = [
        Finding(
            f"scheduler.params.{key}", value, f"{kind} has no such parameter", suggestion(key, known).removeprefix("; ")
        )
        for key, value in params.items()
        if key not in known
    ]
    found += [
        Finding(f"scheduler.params.{name}", ABSENT, f"{kind} needs it", 'give a number, or "auto"')
        for name, parameter in known.items()
        if parameter.default is parameter.empty and name not in params
    ]
    for key, value in params.items():
        if key in known and value != "auto":
            found += _schedule_value(f"scheduler.params.{key}", key, value)
    return found + _schedule_order(params)


def _schedule_value(path: str, key: str, value: Any) -> list[Finding]:
    if key == "warmup_type":
        limit = "DeepSpeed knows log and linear, and takes log for all else"
        return [] if value in ("log", "linear") else [Finding(path, value, limit, "write one of the two")]
    if key in ("cycle_momentum", "lr_range_test_staircase"):
        return [] if isinstance(value, bool) else [Finding(path, value, "must be true or false")]
    if isinstance(value, list) and "lr" in key:
        return []  # one for each group
    if value is None and key in ("cycle_second_step_size", "cycle_second_stair_count", "warmup_max_lr"):
        return []
    if not _is_number(value):
        return [Finding(path, value, "must be a number", "write it without quotes")]
    if key in ("warmup_num_steps",) and (not isinstance(value, int) or value < 1):
        return [
            Finding(
                path,
                value,
                "must be a whole number of at least 1, or DeepSpeed refuses it",
                f"write {max(1, int(value))}",
            )
        ]
    if key in ("cycle_first_step_size", "total_num_steps", "lr_range_test_step_size") and value <= 0:
        return [Finding(path, value, "must be more than 0")]
    if value < 0 and key not in ("last_batch_iteration", "decay_lr_rate", "decay_mom_rate"):
        return [Finding(path, value, "must be at least 0")]
    if key in ("cycle_min_mom", "cycle_max_mom", "warmup_min_ratio", "cos_min_ratio") and value > 1:
        return [Finding(path, value, "must be at most 1")]
    return []


def _schedule_order(params: dict) -> list[Finding]:
    """Lower bounds that exceed their upper bounds."""
    found = []
    for low, high in (
        ("cycle_min_lr", "cycle_max_lr"),
        ("warmup_min_lr", "warmup_max_lr"),
        ("cycle_min_mom", "cycle_max_mom"),
        ("warmup_num_steps", "total_num_steps"),
    ):
        least, most = params.get(low), params.get(high)
        if _is_number(least) and _is_number(most) and least > most:
            found.append(
                Finding(
                    f"scheduler.params.{low}", least, f"is more than {high} = {most}", f"make {high} the larger one"
                )
            )
    return found
