"""A hub of our own: the endpoints of the Hugging Face hub that huggingface_hub uses to fetch and to publish a model.

Run as `python -m tests.hub FOLDER`, a process of its own; it prints its address. Repositories lie under FOLDER as

    repos/OWNER/NAME/repo.json       whether it is private, and its newest commit
    repos/OWNER/NAME/COMMIT/...      the files of each commit
    requests.log                     one line for each request
    stalled                          while it is there, files do not come

The token that may write, and read what is private, is `TOKEN`. The endpoints are those that huggingface_hub 2.4 calls,
as its source has them: `hf_api.py`, `_commit_api.py`, `lfs.py` and `file_download.py`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "hf_of_the_tests"


@dataclass(frozen=True)
class Hub:
    """A running hub."""

    url: str
    folder: Path

    def environment(self, home: Path, *, token: bool = False) -> dict[str, str]:
        """The variables that make huggingface_hub use it, with a cache of its own in `home`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        added = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        # A stalled hub stays so for as long as a test has it, and a slow machine answers late.
        added |= {"HF_HUB_DOWNLOAD_TIMEOUT": "100", "HF_HUB_ETAG_TIMEOUT": "100"}
        return kept | added | ({"HF_TOKEN": TOKEN} if token else {})

    def add(self, name: str, source: Path, *, private: bool = False) -> str:
        """Put a folder there as a new commit of OWNER/NAME; return the commit."""
        repository = Repository(self.folder / "repos" / name)
        repository.folder.mkdir(parents=True, exist_ok=True)
        commit = hashlib.sha1(os.urandom(20)).hexdigest()
        shutil.copytree(source, repository.folder / commit)
        repository.write(private, commit)
        return commit

    def repository(self, name: str) -> Repository:
        return Repository(self.folder / "repos" / name)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """A hub that answers, but whose files do not come."""
        mark = self.folder / "stalled"
        mark.touch()
        try:
            yield
        finally:
            mark.unlink()

    def requests(self) -> list[str]:
        log = self.folder / "requests.log"
        return log.read_text().splitlines() if log.exists() else []


