"""The gateway: one OpenAI-compatible HTTP address in front of the local engines.

A program of its own (`python -m reconciler.gateway`): it reads the frozen routes that the controller writes,
and decides nothing. It must not import kinds, manifest, controller or store.
"""
