"""Domains, their autoencoders, and the folders that both are kept in."""
