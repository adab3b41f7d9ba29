"""Keys of a ds_config that DeepSpeed does not know, and values that it does not accept."""

import enum
import functools
import inspect
import json
import logging
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, _REMOVED_ZERO_CONFIG_KEYS
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from astrobio.config import nearest, suggestion
from launch.ds_config.config import AUTO, without
from launch.ds_config.finding import Finding, remark
from launch.ds_config.optimizers import optimizer_findings, scheduler_findings
from launch.ds_config.schema import STALE, TRANSLATED, Block, Schema

#: Where DeepSpeed itself knows the word.
AUTO_IS_MEANT = frozenset(
    (
        "zero_optimization.zenflow.select_strategy",
        "zero_optimization.zenflow.select_interval",
        "zero_optimization.zenflow.update_interval",
        "data_types.keep_in_fp32_modules",
        "pipeline.stages",
        *(
            f"expert_parallel.{key}"
            for key in (
                "score_apply",
                "combine_impl",
                "row_weighting_impl",
                "score_func",
                "top_k",
                "routed_scaling_factor",
            )
        ),
    )
)
#: Blocks that may be null; all others break DeepSpeed's parser.
NULL_IS_NOTHING = (
    "optimizer",
    "aio",
    "bf16",
    "expert_parallel",
    "checkpoint.writer",
    "autotuning.model_info",
    "data_efficiency.data_routing.random_ltd.random_ltd_schedule",
    "data_efficiency.data_routing.random_ltd.layer_token_lr_schedule",
)
#: Whole numbers that DeepSpeed and the launcher use as they stand, where 1e3 is a float.
STRICTLY_WHOLE = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "activation_checkpointing.number_checkpoints",
    "aio.block_size",
    "aio.queue_depth",
    "aio.intra_op_parallelism",
)
_REMOVED = {
    **_REMOVED_TOP_LEVEL_CONFIG_KEYS,
    **{f"zero_optimization.{key}": text for key, text in _REMOVED_ZERO_CONFIG_KEYS.items()},
}


def key_findings(config: dict) -> list[Finding]:
    """Unknown, misplaced, stale and removed keys, and values of a wrong type or out of range; all of them."""
    found: list[Finding] = []
    wrong: set[str] = set()
    for path, finding in _walk(Schema, config, ()):
        if finding is not None:
            found.append(finding)
        if finding is None or finding.problem:
            wrong.add(".".join(path))
    sound = without(config, wrong)
    found += _range_findings(config, sound)
    sound = without(sound, {finding.key for finding in found if finding.problem})
    found += optimizer_findings(sound)
    found += scheduler_findings(sound)
    return found


def _walk(
    model: type[BaseModel], values: dict, above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Finding | None]]:
    """Each path with a problem or remark and its finding; None where the value is an ``"auto"``."""
    fields = {name: field for key, field in model.model_fields.items() for name in (field.alias or key, key)}
    for key, value in values.items():
        path = (*above, key)
        dotted = ".".join(path)
        if dotted in _REMOVED:
            yield (
                path,
                Finding(dotted, value, f"removed from DeepSpeed, which refuses it: {_REMOVED[dotted]}", "leave it out"),
            )
        elif dotted in STALE:
            yield path, Finding(dotted, value, "a stale name, which has no effect", f"write {STALE[dotted]}")
        elif key not in fields:
            yield path, _unknown(model, key, value, above, fields)
        elif value == AUTO and dotted not in AUTO_IS_MEANT and not _holds_keys(fields[key].annotation):
            yield path, None
        else:
            if dotted in TRANSLATED:
                yield (
                    path,
                    remark(
                        dotted,
                        value,
                        "deprecated; still understood",
                        "leave it out" if value is False else f"write {TRANSLATED[dotted]}",
                    ),
                )
            yield from _value_findings(fields[key].annotation, value, path)


