"""How fast detcli is: `python -m benchmarks` measures and writes RESULTS.md."""
