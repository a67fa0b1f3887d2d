"""The guard: asks the Critic about answers before their readers see them."""
