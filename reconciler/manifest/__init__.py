"""stack.yaml: from text with positions to what is desired."""
