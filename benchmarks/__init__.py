"""The figures that README and docs quote, each one command: ``python -m benchmarks.<name>`` from the repository."""
