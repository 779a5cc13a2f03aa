"""The way of an image: encoded, decoded, sampled, inverted."""
