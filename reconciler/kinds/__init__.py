"""The kinds of resources. A new one is a folder here and a line in KINDS (see `registry`)."""
