"""An adapter's files from a multipart/form-data body to a folder: PEFT's two, or our own.

No archives: what is not unpacked cannot burst.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from loraplex.server.bundle import ADAPTER_MANIFEST
from loraplex.server.conversion import PEFT_CONFIG, PEFT_WEIGHTS
from loraplex.server.errors import BodyTooLarge, InvalidRequest, StorageFailed

ACCEPTED = re.compile(
    rf"{PEFT_CONFIG}|{PEFT_WEIGHTS}|{ADAPTER_MANIFEST}|[A-Za-z0-9][A-Za-z0-9._-]{{0,200}}\.(onnx_adapter|jinja)"
)
"""Names of files; they have no folders, since none of them needs one."""
MAX_FILES = 4


def is_upload(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def receive(request: Request, folder: Path, limit: int) -> None:
    """Write the files of a body of at most `limit` bytes into the new folder `folder`, by way of temporary files.

    Raises BodyTooLarge, InvalidRequest and StorageFailed.
    """
    parser = MultiPartParser(request.headers, _limited(request, limit), max_files=MAX_FILES, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"The upload cannot be read: {error.message}") from None
    except OSError as error:
        raise StorageFailed(f"The upload could not be stored: {error.strerror}") from None
    with ExitStack() as cleanup:
        files: dict[str, UploadFile] = {}
        for _, item in form.multi_items():
            assert isinstance(item, UploadFile)  # the parser refuses plain fields
            cleanup.callback(item.file.close)
            if not item.filename or not ACCEPTED.fullmatch(item.filename):
                raise InvalidRequest(
                    f"The upload has a file {item.filename!r}: send {PEFT_CONFIG} and {PEFT_WEIGHTS}, or "
                    f"{ADAPTER_MANIFEST} and its .onnx_adapter"
                )
            if item.filename in files:
                raise InvalidRequest(f"The upload has two files {item.filename}")
            files[item.filename] = item
        try:
            await asyncio.to_thread(_write, files, folder)
        except OSError as error:
            raise StorageFailed(f"The upload could not be stored: {error.strerror}") from None


def _write(files: Mapping[str, UploadFile], folder: Path) -> None:
    folder.mkdir()
    for name, item in files.items():
        with (folder / name).open("wb") as target:
            shutil.copyfileobj(item.file, target, 2**20)


async def _limited(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(f"The upload is larger than {limit} bytes, the limit of this server")
        yield chunk
