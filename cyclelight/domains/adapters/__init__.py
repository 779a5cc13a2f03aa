"""Foreign files -> ours: strict, one door each."""
