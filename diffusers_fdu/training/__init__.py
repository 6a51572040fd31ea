"""From a replay buffer to LoRA weights."""
