"""What carries the loop: where a run keeps its things, how stages are cut, run and resumed. No room knows of it."""
