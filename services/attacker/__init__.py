"""The Attacker: writes queries that press a claim, or wrap a harmless question in the same way."""
