"""The pure heart: types, planner and decisions as functions of facts. Nothing here does I/O or reads a clock."""
