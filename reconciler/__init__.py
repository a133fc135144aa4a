"""Reconciler: write one stack.yaml, and the machine becomes it."""

__version__ = "0.1.0"
