"""Settings every model server has; each gives them its own environment prefix."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from vcllm.settings import SettingsWithSecrets


class ServerSettings(SettingsWithSecrets):
    """Where a model server listens and what it may use."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    host: str = "127.0.0.1"
    port: int = Field(ge=0, le=65535)
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on accelerators, and for larger models on CPUs that multiply it natively; float32 otherwise."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the model's arithmetic; None: torch decides."""
    max_waiting: int = Field(default=2048, ge=1)
    """Answers waiting or running, over all requests; more are refused with 429."""
    max_waiting_tokens: int = Field(default=1 << 21, ge=1)
    """Tokens these answers may come to have, prompts included; more are refused with 429."""
    max_loaded: int = Field(default=3, ge=1)
    """Versions kept in memory, the current one included; one more while versions change."""
    memory_reserve_gib: float = Field(default=0.5, ge=0)
    """Memory that stays free beside a version being loaded; less than that, and the load waits."""
    memory_wait_s: float = Field(default=300.0, ge=0)
    """How long a promoted version waits for memory before it counts as refused."""
    load_s: float = Field(default=600.0, gt=0)
    """A version that takes longer to load is refused."""
    poll_s: float = Field(default=0.5, gt=0)
    """How often the aliases are looked at."""
    drain_s: float = Field(default=30.0, ge=0)
    """How long running requests may take to finish after SIGTERM."""
    drain_pause_s: float = Field(default=0.5, ge=0)
    """How long the port stays open after SIGTERM, so that balancers see it is not ready; part of `drain_s`."""


class WriterSettings(ServerSettings):
    """Of a server whose model writes."""

    max_rows: int = Field(default=256, ge=1)
    """Answers written at the same time."""
    cache_gib: float = Field(default=4.0, gt=0)
    """Memory for the keys and values of one version; bounds rows times the positions of the longest."""
    prefill_tokens: int = Field(default=512, ge=1)
    """Prompt tokens read per step while streams run; smaller keeps them smoother under long prompts."""
    default_max_tokens: int = Field(default=256, ge=1)
    """For requests that name no limit."""

    model_path: Path | None = None
    """A folder with a model that is served as it is under the folder's name, whatever is promoted; None: our versions.
    Needs no Redis."""
    model_key: SecretStr = SecretStr("")
    """Whoever sends it as a bearer token may ask that model, besides our services; empty: nobody else may."""

    upstream_url: str = ""
    """An OpenAI-compatible server that writes in place of a model here, with or without `/v1`; empty: none."""
    upstream_key: SecretStr = SecretStr("")
    """Sent to it as a bearer token; empty: none is sent."""
    upstream_dialect: Literal["vllm", "sglang", "openai"] = "vllm"
    """What it takes beyond the OpenAI API; `openai`: nothing, as hosted models."""
    upstream_model: str = Field(default="", pattern=r"^[!-~]*$", max_length=128)
    """A model of the upstream's that is served under its own name, whatever is promoted; empty: our versions."""
    upstream_models_root: PurePosixPath | None = None
    """Where the upstream sees our model store; None: it does not, so it takes up no adapters."""
    upstream_tokenizer: Path | None = None
    """A folder with the tokenizer of `upstream_model`, for scoring; versions of our store bring theirs."""
    upstream_connect_s: float = Field(default=5.0, gt=0)
    """How long connecting to it may take."""
    upstream_silence_s: float = Field(default=300.0, gt=0)
    """How long it may send nothing; an answer that is not streamed must be whole within this time."""
    upstream_calls: int = Field(default=128, ge=1)
    """Answers of batches that it is asked for at the same time."""
    upstream_retries: int = Field(default=2, ge=0)
    """How often a call that it refused for now, or did not answer, is made again."""
    upstream_metrics: bool = False
    """Whether its own metrics (`vllm:`, `sglang:`) are shown beside ours."""

    @field_validator("upstream_url")
    @classmethod
    def _address(cls, url: str) -> str:
        if "@" in url:
            raise ValueError("it must hold no name or password; the setting upstream_key is for what proves who asks")
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
            raise ValueError("write it as http://host:port")
        return url.rstrip("/").removesuffix("/v1")
