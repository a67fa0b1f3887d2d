"""Training stages: recipes that read top to bottom over shared small parts. Knows no HTTP, no Redis and no charter."""
