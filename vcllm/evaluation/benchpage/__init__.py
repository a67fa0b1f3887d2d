"""The report of a bench run: one page that stands alone, one table, and the JSON from which both are made."""

from vcllm.evaluation.benchpage.page import render_bench_page
from vcllm.evaluation.benchpage.report import read_bench_report, write_bench_report
from vcllm.evaluation.benchpage.table import render_bench_table

__all__ = ["read_bench_report", "render_bench_page", "render_bench_table", "write_bench_report"]
