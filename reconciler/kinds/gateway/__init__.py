"""kind `gateway`: the one local API, as a process and its routes."""
