"""Kinds: what they may say, and what becomes of it."""
