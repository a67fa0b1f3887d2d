"""Where state lives: Redis (jobs, leases, events, pairs, aliases, keys) and the model store (files)."""
