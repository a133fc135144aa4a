"""Under which names the `inputs` of a process carry what it was started with beside the files that it was made from.

They are in the ledger and in the process's own environment: who finds it knows them, whatever was lost. Pure.
"""

from __future__ import annotations

REDUCED = "reduced"  # what it runs with in place of the manifest's settings (kinds/server/reduced)
CACHE = "cache"  # where what its KV cache holds is kept, and how large that may be (kinds/server/kept)
HTTP = "http"  # the path of an engine with flags of its own that says it is well
WITHIN = "within"  # how many seconds it has for that
CALLS = "calls"  # what it calls its model
LAYERS = "gpu_layers"  # how many of its layers lie on GPUs
