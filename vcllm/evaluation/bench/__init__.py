"""VC-Bench: the bilingual evaluation set, its loader and its quality checks."""

from vcllm.evaluation.bench.load import Bench, BenchError, load_bench

__all__ = ["Bench", "BenchError", "load_bench"]
