"""astrobio: what a sample is and what the network is. Knows nothing of DeepSpeed, launching or building data."""
