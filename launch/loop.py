"""The training loop: micro-steps to optimizer steps, with validation, checkpoints and a clean end."""

import dataclasses
import hashlib
import logging
import math
import time
from dataclasses import dataclass

import deepspeed.comm as dist
import torch
from deepspeed.accelerator import get_accelerator

from astrobio.batch import Batch
from astrobio.dataset import AstrobioDataset
from astrobio.sampler import SampleOrder
from launch.checkpoints.compatibility import dataset_hash
from launch.checkpoints.keeper import Checkpoints
from launch.checkpoints.save import SaveFailed
from launch.diagnose import GradientWatch, nonfinite_forward
from launch.evaluate import evaluate, test_predictions
from launch.evaluation.assessment import Assessment, assess
from launch.evaluation.baselines import simple_models
from launch.evaluation.stacks import Trained, keep
from launch.monitor import Monitor, usage
from launch.postmortem import blackbox
from launch.readers import Readers
from launch.run_plan import RunPlan
from launch.stopping import CheckpointPolicy, EarlyStop, StopRequest, TimeLimit
from launch.zero.engine import device


class NonFinite(RuntimeError):
    """Training cannot go on: the numbers are broken, and the message says where."""


@dataclass
class StepResult:
    """Of one optimizer step, over all ranks: mean ``loss`` and its parts, text ``tokens`` read, and whether a rank was
    asked to ``stop``."""

    loss: float
    parts: dict[str, float]
    tokens: int
    stop: bool


