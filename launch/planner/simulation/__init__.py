"""DeepSpeed's real engine on a simulated GPU, on tensors without data."""
