"""Which device DeepSpeed computes on, and what its CPU accelerator needs."""

import psutil
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator


class HostAccelerator(CPU_Accelerator):
    """DeepSpeed's CPU accelerator, with fp16.

    deepspeed 0.19.8 refuses fp16 on a CPU without native fp16 arithmetic (`CPU_Accelerator.is_fp16_supported`),
    though torch computes it on any CPU. With this, a config with dynamic loss scaling runs unchanged on a machine
    without a GPU: slowly, but with the same numbers.
    """

    def is_fp16_supported(self) -> bool:
        return True


def prepare_accelerator():
    """The accelerator to use; on a machine without one, the CPU with fp16. Call before anything asks DeepSpeed."""
    if get_accelerator().device_name() == "cpu" and not isinstance(get_accelerator(), HostAccelerator):
        set_accelerator(HostAccelerator())
    return get_accelerator()


def on_cpu() -> bool:
    return get_accelerator().device_name() == "cpu"


def memory_bytes() -> tuple[int, int]:
    """Peak bytes of the device since the start, and the resident bytes of this process.

    On the CPU accelerator the device is the host: the first is then the process's resident size too.
    """
    resident = psutil.Process().memory_info().rss
    return (resident if on_cpu() else get_accelerator().max_memory_allocated()), resident
