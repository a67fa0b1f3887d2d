"""Data intake: the operator's own files, read, checked and brought into the one form that training takes.

Knows files and rows. Does not know tokenizers' templates, the evaluation, or what a stage does with its rows.
"""
