"""Other tools' files: model files that they brought to this machine, and settings that say what this one says.

They are read, never changed. One file a tool; each says in its own words what a manifest can say, and names the rest.
"""
