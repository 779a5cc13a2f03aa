"""Guidance without training: Langevin dynamics in the latent space of generators."""
