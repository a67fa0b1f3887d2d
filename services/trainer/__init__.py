"""The Celery trainer: `rollouts` (the loop, I/O bound) and `training` (one run per device)."""
