"""Exporters: a suite in the form of other tools, with everything they need to ask it and to judge the answers."""

from vcllm.evaluation.exporting.export import FORMATS, Exported, export_suite

__all__ = ["FORMATS", "Exported", "export_suite"]
