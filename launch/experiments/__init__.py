"""Runs that measure: what a config and a model really cost on this machine."""
