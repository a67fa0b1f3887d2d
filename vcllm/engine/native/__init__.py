"""Llama-shaped models on a CPU through C, where `python -m vcllm.engine.native.build` has compiled it."""