def _unknown(model: type[BaseModel], key: str, value: Any, above: tuple[str, ...], fields) -> Finding:
    homes = _homes().get(key, [])
    if above and key == above[-1]:
        cure = f"put what is in it into {'.'.join(above)} itself"
    elif len(homes) == 1 and nearest(key, fields, alike=0.8) is None:
        cure = f"it belongs in {homes[0] or 'the top level'}"
    else:
        cure = suggestion(key, fields).removeprefix("; ")
    what = "would ignore it" if issubclass(model, Block) else "refuses it"
    return Finding(".".join((*above, key)), value, f"unknown key; DeepSpeed {what}", cure)


@functools.cache
def _homes() -> dict[str, list[str]]:
    """The blocks that know each key."""
    homes: dict[str, list[str]] = {}

    def add(model: type[BaseModel], above: str) -> None:
        for key, field in model.model_fields.items():
            homes.setdefault(field.alias or key, []).append(above)
            inner = _model_of(field.annotation)
            if inner is not None:
                add(inner, f"{above}.{key}" if above else key)

    add(Schema, "")
    return homes


def _value_findings(annotation, value: Any, path: tuple[str, ...]):
    dotted, inner, kinds = ".".join(path), _model_of(annotation), _kinds(annotation)
    if inner is not None:
        if isinstance(value, dict):
            yield from _walk(inner, value, path)
        elif value is None and dotted not in NULL_IS_NOTHING and not dotted.startswith("zero_optimization."):
            yield path, Finding(dotted, value, "DeepSpeed cannot parse null in place of a block", "leave it out")
        elif value is not None:
            yield (
                path,
                Finding(
                    dotted,
                    value,
                    f"must be an object, is {_name_of(value)}",
                    'write {"stage": 1}' if dotted == "zero_optimization" and value is True else "",
                ),
            )
    elif (of_each := _model_of_values(annotation)) is not None and isinstance(value, dict):
        for name, each in value.items():
            if isinstance(each, dict):
                yield from _walk(of_each, each, (*path, name))
    elif isinstance(value, str) and kinds and kinds <= {int, float}:
        yield path, Finding(dotted, value, "must be a number, is text", _number_without_quotes(value, kinds == {int}))
    elif isinstance(value, str) and kinds == {bool}:
        yield path, Finding(dotted, value, "must be true or false, is text", "write it without quotes")
    elif isinstance(value, bool) and kinds and kinds <= {int, float}:
        yield path, Finding(dotted, value, "must be a number, is true or false", "write the number")
    elif isinstance(value, int | float) and kinds == {bool} and not isinstance(value, bool):
        limit = "must be true or false, is a number"
        if value in (0, 1):
            yield path, remark(dotted, value, limit, f"write {'true' if value else 'false'}, as DeepSpeed takes it")
        else:
            yield path, Finding(dotted, value, limit, "write true or false")
    elif isinstance(value, float) and kinds == {int} and (not value.is_integer() or dotted in STRICTLY_WHOLE):
        finite = value == value and abs(value) != float("inf")
        whole = f"write {max(1, int(value)) if value > 0 else int(value)}" if finite else "write a whole number"
        yield (
            path,
            Finding(
                dotted,
                value,
                "must be a whole number, is a fraction"
                if not value.is_integer()
                else "must be a whole number, is a floating-point number",
                whole,
            ),
        )


def _number_without_quotes(text: str, whole: bool) -> str:
    try:
        number = float(text)
    except ValueError:
        return "write a number"
    if whole and not number.is_integer():
        return "write a whole number"
    return f"write {number:.0f} without quotes" if number.is_integer() else f"write {text.strip()} without quotes"


def _name_of(value: Any) -> str:
    return {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}.get(
        type(value), type(value).__name__
    )


