"""Processes as facts: what state they are in (pure), what their end means (pure), and the tasks that watch them."""
