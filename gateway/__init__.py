"""The gateway: chat with the aligned model, jobs, models and keys behind one door. Never imports torch."""
