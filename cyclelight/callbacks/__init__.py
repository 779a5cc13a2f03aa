"""What Lightning calls while it runs."""
