"""What a run leaves behind: its folder, figures, pages and checkpoints."""
