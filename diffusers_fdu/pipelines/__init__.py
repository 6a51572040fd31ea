"""How a diffusers pipeline is called: its denoiser, tokenizers, and where they run."""
