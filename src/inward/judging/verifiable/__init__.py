"""The judge that needs no model: checkable constraints and exact answers."""
