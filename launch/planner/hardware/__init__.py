"""Hardware profiles: the shipped ones and the one of this machine."""
