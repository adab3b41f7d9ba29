"""DeepSpeed's compiled parts: which ones a config needs, built before the ranks need them.

python -m launch.zero.ops        # build all that this machine can use; `make ops`
"""

from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException
from torch.utils.cpp_extension import CUDA_HOME

from astrobio.config import ConfigError
from launch.ds_config.config import DsConfig
from launch.zero.accelerator import on_cpu, prepare_accelerator
from launch.zero.compressed_adamw import CompressedAdamWBuilder

#: Ours.
COMPRESSED = CompressedAdamWBuilder.__name__
#: Builders of all that a CPU machine may need.
CPU_MACHINE = ("CPUAdamBuilder", "AsyncIOBuilder", "FusedAdamBuilder", "ShareMemCommBuilder", COMPRESSED)


def needed(ds_config: DsConfig) -> list[str]:
    """Builders of the ops that this config loads on this machine."""
    builders = []
    if ds_config.optimizer_offload.device != "none":
        builders.append("CPUAdamBuilder")
    elif ds_config.optimizer.type:
        builders.append("FusedAdamBuilder")
    if ds_config.compression is not None:
        builders.append(COMPRESSED)
    if ds_config.uses_nvme:
        builders.append("AsyncIOBuilder")
    if on_cpu():
        builders.append("ShareMemCommBuilder")
    return builders


def build(builders: list[str]) -> None:
    """Compile what is not compiled yet, and load it.

    Raises:
        ConfigError: the compiler fails; the message has its last words.
    """
    for name in builders:
        builder = CompressedAdamWBuilder() if name == COMPRESSED else get_accelerator().create_op_builder(name)
        if builder is None:
            continue
        try:
            builder.load(verbose=False)
        except (RuntimeError, OSError, ImportError, TypeError, MissingCUDAException, CUDAMismatchException) as error:
            raise ConfigError(
                f"DeepSpeed's {builder.name} cannot be compiled on this machine: "
                f"{str(error).strip()[-2000:]}\nit needs g++, ninja and, for NVMe, libaio's headers: "
                "`make setup` installs them or says how"
            ) from None


if __name__ == "__main__":
    prepare_accelerator()
    build(
        list(CPU_MACHINE)
        if on_cpu()
        else ["CPUAdamBuilder", "AsyncIOBuilder", COMPRESSED, *(["FusedAdamBuilder"] if CUDA_HOME else [])]
    )
