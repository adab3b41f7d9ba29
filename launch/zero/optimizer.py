"""Which class of ZeRO's optimizer DeepSpeed builds."""

import contextlib
from collections.abc import Iterator

from deepspeed.runtime.superoffload import superoffload_stage3  # noqa: F401  derives from the class that is replaced
from deepspeed.runtime.zero import stage3
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from launch.ds_config.config import DsConfig
from launch.zero.compressed_stage3 import CompressedStage3
from launch.zero.lean_stage3 import LeanStage3


@contextlib.contextmanager
def own_optimizer(ds_config: DsConfig) -> Iterator[None]:
    """`deepspeed.initialize` inside takes our class where one serves: `CompressedStage3` where the config asks for it,
    else `LeanStage3` for an optimizer that is offloaded and reads the gradients of one sub-group at a time. Muon reads
    those of all before the step."""
    if ds_config.compression is not None:
        chosen = type("CompressedStage3", (CompressedStage3,), {"compression": ds_config.compression})
        stage3.DeepSpeedZeroOptimizer_Stage3 = chosen
    elif ds_config.lean_gradients:
        stage3.DeepSpeedZeroOptimizer_Stage3 = LeanStage3
    try:
        yield
    finally:
        stage3.DeepSpeedZeroOptimizer_Stage3 = DeepSpeedZeroOptimizer_Stage3
