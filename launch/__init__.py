"""Everything that runs: the training script, its loop, and what is particular to DeepSpeed (launch.zero)."""

import os

#: Who sets one of these decides; torch reads them when it is imported, or first allocates on a card.
_SETTINGS = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"

# By itself torch cuts a card's memory into segments for blocks of one size, and ZeRO gathers and reduces in ever other
# sizes: of the 17B stack's 11 GB under zero3_offload more than 4 would lie idle (`astrobio plan`). Segments that grow
# fit them all.
if not any(name in os.environ for name in _SETTINGS):
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def expandable_segments() -> bool:
    """Whether torch is to have expandable segments on a card."""
    settings = next((os.environ[name] for name in _SETTINGS if name in os.environ), "")
    return "expandable_segments:true" in settings.replace(" ", "").lower()
