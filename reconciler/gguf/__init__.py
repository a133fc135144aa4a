"""GGUF files, as pure functions over bytes."""
