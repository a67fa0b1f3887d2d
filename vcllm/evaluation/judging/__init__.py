"""Judges of answers: language models by probabilities or by reason, guards, reward models, choices, rules.

None of them is the Critic that trained the model: they have their own wording and their own servers.
"""
