"""What a model and a ds_config cost, found out before the run."""
