"""Real things for tests to talk to: tiny models, a file server, a package index, a fake engine, process look-ups."""
