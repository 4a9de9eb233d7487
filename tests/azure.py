"""An Azure of our own behind an HTTPS proxy: what azure-identity and azure-ai-ml ask for to register a model.

With `HTTPS_PROXY` and `REQUESTS_CA_BUNDLE` set, Azure's packages connect to the hosts that they always do, and are
answered here: logging in with a secret, a workspace's data store, its storage account, its models. The requests are
those of azure-identity 1.27, azure-ai-ml 1.35 and azure-storage-blob 12.31, as they were seen to make them.
"""

from __future__ import annotations

import json
import os
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

TENANT = "22222222-2222-2222-2222-222222222222"
SECRET = "of-the-tests"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
WORKSPACE = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/group/providers/Microsoft.MachineLearningServices/workspaces/w"
)
REGISTRY = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/group/providers/Microsoft.MachineLearningServices/registries/acme"
)
_DISCOVERY = "eastus.api.azureml.ms"
_REGION = "cert-eastus.experiments.azureml.net"
_LOGIN = "login.microsoftonline.com"
_STORAGE = "acme.blob.core.windows.net"
_TOKEN = "a-token"
_SAS = "sv=2025-01-01&sr=c&sp=rwl&sig=s"
_META = "x-ms-meta-"
_STORE = {
    "datastoreType": "AzureBlob",
    "accountName": "acme",
    "containerName": "container",
    "endpoint": "core.windows.net",
    "protocol": "https",
    "credentials": {"credentialsType": "Sas"},
}


