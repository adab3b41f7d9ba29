"""What is particular to DeepSpeed: its configuration, accelerator, activation checkpointing, engine, checkpoints."""
