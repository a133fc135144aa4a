"""kind `mcp`: a server of tools, started here or reached by its address."""
