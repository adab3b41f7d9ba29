"""The CPU accelerator computes fp16, which DeepSpeed's own refuses."""

import pytest
import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

pytestmark = pytest.mark.usefixtures("accelerator")


def test_deepspeed_refuses_fp16_on_this_cpu():
    """Why there is a HostAccelerator; once DeepSpeed computes fp16 on any CPU, it can go."""
    if "avx512_fp16" in open("/proc/cpuinfo").read():
        pytest.skip("this CPU has native fp16 arithmetic")
    assert not CPU_Accelerator().is_fp16_supported()


def test_fp16_on_the_cpu_is_rounded_fp32():
    """Products whose sum fp16 cannot hold step by step: 4096 + 1 is 4096 there."""
    row = torch.tensor([[4096.0] + [1.0] * 8]).half()
    assert (row @ torch.ones(9, 1).half()).item() == 4104
    volume = torch.nn.Conv3d(1, 1, kernel_size=(1, 1, 9), bias=False).half()
    torch.nn.init.ones_(volume.weight)
    assert volume(row.view(1, 1, 1, 1, 9)).item() == 4104
    single = torch.randn(3, 4)
    torch.testing.assert_close(single @ single.T, (single.double() @ single.double().T).float())