def _parts(annotation) -> list:
    """The alternatives of a union, without None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for each in typing.get_args(annotation) for part in _parts(each)]
    return [] if annotation is type(None) else [annotation]


def _kinds(annotation) -> set:
    kinds = set()
    for part in _parts(annotation):
        if inspect.isclass(part) and issubclass(part, enum.Enum):
            part = int if issubclass(part, int) else str
        kinds.add(part if part in (int, float, bool) else object)
    return kinds


def _model_of(annotation) -> type[BaseModel] | None:
    return next((part for part in _parts(annotation) if inspect.isclass(part) and issubclass(part, BaseModel)), None)


def _holds_keys(annotation) -> bool:
    return _model_of(annotation) is not None or any(typing.get_origin(part) is dict for part in _parts(annotation))


def _model_of_values(annotation) -> type[BaseModel] | None:
    """Of a mapping from free names to models."""
    for part in _parts(annotation):
        if typing.get_origin(part) is dict and typing.get_args(part):
            return _model_of(typing.get_args(part)[1])
    return None


def _range_findings(config: dict, sound: dict) -> list[Finding]:
    """Values of the right type that DeepSpeed's own models refuse. A model stops at the first of its rules that is
    broken: the key that breaks it is removed and the model asked again."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    found: list[Finding] = []
    logger.setLevel(logging.ERROR)  # it tells of deprecated keys, which are remarked upon already
    try:
        while more := _refusals(config, sound):
            found += [
                finding
                for finding in more
                if finding.key not in {other.key for other in found} and not _is_of_a_type(finding)
            ]
            left = without(sound, {finding.key for finding in more})
            if left == sound:
                break
            sound = left
    finally:
        logger.setLevel(level)
    return found


def _refusals(config: dict, sound: dict) -> list[Finding]:
    try:
        Schema(**sound)
    except ValidationError as error:
        return [_refusal(config, item) for item in error.errors()]
    except AssertionError as error:  # a deprecated key beside its successor: runtime/config_utils.py:90
        return [Finding("zero_optimization", "…", str(error), "leave the older one out")]
    return []


def _refusal(config: dict, item: ErrorDetails) -> Finding:
    path = _path_in(config, item["loc"])
    message, block = _lower(item["msg"]), _value_at(config, path, whole=True)
    if isinstance(block, dict):  # a rule of the whole block, which names the key that it is about
        named = next((word for word in re.findall(r"\w+", message) if word in block), None)
        path = (*path, named) if named else path
    message = re.sub(r", (\d+) or \1\b", r" or \1", message)  # of a choice with two names
    key = ".".join(path)
    return Finding(key, _value_at(config, path), message.removeprefix(f"{key} "), _limit_of(item) or _default(path))


def _is_of_a_type(finding: Finding) -> bool:
    """Whether the finding is about the type of optimizer or scheduler, which have rules of their own."""
    return finding.key in ("optimizer", "scheduler") and "type" in finding.limit


def _path_in(config: Any, location: tuple) -> tuple[str, ...]:
    """As much of pydantic's location as is a path in the file: it also names alternatives of a union."""
    path: list[str] = []
    for part in location:
        if not isinstance(config, dict) or part not in config:
            if not path or part in ("type",):
                path.append(str(part))
            break
        path.append(str(part))
        config = config[part]
    return tuple(path)


def _value_at(config: Any, path: tuple[str, ...], whole: bool = False) -> Any:
    for part in path:
        config = config.get(part, "(not given)") if isinstance(config, dict) else config
    return "…" if isinstance(config, dict) and not whole else config


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:]


def _default(path: tuple[str, ...]) -> str:
    model: type[BaseModel] | None = Schema
    for part in path[:-1]:
        model = _model_of(model.model_fields[part].annotation) if model and part in model.model_fields else None
    field = model.model_fields.get(path[-1]) if model and path else None
    return (
        f"{json.dumps(field.default)} is the default"
        if field and type(field.default) in (int, float, bool, str)
        else ""
    )


def _limit_of(item: ErrorDetails) -> str:
    context = item.get("ctx", {})
    limits = [
        f"{word} {context[name]}"
        for name, word in (("gt", "more than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most"))
        if name in context
    ]
    return f"give {' and '.join(limits)}" if limits else ""
