"""The flags that say which server is under load, and how requests reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from cyclopts import Parameter
from cyclopts.validators import Number

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.flags import Flag, NotNegative, OverZero, Several, json_object, pairs

Backend = Literal["openai", "vllm", "openai-chat"]
ENDPOINTS: dict[Backend, str] = {
    "openai": "/v1/completions",
    "vllm": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}
HOST, PORT = "127.0.0.1", 8000


@Parameter(name="*", group="Server")
@dataclass(frozen=True, kw_only=True)
class Target:
    """The server under load."""

    base_url: str | None = None
    "Of the server, without /v1; wins over --host and --port, as in vLLM."

    host: str | None = None
    "Where the server listens; 127.0.0.1 unless given."

    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))] | None = None
    "Its port; 8000 unless given."

    backend: Annotated[Backend, Parameter(alias="--endpoint-type")] = "openai"
    "openai and vllm send prompts to /v1/completions, openai-chat to /v1/chat/completions."

    endpoint: str | None = None
    "Path of the requests; that of the backend unless given."

    model: str | None = None
    "What is served, for the results and the tokenizer; the first of /v1/models unless given."

    served_model_name: str | None = None
    "Its name in requests; --model unless given."

    header: Several = ()
    "KEY=VALUE of each header to send besides."

    api_key: Annotated[str | None, Parameter(env_var="OPENAI_API_KEY")] = None
    "Sent as a bearer token."

    insecure: Flag = False
    "Take any TLS certificate."

    ready_check_timeout_sec: NotNegative = 0
    "Wait as long for a first answer before the run; 0 does not ask."

    request_timeout: OverZero = 6 * 60 * 60
    "Seconds after which a request has failed."

    server_metrics: Flag = False
    "Look at the server's /metrics before the run, each second of it and after it."

    server_metrics_url: str | None = None
    "Where they are, if not there; asks for --server-metrics."

    extra_body: str | None = None
    "JSON object with fields to send in every request."

    def check(self) -> None:
        """Raises OptionsInvalid."""
        if self.server_metrics_url and not self.server_metrics_url.startswith(("http://", "https://")):
            raise OptionsInvalid(f"--server-metrics-url {self.server_metrics_url}: give http://HOST:PORT/metrics")
        if self.base_url is None:
            return
        if not self.base_url.startswith(("http://", "https://")):
            other = self.base_url.split("://")[-1]
            raise OptionsInvalid(f"--base-url {self.base_url} is not of HTTP: give http://{other}")
        try:
            _ = urlsplit(self.base_url).port
        except ValueError as error:
            raise OptionsInvalid(f"--base-url {self.base_url}: {error}") from None
        if self.url.endswith("/v1") and self.path.startswith("/v1/"):
            raise OptionsInvalid(
                f"--base-url {self.base_url} ends with /v1, which --endpoint begins with: leave it out"
            )

    @property
    def url(self) -> str:
        host = self.host or HOST
        if ":" in host:
            host = f"[{host}]"
        return (self.base_url or f"http://{host}:{self.port or PORT}").rstrip("/")

    @property
    def unheeded(self) -> list[str]:
        """--host and --port where --base-url, which wins over them, names another server."""
        if self.base_url is None:
            return []
        named = urlsplit(self.base_url)
        try:
            port = named.port or {"https": 443}.get(named.scheme, 80)
        except ValueError:  # which `check` refuses
            return []
        other_host = self.host is not None and self.host != named.hostname
        other_port = self.port is not None and self.port != port
        return [f"--host {self.host}"] * other_host + [f"--port {self.port}"] * other_port

    @property
    def metrics_url(self) -> str | None:
        """Of the server's Prometheus metrics; None where nobody asked for them."""
        return self.server_metrics_url or (f"{self.url}/metrics" if self.server_metrics else None)

    @property
    def path(self) -> str:
        return self.endpoint or ENDPOINTS[self.backend]

    @property
    def chat(self) -> bool:
        return self.backend == "openai-chat"

    @property
    def headers(self) -> dict[str, str]:
        """Raises OptionsInvalid."""
        made = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return made | {key.lower(): value for key, value in pairs(self.header, "--header").items()}

    @property
    def extra(self) -> dict[str, Any]:
        """Raises OptionsInvalid."""
        return json_object(self.extra_body, "--extra-body")
