"""One question per file, without a broker: ``python -m benchmarks.micro.framer``."""
