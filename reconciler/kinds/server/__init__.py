"""kind `server`: a process that serves one model."""
