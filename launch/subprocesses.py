"""Processes of this project that a rank, or anybody else, starts beside a launch."""

import os

from launch import ROOT

#: Variables that the launcher sets for its ranks.
OF_A_LAUNCH = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "CROSS_RANK",
    "CROSS_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def environment() -> dict[str, str]:
    """The variables of a process that is no rank: with the launcher's, DeepSpeed would wait for the other ranks."""
    rest = {key: value for key, value in os.environ.items() if key not in OF_A_LAUNCH}
    return {**rest, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
