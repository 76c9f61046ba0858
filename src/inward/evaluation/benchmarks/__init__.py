"""Published benchmarks: from the verdicts on a model's answers to the figures that others report."""
