"""Values and formulas: no disk, no Lightning."""
