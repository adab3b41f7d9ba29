"""The runtime on DeepSpeed: accelerator, engine, weights, training state, activation checkpointing, NVMe."""
