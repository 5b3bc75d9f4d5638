"""Reading checkpoints of other code bases."""
