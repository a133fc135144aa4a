"""kind `model`: bytes on disk, verified by sha256."""
