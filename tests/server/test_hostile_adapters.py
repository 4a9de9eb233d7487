"""Uploads made to do harm: all are refused with a client's status, and the server answers as before."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnxruntime import AdapterFormat, OrtValue

from loraplex.server.conversion import CPU_SECONDS
from tests.server.calls import ask, call, upload
from tests.server.conftest import TinyBundle
from tests.server.process import ServerProcess, serving, wait_until
from tests.server.test_conversion import converters, endless

Files = list[tuple[str, bytes]]
CONFIG, WEIGHTS, MANIFEST, OURS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter.json",
    "small.onnx_adapter",
)


class Corpus:
    """Variations on one good adapter, in both of its forms."""

    def __init__(self, tiny: TinyBundle) -> None:
        peft, ours = tiny.adapters["small"], tiny.folder / "adapters" / "small"
        self.config: dict[str, Any] = json.loads((peft / CONFIG).read_bytes())
        self.safetensors = (peft / WEIGHTS).read_bytes()
        self.manifest: dict[str, Any] = json.loads((ours / MANIFEST).read_bytes())
        self.onnx_adapter = (ours / OURS).read_bytes()

    def ours(self, weights: bytes | None = None, *, sign: bool = True, **changes: Any) -> Files:
        """Our own form; `sign` gives adapter.json the digest of the changed weights, so that this check is passed."""
        weights = self.onnx_adapter if weights is None else weights
        signed = {"sha256": sha256(weights).hexdigest()} if sign else {}
        return [(MANIFEST, json.dumps(self.manifest | signed | changes).encode()), (OURS, weights)]

    def peft(self, weights: bytes | None = None, **changes: Any) -> Files:
        weights = self.safetensors if weights is None else weights
        return [(CONFIG, json.dumps(self.config | changes).encode()), (WEIGHTS, weights)]

    def header(self, change: Callable[[dict[str, Any]], object]) -> bytes:
        """The safetensors file with another header."""
        length = int.from_bytes(self.safetensors[:8], "little")
        found = json.loads(self.safetensors[8 : 8 + length])
        change(found)
        raw = json.dumps(found).encode()
        return struct.pack("<Q", len(raw)) + raw + self.safetensors[8 + length :]

    def flip(self, place: float) -> bytes:
        data = bytearray(self.onnx_adapter)
        data[int(place * (len(data) - 1))] ^= 0x40
        return bytes(data)

    def tensors(self, tmp: Path, change: Callable[[dict[str, np.ndarray[Any, Any]]], object]) -> bytes:
        """The onnx_adapter file with other tensors."""
        source = tmp / "source.onnx_adapter"
        source.write_bytes(self.onnx_adapter)
        read = AdapterFormat.read_adapter(str(source))
        arrays = {name: value.numpy().copy() for name, value in read.get_parameters().items()}
        change(arrays)
        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        made = AdapterFormat()
        made.set_parameters(values)
        made.export_adapter(str(source))
        return source.read_bytes()


def first(tensors: dict[str, Any]) -> str:
    return min(name for name in tensors if name != "__metadata__")


def poison(value: float) -> Callable[[dict[str, np.ndarray[Any, Any]]], object]:
    return lambda tensors: tensors[first(tensors)].__setitem__((0, 0), value)


def rename(to: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.__setitem__(to, tensors.pop(first(tensors)))


def cases(corpus: Corpus, tmp: Path) -> Iterator[tuple[str, Files]]:
    """By name, what to upload."""
    ours, peft, header = corpus.ours, corpus.peft, corpus.header
    adapter, safetensors = corpus.onnx_adapter, corpus.safetensors
    ranks = corpus.manifest["ranks"]
    one = min(ranks)
    for size in (0, 1, 7, 64, len(adapter) // 2, len(adapter) - 200):
        yield f"cut to {size}", ours(adapter[:size])
        yield f"cut to {size}, not signed", ours(adapter[:size], sign=False)
    for tenth in range(11):
        yield f"flipped at {tenth}/10", ours(corpus.flip(tenth / 10), sign=False)
    yield "zeros", ours(bytes(10_000))
    yield "a zip bomb", ours(zlib.compress(bytes(50_000_000)))
    yield "safetensors as ours", ours(safetensors)
    yield "wrong base", ours(base_fingerprint="sha256:" + "0" * 64)
    yield "wrong dtype", ours(dtype="float16")
    yield "NaN", ours(corpus.tensors(tmp, poison(np.nan)))
    yield "infinity", ours(corpus.tensors(tmp, poison(np.inf)))
    yield "a stray name", ours(corpus.tensors(tmp, rename("model.layers.99.attn.q_proj.lora_A.weight")))
    yield "a name in unicode", ours(corpus.tensors(tmp, rename("model.layers.ü\u202e.lora_A.weight")))
    yield "half of a pair", ours(corpus.tensors(tmp, lambda tensors: tensors.pop(first(tensors))))
    yield "no tensors", ours(corpus.tensors(tmp, lambda tensors: tensors.clear()))
    yield "a huge rank", ours(ranks=ranks | {one: 2**40})
    yield "a rank of zero", ours(ranks=ranks | {one: 0})
    yield "a rank that is text", ours(ranks=ranks | {one: "2"})
    yield "a path out of the folder", ours(file="../small.onnx_adapter")
    yield "an absolute path", ours(file="/etc/passwd")
    yield "a file that is not there", ours(file="other.onnx_adapter")
    yield "a path with a zero byte", ours(file="small\0.onnx_adapter")
    yield "a path that is too long", ours(file="a" * 300)
    yield "a template's path with a zero byte", ours(chat_template="x\0.jinja")
    yield "another format", ours(format=2)
    yield "an unknown field", ours(surprise=True)
    yield "no digest", ours(sha256="")
    yield "no manifest", [(OURS, adapter)]
    yield "an empty manifest", [(MANIFEST, b""), (OURS, adapter)]
    yield "a manifest of brackets", [(MANIFEST, b"[" * 100_000), (OURS, adapter)]
    yield "a manifest of 5 MB", [(MANIFEST, b" " * 5_000_000), (OURS, adapter)]
    yield "a manifest in another encoding", [(MANIFEST, "ü".encode("latin-1")), (OURS, adapter)]
    broken = json.dumps(corpus.manifest | {"source": "?"}).encode().replace(b"?", b"\xff")
    yield "a manifest with a byte of no encoding", [(MANIFEST, broken), (OURS, adapter)]
    for name, template in {
        "a template that reaches for classes": b"{{ ''.__class__.__mro__ }}",
        "a template that is broken": b"{% for %}",
        "a template that is no text": b"\xff\xfe\xfd",
        "a template that counts": b"{% for i in range(10**12) %}x{% endfor %}",
    }.items():
        yield name, [*ours(chat_template="x.jinja"), ("x.jinja", template)]
    for size in (0, 4, 8, 100, len(safetensors) // 2, len(safetensors) - 1):
        yield f"PEFT, cut to {size}", peft(safetensors[:size])
    yield "PEFT, a header of an exabyte", peft(struct.pack("<Q", 2**60) + b"{}")
    yield "PEFT, a negative header", peft(b"\xff" * 8 + b"{}")
    yield "PEFT, a header that is no JSON", peft(struct.pack("<Q", 4) + b"nope")
    yield "PEFT, a header of brackets", peft(struct.pack("<Q", 200_000) + b"[" * 200_000)
    yield "PEFT, a shape of a petabyte", peft(header(lambda t: t[first(t)].update(shape=[2**25, 2**25])))
    yield "PEFT, a shape that overflows", peft(header(lambda t: t[first(t)].update(shape=[2**63, 2])))
    yield "PEFT, a negative shape", peft(header(lambda t: t[first(t)].update(shape=[-2, 64])))
    yield "PEFT, offsets past the end", peft(header(lambda t: t[first(t)].update(data_offsets=[2**40, 2**41])))
    yield "PEFT, offsets backwards", peft(header(lambda t: t[first(t)].update(data_offsets=[512, 0])))
    yield "PEFT, an unknown dtype", peft(header(lambda t: t[first(t)].update(dtype="F128")))
    yield "PEFT, a stray module", peft(header(rename("base_model.model.model.layers.0.nonsense.lora_A.weight")))
    yield "PEFT, half of a pair", peft(header(lambda t: t.pop(first(t))))
    yield "PEFT, NaN", peft(safetensors[:-4] + struct.pack("<f", float("nan")))
    yield "PEFT, infinity", peft(safetensors[:-4] + struct.pack("<f", float("inf")))
    yield "PEFT, a huge rank", peft(r=2**40)
    yield "PEFT, a rank of zero", peft(r=0)
    yield "PEFT, a rank that is text", peft(r="2")
    yield "PEFT, alpha is NaN", peft(lora_alpha=float("nan"))
    yield "PEFT, alpha overflows", peft(lora_alpha=1e300)
    yield "PEFT, DoRA", peft(use_dora=True)
    yield "PEFT, a bias", peft(bias="all")
    yield "PEFT, modules to save", peft(modules_to_save=["lm_head"])
    yield "PEFT, not LoRA", peft(peft_type="IA3")
    yield "PEFT, a config that is a list", [(CONFIG, b"[]"), (WEIGHTS, safetensors)]
    yield "PEFT, an empty config", [(CONFIG, b""), (WEIGHTS, safetensors)]
    yield "PEFT, a config of brackets", [(CONFIG, b"[" * 100_000), (WEIGHTS, safetensors)]
    yield "a pickle", [(CONFIG, b"{}"), ("adapter_model.bin", b"cos\nsystem\n(S'true'\ntR.")]
    yield "a name with a folder", [(CONFIG, b"{}"), ("../../adapter_model.safetensors", safetensors)]
    yield "a name with a zero byte", [(CONFIG, b"{}"), ("a\0.onnx_adapter", safetensors)]
    yield "a name that is too long", [*ours(), (300 * "a" + ".jinja", b"")]
    yield "nothing", [("adapter.json", b"")]


@pytest.fixture(scope="module")
def server(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("hostile") / "log"
    with serving(tiny.folder, log, "--dev", "--max-adapter-bytes", "20000000") as found:
        yield found
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hostile_uploads_are_refused(server: ServerProcess, tiny: TinyBundle, tmp_path: Path) -> None:
    corpus = Corpus(tiny)
    before = {name: ask(server, name, [10, 20, 30]) for name in ("tiny", *tiny.adapters)}
    engine = server.engine().pid
    wrong = []
    count = 0
    for what, files in cases(corpus, tmp_path):
        count += 1
        status, body = upload(server, "new", *files)
        if status not in (400, 413, 422) or "\n" in body["error"]["message"] or str(tmp_path) in json.dumps(body):
            wrong.append((what, status, body))
    assert not wrong
    assert count >= 80
    assert {name: ask(server, name, [10, 20, 30]) for name in before} == before
    assert server.engine().pid == engine
    assert sorted(card["name"] for card in call(server, "GET", "/v1/adapters")[1]["data"]) == sorted(tiny.adapters)
    assert upload(server, "new", *corpus.ours())[0] == 201
    assert upload(server, "new", *corpus.peft())[0] == 200
    assert ask(server, "new", [10, 20, 30]) == before["small"]


def test_a_pattern_that_takes_for_ever_is_ended(server: ServerProcess, tiny: TinyBundle, tmp_path: Path) -> None:
    """By the limit of its process, which is lowered here: nobody is to wait for it."""
    folder = endless(tiny, tmp_path / "peft")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(upload, server, "endless", folder / CONFIG, folder / WEIGHTS)
        wait_until(lambda: len(converters(server)) == 1)
        (process,) = converters(server)
        wait_until(lambda: process.rlimit(psutil.RLIMIT_CPU) == (CPU_SECONDS, CPU_SECONDS + 5))
        process.rlimit(psutil.RLIMIT_CPU, (2, 7))
        status, body = answer.result()
    assert status == 422
    assert f"took more than {CPU_SECONDS} s to convert" in body["error"]["message"]
    assert call(server, "GET", "/v1/adapters/endless")[0] == 404
