"""VC-LLM: adversarial alignment of language models for value consistency, in Chinese and English."""

__version__ = "0.1.0"
