"""Reads a ds_config and finds everything that is wrong with it."""
