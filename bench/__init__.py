"""Benchmarks of recurve against torch.nn: `pytest --benchmark`."""
