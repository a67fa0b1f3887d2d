"""What the span of a chat says of it: never its text.

Names are those of OpenTelemetry's conventions for generative AI.
"""

from __future__ import annotations

from vcllm.contracts.chat import ChatRequest
from vcllm.web.tracing import Attributes


def asked(body: ChatRequest, version: str) -> Attributes:
    """Of a request that was let in. version: who answers it."""
    return {
        "gen_ai.request.model": body.model,
        "gen_ai.request.max_tokens": body.max_completion_tokens or body.max_tokens,
        "gen_ai.request.temperature": body.temperature,
        "gen_ai.request.top_p": body.top_p,
        "gen_ai.request.choice.count": body.n,
        "gen_ai.response.model": version,
    }


def used(prompt_tokens: int, completion_tokens: int) -> Attributes:
    """Of a reply that is complete."""
    return {"gen_ai.usage.input_tokens": prompt_tokens, "gen_ai.usage.output_tokens": completion_tokens}
