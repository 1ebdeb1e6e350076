"""What makes `benchmarks/RESULTS.md`, and the tables in README and docs, of the scripts' numbers.

`python -m benchmarks.results` runs the scripts that `registry` names. What came of each is a
`Result` in `benchmarks/results/NAME.json`, and all that a page says is made of those files alone.
"""
