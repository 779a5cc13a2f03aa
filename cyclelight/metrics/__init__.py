"""Figures that judge saved 8-bit images: faithful to their sources, real as a reference."""
