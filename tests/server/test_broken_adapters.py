"""A broken adapter is refused at start, with one line that says which and why; the others are served."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import openai
import pytest

from loraplex.server.bundle import AdapterManifest, Bundle, read_adapter_manifest, sha256, write_manifest
from tests.server.conftest import TinyBundle
from tests.server.process import command, serving


def _edit(folder: Path, **changes: object) -> None:
    manifest = msgspec.structs.replace(read_adapter_manifest(folder), **changes)
    write_manifest(folder / "adapter.json", manifest)


def _weights(folder: Path) -> Path:
    return folder / read_adapter_manifest(folder).file


def flip_a_byte(folder: Path) -> None:
    data = bytearray(_weights(folder).read_bytes())
    data[len(data) // 2] ^= 0x10
    _weights(folder).write_bytes(data)


def truncate(folder: Path) -> None:
    _weights(folder).write_bytes(_weights(folder).read_bytes()[:-100])


def truncate_and_sign(folder: Path) -> None:
    truncate(folder)
    _edit(folder, sha256=sha256(_weights(folder)))


def another_base(folder: Path) -> None:
    _edit(folder, base_fingerprint="sha256:" + "0" * 64)


def another_dtype(folder: Path) -> None:
    _edit(folder, dtype="float16")


def another_rank(folder: Path) -> None:
    ranks = read_adapter_manifest(folder).ranks
    _edit(folder, ranks={name: rank + 1 for name, rank in ranks.items()})


def another_projection(folder: Path) -> None:
    ranks = read_adapter_manifest(folder).ranks
    _edit(folder, ranks={name.replace("0.attn", "9.attn"): rank for name, rank in ranks.items()})


def no_tensors(folder: Path) -> None:
    from onnxruntime import AdapterFormat

    file = AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters({})
    file.export_adapter(str(_weights(folder)))
    _edit(folder, sha256=sha256(_weights(folder)), ranks={})


def no_weights(folder: Path) -> None:
    _weights(folder).unlink()


def outside(folder: Path) -> None:
    _edit(folder, file="../../bundle.json")


def no_json(folder: Path) -> None:
    (folder / "adapter.json").write_text("{")


def no_text(folder: Path) -> None:
    _edit(folder, description="?")
    path = folder / "adapter.json"
    path.write_bytes(path.read_bytes().replace(b"?", b"\xff"))


def zero_byte(folder: Path) -> None:
    _edit(folder, file="\0")


def broken_template(folder: Path) -> None:
    (folder / "template.jinja").write_text("{% for %}")
    _edit(folder, chat_template="template.jinja")


BREAKAGES: dict[Callable[[Path], None], str] = {
    flip_a_byte: "SHA-256",
    truncate: "SHA-256",
    truncate_and_sign: "not an adapter file",
    another_base: "another base",
    another_dtype: "float16",
    another_rank: "shape",
    another_projection: "not in adapter.json",
    no_tensors: "no tensors",
    no_weights: "no such file",
    outside: "inside this folder",
    no_json: "adapter.json",
    no_text: "adapter.json",
    zero_byte: "cannot be a path",
    broken_template: "template",
}


def broken_copy(tiny: TinyBundle, folder: Path, breakages: list[Callable[[Path], None]]) -> Path:
    """The tiny bundle with one more adapter a breakage, named after it."""
    shutil.copytree(tiny.folder, folder)
    bundle = Bundle.open(folder)
    adapters = dict(bundle.manifest.adapters)
    for breakage in breakages:
        adapters[breakage.__name__] = f"adapters/{breakage.__name__}"
        shutil.copytree(bundle.adapter("small"), folder / "adapters" / breakage.__name__)
        breakage(folder / "adapters" / breakage.__name__)
    write_manifest(folder / "bundle.json", msgspec.structs.replace(bundle.manifest, adapters=adapters))
    return folder


def test_broken_adapters_are_left_out(tiny: TinyBundle, tmp_path: Path) -> None:
    bundle = broken_copy(tiny, tmp_path / "bundle", list(BREAKAGES))
    with serving(bundle, tmp_path / "log") as server:
        served = {model.id for model in server.client.models.list()}
        assert served == {"tiny", *tiny.adapters}
        lines = [line for line in server.log.read_text().splitlines() if "refused" in line]
        assert len(lines) == len(BREAKAGES)
        for breakage, reason in BREAKAGES.items():
            (line,) = (line for line in lines if re.search(rf"\b{breakage.__name__}\b", line))
            assert reason in line
            with pytest.raises(openai.NotFoundError, match="refused") as refusal:
                server.client.completions.create(model=breakage.__name__, prompt=[10])
            assert reason in refusal.value.message
        assert set(server.get("/health")[1]["refused"]) == {breakage.__name__ for breakage in BREAKAGES}
        assert "Traceback" not in server.log.read_text()


def test_a_strict_server_does_not_start(tiny: TinyBundle, tmp_path: Path) -> None:
    bundle = broken_copy(tiny, tmp_path / "bundle", [flip_a_byte])
    result = subprocess.run(command(bundle, "--strict"), capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "flip_a_byte" in line
    assert "SHA-256" in line


def test_an_adapter_with_its_own_template_and_sampling(tiny: TinyBundle, tmp_path: Path) -> None:
    def customise(folder: Path) -> None:
        (folder / "template.jinja").write_text("{{ bos_token }}w50 {{ messages[0].content }}")
        _edit(folder, chat_template="template.jinja", sampling={"temperature": 0, "max_tokens": 5})

    bundle = broken_copy(tiny, tmp_path / "bundle", [customise])
    assert isinstance(read_adapter_manifest(bundle / "adapters/customise"), AdapterManifest)
    with serving(bundle, tmp_path / "log", "--strict") as server:
        client = server.client
        chat = client.chat.completions.create(model="customise", messages=[{"role": "user", "content": "w60"}])
        plain = client.completions.create(model="small", prompt=[0, 50, 60], max_tokens=5, temperature=0)
        assert chat.choices[0].message.content == plain.choices[0].text.strip()
        assert chat.usage is not None
        assert chat.usage.prompt_tokens == 3
