"""The controller: it watches the manifest and the world, and makes one follow the other."""
