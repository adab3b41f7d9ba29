"""What tests of several folders need."""

import pytest

from launch.zero.accelerator import prepare_accelerator


@pytest.fixture(scope="module")
def accelerator():
    """DeepSpeed's accelerator, prepared as a launch does it."""
    prepare_accelerator()
