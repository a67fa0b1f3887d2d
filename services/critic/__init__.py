"""The Critic: judges answers one by one, and which of two is the better."""
