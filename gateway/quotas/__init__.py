"""What a key may use: limits and budgets, decided by each gateway on its own and brought together through Redis."""
