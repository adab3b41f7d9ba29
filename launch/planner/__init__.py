"""Predicts what a model costs under a ds_config, before a run."""
