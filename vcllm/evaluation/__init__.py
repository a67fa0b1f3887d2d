"""Evaluation: measures with intervals, paired comparisons, and the report. Needs no torch."""
