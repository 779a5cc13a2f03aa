"""Lightning modules: thin, no mathematics."""
