"""LoRA adapters on a pipe and in files: attach, read, write, stack, merge, export, describe."""
