"""The Hugging Face Hub: push an adapter with its card and pictures, and find adapters."""