class Trainer:
    """One run: what is trained on what, and where it stands.

    Its whole state beside the engine's is what `state` returns, so that a resumed run goes on as if nothing had been.
    """

    def __init__(self, plan: RunPlan, engine, splits: dict[str, AstrobioDataset], readers: Readers):
        self.plan, self.engine, self.splits, self.readers = plan, engine, splits, readers
        train = plan.train
        self.rank = dist.get_rank()
        self.order = SampleOrder(len(splits["train"]), train.seed)
        self.early_stop = EarlyStop(train.patience)
        self.time_limit = TimeLimit(train.time_limit_h)
        self.policy = CheckpointPolicy(train.checkpoint_every_steps, train.checkpoint_every_h)
        self.gradients = GradientWatch(engine.module)
        self.overflows = 0  # skipped steps in a row
        self.wandb_id: str | None = None
        self.stop = StopRequest()
        self.interrupted = False  # agreed by all ranks, unlike what a signal tells one of them
        self.cut_short = False  # by --max_steps, before every record was seen once
        self.unsaved: str | None = None  # why the last step could not be saved
        self.checkpoints = Checkpoints(
            engine, plan.run, plan.ds_config, train.seed, train.keep_last, train.keep_every_h
        )
        blackbox.watch(self._where)
        blackbox.phase("load" if plan.resume else "start")
        resumed = self._resume() if plan.resume else []
        self.monitor = Monitor(
            plan.run,
            self.rank,
            dataclasses.asdict(plan.stack) | {"ds_config": plan.ds_config.raw},
            train.wandb_project,
            self.wandb_id,
        )
        self.wandb_id = self.monitor.wandb_id
        for message in resumed:
            self.monitor.event(self.step, "resume", message)

    @property
    def step(self) -> int:
        """Optimizer steps so far, those included that an overflow skipped."""
        return self.engine.global_steps

    @property
    def epoch(self) -> float:
        return self.order.consumed_global / self.order.size

    def _where(self) -> dict:
        """For the black box; must not wait for anything."""
        return {
            "step": self.step,
            "loss_scale": self._loss_scale(),
            "overflows": self.overflows,
            "stop": self.stop.reason,
            "unsaved": self.unsaved,
        }

    def state(self) -> dict:
        """All that a checkpoint must hold besides the engine's state, and of what run it is."""
        return {
            "model": self.plan.stack.name,
            "stack": dataclasses.asdict(self.plan.stack),
            "dataset": dataset_hash(self.plan.data),
            "global_batch": self.plan.global_batch,
            "order": self.order.state_dict(),
            "elapsed_s": self.time_limit.elapsed_s,
            "wandb_id": self.wandb_id,
            "early_stop": {
                "best": self.early_stop.best if math.isfinite(self.early_stop.best) else None,
                "since_best": self.early_stop.since_best,
            },
        }

    def _resume(self) -> list[str]:
        """Continue from the newest sound checkpoint; returns remarks about it."""
        path, manifest, broken = self.checkpoints.resume(self.plan.resume)
        self._restore(manifest.about)
        return [*self.plan.resume_notes, *broken, f"resumed from {path} at step {self.step}"]

    def _restore(self, state: dict) -> None:
        self.order.load_state_dict(state["order"])
        self.time_limit.before_s = state["elapsed_s"]
        self.wandb_id = state["wandb_id"]
        best = state["early_stop"]["best"]
        self.early_stop.best = math.inf if best is None else best
        self.early_stop.since_best = state["early_stop"]["since_best"]

    def fit(self) -> str:
        """Train until the epochs, ``--max_steps``, the time, the patience or a signal end it; returns the reason."""
        plan, last = self.plan, self.plan.total_steps
        if plan.max_steps is not None:
            last = min(last, plan.max_steps)
        self.monitor.start_bar(last, self.step)
        batches = self.readers.batches(self.order.micro_batches(plan.micro_batch, self.rank, plan.world_size))
        reason = self._reason_to_stop(last, stop_asked=False)
        while reason is None:
            result = self._train_step(batches, last)
            if self._validation_due():
                self._validate()
            reason = self._reason_to_stop(last, result.stop)
            if reason is not None or self._checkpoint_due():
                self._save()
        self.monitor.event(self.step, "stop", f"stopped at step {self.step}: {reason}")
        return reason

    def _train_step(self, batches, last: int) -> StepResult:
        """One optimizer step: accumulate, agree on the numbers, update, report."""
        started = time.monotonic()
        engine, plan = self.engine, self.plan
        micro_batches: list[Batch] = []
        losses: list[torch.Tensor] = []
        parts: dict[str, torch.Tensor] = {}
        blackbox.take_seconds()
        for micro_step in range(plan.accumulation):
            blackbox.phase("data")
            batch = next(batches)
            micro_batches.append(batch)
            batch = batch.to(device())
            blackbox.phase("forward")
            out = engine(batch)
            self._wait()
            blackbox.phase("backward")
            engine.backward(out.loss)
            self._wait()
            losses.append(out.loss.detach())
            for name, part in out.parts.items():
                parts[name] = parts.get(name, 0.0) + part / plan.accumulation
            if micro_step < plan.accumulation - 1:
                engine.step()
        blackbox.phase("reduce")
        result = self._agree(losses, parts, micro_batches)
        if not math.isfinite(result.loss):
            self._report_nonfinite(result, micro_batches)
        blackbox.phase("optimizer")
        engine.step()  # after all ranks know that the numbers are sound
        self._wait()
        blackbox.phase("report")
        ids = self._consume(micro_batches)
        overflow = bool(getattr(engine.optimizer, "overflow", False))
        self._watch_overflows(overflow)
        elapsed = time.monotonic() - started
        norm = engine.get_global_grad_norm()
        self.monitor.train(
            {
                "step": self.step,
                "epoch": round(self.epoch, 4),
                "loss": result.loss,
                "loss_parts": result.parts,
                "lr": engine.get_lr()[0],
                "loss_scale": self._loss_scale(),
                "overflow": overflow,
                "grad_norm": None if norm is None or not math.isfinite(norm) else float(norm),
                "samples_per_s": plan.global_batch / elapsed,
                "tokens_per_s": result.tokens / elapsed,
                "step_s": elapsed,
                "left_s": elapsed * (last - self.step),
                **usage(plan.ds_config),
                "sample_ids_hash": ids,
                "phase_s": {name: round(seconds, 6) for name, seconds in blackbox.take_seconds().items()},
            }
        )
        return result

    def _wait(self) -> None:
        """For the device, where phases are to be timed: its work is done later than it is asked for."""
        if self.plan.ds_config.wall_clock_breakdown:
            get_accelerator().synchronize()

    def _agree(self, losses, parts: dict[str, torch.Tensor], micro_batches: list[Batch]) -> StepResult:
        """One all-reduce of all that the ranks must know of each other's step."""
        names = sorted(parts)
        tokens = sum(int(batch.real.sum()) for batch in micro_batches)
        numbers = torch.stack([torch.stack(losses).float().mean(), *(parts[name].float() for name in names)])
        numbers = torch.cat(
            [numbers / self.plan.world_size, torch.tensor([tokens, float(self.stop.asked)], device=numbers.device)]
        )
        dist.all_reduce(numbers)
        loss, *values, tokens, stop = numbers.tolist()
        return StepResult(loss, dict(zip(names, values, strict=True)), int(tokens), stop > 0)

    def _report_nonfinite(self, result: StepResult, micro_batches: list[Batch]) -> None:
        """Say which part and module are not finite. Under fp16 the step is skipped and training goes on; elsewhere
        nothing would skip it, and the run ends before the weights are spoilt."""
        origin = nonfinite_forward(self.engine, [batch.to(device()) for batch in micro_batches])
        broken = [name for name, value in result.parts.items() if not math.isfinite(value)]
        message = (
            f"step {self.step + 1}: the loss is {result.loss} (parts {', '.join(broken) or 'all finite'}); "
            f"first non-finite output: {origin or 'none on a second pass'}"
        )
        self.monitor.event(self.step, "nonfinite_loss", message, logging.WARNING, module=origin, parts=broken)
        if self.plan.ds_config.precision != "fp16":
            raise NonFinite(message + "; the weights are those of the last checkpoint")

    def _watch_overflows(self, overflow: bool) -> None:
        if not overflow:
            self.overflows = 0
            self.gradients.disarm()
            return
        self.overflows += 1
        self.monitor.event(
            self.step,
            "overflow",
            f"step {self.step}: a gradient overflowed fp16; the step is skipped, "
            f"the loss scale is now {self._loss_scale():g}",
            loss_scale=self._loss_scale(),
        )
        if self.overflows >= self.plan.train.report_overflows_after:
            origin = self.gradients.origin()
            self.monitor.event(
                self.step,
                "repeated_overflow",
                f"step {self.step}: {self.overflows} skipped steps in a "
                f"row; the gradient first overflows at {origin or 'an unknown module'}",
                logging.WARNING,
                module=origin,
            )
        if self.overflows >= self.plan.train.report_overflows_after - 1:  # the next one is reported
            self.gradients.arm()

    def _loss_scale(self) -> float:
        return float(getattr(self.engine.optimizer, "cur_scale", 1.0))

    def _consume(self, micro_batches: list[Batch]) -> str:
        """Move the order on by one global batch; returns the hash of its sample ids, in order."""
        plan, start = self.plan, self.order.consumed_global
        ids = self.splits["train"].run_ids(self.order.indices(start, plan.global_batch))
        for micro_step, batch in enumerate(micro_batches):
            offset = (micro_step * plan.world_size + self.rank) * plan.micro_batch
            if batch.run_ids != ids[offset : offset + plan.micro_batch]:
                raise RuntimeError(
                    f"rank {self.rank} read {batch.run_ids}, the order says {ids[offset : offset + plan.micro_batch]}"
                )
        self.order.consumed_global += plan.global_batch
        return hashlib.sha256("\n".join(ids).encode()).hexdigest()

    def _validation_due(self) -> bool:
        """Whether the last step ended an epoch to be validated. In samples: a step's share of an epoch is no binary
        fraction."""
        every = self.order.size * self.plan.train.validate_every_epochs
        after = self.order.consumed_global
        return after // every > (after - self.plan.global_batch) // every

    def _validate(self) -> None:
        blackbox.phase("eval")
        result = evaluate(self.engine, self.splits["validation"], self.plan.train.eval_micro_batch)
        kept = self.early_stop.keeps(self._criterion(result), result["loss_error"])
        self.monitor.evaluation({"step": self.step, "epoch": round(self.epoch, 4), "split": "validation", **result})
        if kept:
            self._save(best=True)

    @staticmethod
    def _criterion(result: dict) -> float:
        """What early stopping and the best model go by: the classification loss, or that of a plain language model."""
        return result["loss_parts"].get("classification", result["loss"])

    def _checkpoint_due(self) -> bool:
        """Rank 0's clock decides for all."""
        due = torch.tensor(float(self.policy.due(self.step)), device=device())
        dist.broadcast(due, 0)
        return bool(due)

    def _save(self, best: bool = False) -> None:
        """A checkpoint that cannot be written is reported, and training goes on."""
        blackbox.phase("save")
        try:
            path = self.checkpoints.save(self.state(), best)
        except SaveFailed as failed:
            self.unsaved = str(failed)
            self.monitor.event(self.step, "save_failed", self.unsaved, logging.WARNING)
        else:
            self.unsaved = None
            self.monitor.event(self.step, "checkpoint", f"saved {path}{' (best so far)' if best else ''}", best=best)
        self.policy.saved()

    def _reason_to_stop(self, last: int, stop_asked: bool) -> str | None:
        if stop_asked:
            self.interrupted = True
            return (
                f"{self.stop.reason or 'a signal to another rank'}; continue with --resume auto --run {self.plan.run}"
            )
        if self.step >= last:
            self.cut_short = self.step < self.plan.total_steps and self.epoch < 1
            return "all steps done"
        if self.early_stop.due:
            return f"no better validation in {self.early_stop.since_best} in a row"
        over = torch.tensor(float(self.time_limit.due), device=device())
        dist.broadcast(over, 0)
        return f"time limit of {self.time_limit.limit_h:g} h" if over else None

    def test(self) -> tuple[dict, Assessment | None]:
        """Test the best model: its loss, and on rank 0 how it does beside simple models. Keeps its predictions in the
        run's folder."""
        blackbox.phase("test")
        which = f"the weights of step {self.step}"
        best = self.checkpoints.load_best()
        if best is not None:
            which = f"the best weights, {best.name}"
        size, assessment = self.plan.train.eval_micro_batch, None
        result = {
            "step": self.step,
            "epoch": round(self.epoch, 4),
            "split": "test",
            "weights": which,
            **evaluate(self.engine, self.splits["test"], size),
        }
        if self.engine.module.modalities:
            table = test_predictions(self.engine, self.splits, size, self.plan.train.masked_test)
            if self.rank == 0:
                keep(table, Trained(self.plan.run).kept("test"))
                assessment = assess([table], simple_models(self.plan.data))
                result |= assessment.to_dict()
        self.monitor.evaluation(result)
        return result, assessment