@dataclass(frozen=True)
class Repository:
    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "repo.json").read_text())
        return state

    def write(self, private: bool, commit: str) -> None:
        (self.folder / "repo.json").write_text(json.dumps({"private": private, "commit": commit}))

    @property
    def files(self) -> Path:
        """Folder of the newest commit."""
        return self.folder / str(self.state["commit"])


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    process = subprocess.Popen([sys.executable, "-m", "tests.hub", str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Hub(process.stdout.readline().strip(), folder)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def main(root: Path) -> None:
    import socket

    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    class Refused(Exception):
        def __init__(self, status: int, code: str) -> None:
            self.status, self.code = status, code

    async def refuse(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return JSONResponse(
            {"error": error.code}, error.status, {"X-Error-Code": error.code, "X-Error-Message": error.code}
        )

    def writes(request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {TOKEN}"

    def repository(request: Request) -> Repository:
        found = Repository(root / "repos" / request.path_params["owner"] / request.path_params["name"])
        if not (found.folder / "repo.json").is_file():
            raise Refused(404 if writes(request) else 401, "RepoNotFound")
        if found.state["private"] and not writes(request):
            raise Refused(401, "RepoNotFound")
        return found

    def commit_of(request: Request, found: Repository) -> str:
        revision = request.path_params.get("revision", "main")
        commit = str(found.state["commit"]) if revision == "main" else revision
        if not (found.folder / commit).is_dir() or commit in ("", "."):
            raise Refused(404, "RevisionNotFound")
        return commit

    def files(folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file())

    async def info(request: Request) -> Response:
        found = repository(request)
        commit = commit_of(request, found)
        siblings = [
            {"rfilename": str(path.relative_to(found.folder / commit))} for path in files(found.folder / commit)
        ]
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        state = {"private": found.state["private"], "tags": [], "downloads": 0, "likes": 0}
        return JSONResponse({"id": name, "modelId": name, "sha": commit, "siblings": siblings, **state})

    async def tree(request: Request) -> Response:
        found = repository(request)
        folder = found.folder / commit_of(request, found)
        return JSONResponse(
            [
                {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": etag(path)}
                for path in files(folder)
            ]
        )

    async def resolve(request: Request) -> Response:
        found = repository(request)
        commit = commit_of(request, found)
        path = found.folder / commit / request.path_params["path"]
        while request.method == "GET" and (root / "stalled").exists():  # noqa: ASYNC110 - another process makes the file
            await asyncio.sleep(0.02)
        if not path.is_file():
            raise Refused(404, "EntryNotFound")
        return FileResponse(path, headers={"ETag": f'"{etag(path)}"', "X-Repo-Commit": commit})

    async def create(request: Request) -> Response:
        if not writes(request):
            raise Refused(401, "Unauthorized")
        wanted = await request.json()
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        made = Repository(root / "repos" / name)
        if (made.folder / "repo.json").exists():
            return JSONResponse({"error": "exists", "url": f"{url}/{name}"}, 409)
        (made.folder / ("0" * 40)).mkdir(parents=True)
        made.write(wanted.get("visibility") == "private" or bool(wanted.get("private")), "0" * 40)
        return JSONResponse({"url": f"{url}/{name}", "name": name})

    async def preupload(request: Request) -> Response:
        wanted = (await request.json())["files"]
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["size"] > 4096 else "regular", "shouldIgnore": False}
            for file in wanted
        ]
        return JSONResponse({"files": modes})

    async def batch(request: Request) -> Response:
        objects = [
            {**each, "authenticated": True, "actions": {"upload": {"href": f"{url}/lfs/{each['oid']}"}}}
            for each in (await request.json())["objects"]
        ]
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def store(request: Request) -> Response:
        body = await request.body()
        (root / "lfs").mkdir(exist_ok=True)
        (root / "lfs" / hashlib.sha256(body).hexdigest()).write_bytes(body)
        return Response()

    async def commit(request: Request) -> Response:
        if not writes(request):
            raise Refused(403, "Forbidden")
        found = repository(request)
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        new = hashlib.sha1(os.urandom(20)).hexdigest()
        folder = found.folder / new
        shutil.copytree(found.files, folder)
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            path = folder / value.get("path", "")
            match entry["key"]:
                case "file":
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(value["content"]))
                case "lfsFile":
                    path.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(root / "lfs" / value["oid"], path)
                case "deletedFile":
                    path.unlink()
        found.write(found.state["private"], new)
        return JSONResponse({"commitUrl": f"{url}/{name}/commit/{new}", "commitOid": new, "pullRequestUrl": None})

    async def validate(_request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    model = "/api/models/{owner}/{name}"
    app = Starlette(
        routes=[
            Route(f"{model}/revision/{{revision}}", info),
            Route(f"{model}/tree/{{revision}}", tree),
            Route(f"{model}/preupload/{{revision}}", preupload, methods=["POST"]),
            Route(f"{model}/commit/{{revision}}", commit, methods=["POST"]),
            Route(model, info),
            Route("/api/repos/create", create, methods=["POST"]),
            Route("/api/validate-yaml", validate, methods=["POST"]),
            Route("/lfs/{oid}", store, methods=["PUT"]),
            Route("/{owner}/{name}.git/info/lfs/objects/batch", batch, methods=["POST"]),
            Route("/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
        ],
        exception_handlers={Refused: refuse},
    )

    async def logged(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            with (root / "requests.log").open("a") as log:
                log.write(f"{scope['method']} {scope['path']}\n")
        await app(scope, receive, send)

    print(url, flush=True)
    uvicorn.Server(uvicorn.Config(logged, log_level="warning", lifespan="off")).run(sockets=[listener])


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
