"""The embedded default: a small synthetic world made from the issue cards, and the judge that knows it."""
