"""What a ds_config says, and everything that is wrong with it."""
