"""What is recorded of the frozen pipeline: concepts, prompts, runs, and the replay buffer."""
