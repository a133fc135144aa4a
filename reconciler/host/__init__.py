"""The machine, without policy: files, processes, probes, downloads. Every change made here passes `Effects`."""