@dataclass
class Azure:
    """What runs, and what it was given."""

    url: str
    authority: Path
    """The certificate of who signed those of its hosts."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Content by CONTAINER/NAME."""
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Bodies by NAME/VERSION."""

    def add(self, name: str, version: str, folder: Path) -> None:
        """Put a folder into the registry `acme` as a version of a model, in MLflow's form."""
        for file in folder.iterdir():
            self.blobs[f"container/{name}/mlflow/data/model/{file.name}"] = file.read_bytes()
        at = f"https://{_STORAGE}/container/{name}/mlflow"
        properties = {"modelType": "mlflow_model", "modelUri": at, "flavors": {}}
        model = {"id": f"azureml://registries/acme/models/{name}/versions/{version}", "properties": properties}
        self.models[f"{name}/{version}"] = model | {"name": version, "systemData": {}}

    forbidden: bool = False
    """Whether the account may not write models."""
    requests: list[str] = field(default_factory=list)

    def environment(self, *, secret: str | None = SECRET) -> dict[str, str]:
        """The variables that lead Azure's packages here, with somebody's name and secret or without."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("AZURE")}
        added = {"HTTPS_PROXY": self.url, "https_proxy": self.url, "REQUESTS_CA_BUNDLE": str(self.authority)}
        if secret is not None:
            client = "11111111-1111-1111-1111-111111111111"
            added |= {"AZURE_CLIENT_ID": client, "AZURE_TENANT_ID": TENANT, "AZURE_CLIENT_SECRET": secret}
        return kept | added | {"NO_PROXY": "", "no_proxy": ""}


@contextmanager
def running_azure() -> Iterator[Azure]:
    import trustme

    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "authority.pem"
        authority.cert_pem.write_to_path(file)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        azure = Azure(f"http://127.0.0.1:{server.server_address[1]}", file)
        Handler.azure, Handler.authority = azure, authority
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield azure
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class Handler(BaseHTTPRequestHandler):
    azure: ClassVar[Azure]
    authority: ClassVar[Any]
    protocol_version = "HTTP/1.1"
    host = ""

    def do_CONNECT(self) -> None:
        """Be the host that is asked for from here on."""
        self.host = self.path.partition(":")[0]
        self.send_response_only(200)
        self.end_headers()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(self.host).configure_cert(context)
        try:
            self.connection = self.request = context.wrap_socket(self.connection, server_side=True)
        except OSError:
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.close()

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.azure.requests.append(f"{self.command} https://{self.host}{split.path} {query}")
        path = unquote(split.path)
        if self.host == _LOGIN:
            self._login(path, body.decode())
        elif self.host == _STORAGE:
            self._storage(path.lstrip("/"), query, body)
        elif self.host == _DISCOVERY:
            found = {"registryName": "acme", "subscriptionId": SUBSCRIPTION, "resourceGroup": "group"}
            found |= {"primaryRegion": "eastus", "primaryRegionResourceProviderUri": f"https://{_REGION}/"}
            self._json(200, found)
        elif self.host == _REGION:
            self._registry(path.partition(REGISTRY)[2].strip("/").split("/"))
        elif self.headers.get("Authorization") != f"Bearer {_TOKEN}":
            self._json(401, {"error": {"code": "InvalidAuthenticationToken", "message": "The token is invalid."}})
        else:
            self._manage(path, body)

    do_HEAD = do_PATCH = do_POST = do_PUT = do_GET  # noqa: N815

    def _login(self, path: str, body: str) -> None:
        if path.endswith("/.well-known/openid-configuration"):
            at = f"https://{_LOGIN}/{TENANT}/oauth2/v2.0"
            self._json(
                200,
                {
                    "issuer": f"https://{_LOGIN}/{TENANT}/v2.0",
                    "authorization_endpoint": f"{at}/authorize",
                    "token_endpoint": f"{at}/token",
                },
            )
        elif path.endswith("/discovery/instance"):
            self._json(200, {"tenant_discovery_endpoint": "", "metadata": []})
        elif f"client_secret={SECRET}" in body:
            self._json(200, {"token_type": "Bearer", "expires_in": 3600, "access_token": _TOKEN})
        else:
            self._json(401, {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret."})

    def _manage(self, path: str, body: bytes) -> None:
        _, workspace, asked = path.partition(WORKSPACE)
        parts = asked.strip("/").split("/")
        match self.command, parts:
            case _ if not workspace:
                self._json(404, {"error": {"code": "ResourceNotFound", "message": f"There is no {path}."}})
            case "GET", ["datastores", "workspaceblobstore"]:
                self._json(200, {"id": path, "name": parts[1], "properties": _STORE})
            case "POST", ["datastores", "workspaceblobstore", "listSecrets"]:
                self._json(200, {"secretsType": "Sas", "sasToken": _SAS})
            case "GET", ["models", name]:
                latest = sum(each.startswith(f"{name}/") for each in self.azure.models)
                found = {"name": name, "properties": {"nextVersion": str(latest + 1)}}
                self._json(200, found) if latest else self._json(404, {"error": {"code": "UserError", "message": ""}})
            case "GET", ["models", name, "versions"]:
                there = [each for key, each in self.azure.models.items() if key.startswith(f"{name}/")]
                self._json(200, {"value": there})
            case "PUT", ["models", name, "versions", version]:
                if self.azure.forbidden:
                    self._json(403, {"error": {"code": "AuthorizationFailed", "message": "You may not write models."}})
                else:
                    properties = json.loads(body)["properties"] | {"flavors": {}}
                    model = {"id": path, "name": version, "properties": properties, "systemData": {}}
                    self.azure.models[f"{name}/{version}"] = model
                    self._json(201, model)
            case _:
                self._json(404, {"error": {"code": "UserError", "message": f"Not found: {path}."}})

    def _registry(self, parts: list[str]) -> None:
        container = f"https://{_STORAGE}/container"
        match self.command, parts:
            case "GET", ["models", name, "versions", version] if f"{name}/{version}" in self.azure.models:
                self._json(200, self.azure.models[f"{name}/{version}"])
            case "POST", ["datarefs", _, "versions", _]:
                credential = {"credentialType": "SAS", "sasUri": f"{container}?{_SAS}"}
                self._json(200, {"blobReferenceForConsumption": {"blobUri": container, "credential": credential}})
            case _:
                self._json(404, {"error": {"code": "UserError", "message": f"Not found: {parts}."}})

    def _storage(self, name: str, query: dict[str, str], body: bytes) -> None:
        blobs, metadata = self.azure.blobs, self.azure.metadata
        given = {
            key[len(_META) :].lower(): value
            for key, value in self.headers.items()
            if key.lower()[: len(_META)] == _META
        }
        if query.get("sig") != "s":
            self._answer(403, b"", {"x-ms-error-code": "AuthenticationFailed"})
        elif query.get("comp") == "list":
            container = f"{name}/"
            blobs_xml = "".join(
                f"<Blob><Name>{key.removeprefix(container)}</Name><Properties>"
                f"<Content-Length>{len(content)}</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
                for key, content in blobs.items()
                if key.startswith(container + query["prefix"])
            )
            answer = f"<EnumerationResults><Blobs>{blobs_xml}</Blobs><NextMarker/></EnumerationResults>"
            self._answer(200, answer.encode(), {"Content-Type": "application/xml"})
        elif self.command == "PUT" and query.get("comp") == "metadata":
            metadata[name] = given
            self._answer(200, b"", {"ETag": '"1"'})
        elif self.command == "PUT" and "comp" not in query:
            blobs[name], metadata[name] = body, given
            self._answer(201, b"", {"ETag": '"1"'})
        elif self.command == "GET" and name in blobs:
            size = len(blobs[name])
            self._answer(206, blobs[name], {"ETag": '"1"', "Content-Range": f"bytes 0-{size - 1}/{size}"})
        elif self.command == "HEAD" and name in blobs:
            self._answer(
                200, blobs[name], {"ETag": '"1"', **{_META + key: each for key, each in metadata[name].items()}}
            )
        else:
            self._answer(404, b"", {"x-ms-error-code": "BlobNotFound"})

    def _json(self, status: int, value: Any) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what is asked is in `requests`."""
