"""Everything that runs: the training script, its loop, and what is particular to DeepSpeed (launch.zero)."""
