"""Two bands steer a round: attack success and over-refusal, so that refusing everything never wins."""

from __future__ import annotations

from vcllm.contracts.charter import Thresholds


def next_benign_share(
    share: float, start: float, over_refusal: float, attack_success: float, limits: Thresholds
) -> float:
    """Benign share of the next round: up when harmless questions are refused, down while only attacks are a problem.

    Moves by a quarter at a time and stays within [half, double] of the recipe's `start`.
    """
    if over_refusal > limits.max_over_refusal:
        share *= 1.25
    elif attack_success > limits.max_attack_success:
        share *= 0.8
    return min(max(share, start / 2), min(0.9, start * 2))
