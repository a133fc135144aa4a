"""How the generated tests here are run: the same examples each time, and none is timed."""

from hypothesis import settings

GENERATED = settings(max_examples=80, deadline=None, derandomize=True, database=None)
