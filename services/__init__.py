"""The processes of the system: three model servers and the trainer. None imports another."""
