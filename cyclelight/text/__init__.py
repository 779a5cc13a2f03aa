"""Text: what prompts are to a model."""
