"""What it costs: one program a question, each `python -m benchmarks.NAME [--quick]`, each printing Markdown.

They compare and report, and never judge a time: an exit code other than 0 means that something did not work.
`python -m benchmarks.run_all` runs them all and writes RESULTS.md.
"""
