"""Inference: messages in, text out. Knows models and tokens; nothing of HTTP, Redis, roles or versions."""
