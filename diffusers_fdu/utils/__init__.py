"""What every other folder may use: nested tensors, processes, statistics."""
