"""Hardware profiles: the shipped ones, and the one of this machine."""

from launch.planner.hardware.measure import this_machine
from launch.planner.hardware.profile import Hardware, load_profile

__all__ = ["Hardware", "load_hardware"]


def load_hardware(name: str) -> Hardware:
    """A shipped profile, a YAML file, or ``this``: the machine this runs on.

    Raises:
        ConfigError: no such profile; a field that is missing, unknown, of the wrong type or without a source.
    """
    return this_machine() if name == "this" else load_profile(name)
