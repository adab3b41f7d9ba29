"""What a simulated run costs on given hardware: memory reserved, seconds, and the process around the tensors."""
