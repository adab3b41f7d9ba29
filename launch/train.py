"""Train the stack as one ds_config says.

    deepspeed --num_gpus 2 launch/train.py --ds_config ds_configs/zero3_offload.json

The launcher starts this script once a GPU (or once a CPU rank). It checks everything it can before the ranks meet,
builds the stack under ZeRO, trains, and tests the best model. Exit status 0: done, or stopped on request with a
checkpoint; 2: a mistake in the options, named; 1: anything else.
"""

import atexit
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout, installed or not
import launch  # noqa: F401, I001  before torch, which it tells how to allocate

import deepspeed

from astrobio.dataset import AstrobioDataset
from astrobio.schema import SPLITS
from launch.postmortem import blackbox
from launch.loop import Trainer
from launch.options import parse_arguments
from launch.preflight import preflight, user_errors, write_config
from launch.run_plan import RunPlan
from launch.readers import Readers, end_readers
from launch.report import print_plan, print_test
from launch.zero.accelerator import join_ranks, prepare_accelerator
from launch.zero.engine import build_engine


def main(argv: list[str] | None = None) -> None:
    prepare_accelerator()
    with user_errors():
        plan = preflight(parse_arguments(argv))
    quiet_libraries()
    atexit.register(end_readers)
    with user_errors():
        splits = open_splits(plan)
    readers = Readers(splits["train"], plan.train.data_workers)
    with removed_at_end(plan.swap), blackbox.recording(plan.run, plan.swap):
        # From here on ranks wait for each other. One that fails ends the launcher, which ends the others.
        blackbox.phase("init")
        join_ranks()
        blackbox.record_collectives()
        if deepspeed.comm.get_rank() == 0:
            print_plan(plan)
            write_config(plan)
        engine = build_engine(plan.stack, plan.ds_config, plan.train.seed)
        with user_errors():  # a checkpoint whose files turn out to be broken
            trainer = Trainer(plan, engine, splits, readers)
        with contextlib.closing(trainer.monitor):
            trainer.fit()
            if not (trainer.interrupted or trainer.cut_short):
                result, assessment = trainer.test()
                if trainer.rank == 0:
                    print_test(plan, result, assessment)
        deepspeed.comm.barrier()
        trainer.engine.destroy()
        deepspeed.comm.destroy_process_group()
    if trainer.unsaved:
        sys.exit(f"error: {trainer.unsaved}" if trainer.rank == 0 else 1)


def open_splits(plan: RunPlan) -> dict[str, AstrobioDataset]:
    return {
        split: AstrobioDataset(plan.data, split, plan.stack.language.max_text_tokens, plan.tokenizer)
        for split in SPLITS
    }


@contextlib.contextmanager
def removed_at_end(folders: list[Path]) -> Iterator[None]:
    """Swap files are of no use after a run, however it ended. The ranks of a machine share the folders."""
    try:
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def quiet_libraries() -> None:
    """Warnings and worse only, from libraries that tell much of themselves on every rank."""
    logging.getLogger("DeepSpeed").setLevel(os.environ.get("DS_LOG_LEVEL", "WARNING").upper())


if __name__ == "__main__":
    main()
