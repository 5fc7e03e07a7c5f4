"""What Tidings costs, path by path, against the same statements written by hand in the same run. `python -m benchmarks --help`."""
