"""Where work is done. `task` is the seam: a task says what to do, an executor does its shards, `complete` stores them."""
