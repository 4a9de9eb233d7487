"""The fingerprint names the weights and what they compute, not the files they lie in."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from loraplex.build.checkpoint import read_tensors
from loraplex.build.errors import CheckpointUnsupported
from loraplex.build.fingerprint import fingerprint
from tests.checkpoints import make_checkpoint, quiet


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be changed."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=1))


def test_follows_its_definition(tmp_path: Path) -> None:
    header = (
        b'{"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"a":{"dtype":"I8","shape":[1,2],"data_offsets":[3,5]}}'
    )
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"xyzPQ")
    (tmp_path / "config.json").write_text('{"z": "ä", "dtype": "float32", "b": [1, 2.5]}')
    expected = '{"b":[1,2.5],"z":"ä"}\n["a","I8",[1,2]]\nPQ["b","U8",[3]]\nxyz'
    assert fingerprint(tmp_path) == f"sha256:{hashlib.sha256(expected.encode()).hexdigest()}"


def test_independent_of_sharding_names_and_second_copies(checkpoint: Path, copy: Path) -> None:
    from transformers import AutoModelForCausalLM

    with quiet():
        AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(copy, max_shard_size="100KB")
    (copy / "model.safetensors").unlink(missing_ok=True)
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    (copy / "consolidated.safetensors").write_bytes(b"another copy")
    change_config(copy, _name_or_path="elsewhere", torch_dtype="float32", transformers_version="6.0", use_cache=False)
    assert fingerprint(copy) == fingerprint(checkpoint)


def test_depends_on_every_weight_and_on_the_config(checkpoint: Path, copy: Path) -> None:
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    tensors = read_tensors(copy)
    seen = {fingerprint(checkpoint)}
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        for position in (tensors[name].start, tensors[name].end - 1):
            raw[position] ^= 1
            weights.write_bytes(raw)
            seen.add(fingerprint(copy))
            raw[position] ^= 1
    weights.write_bytes(raw)
    change_config(copy, rope_parameters={"rope_type": "default", "rope_theta": 20000.0})
    seen.add(fingerprint(copy))
    assert len(seen) == 8


def test_differs_between_checkpoints_of_one_shape(checkpoint: Path, tmp_path: Path) -> None:
    assert fingerprint(make_checkpoint(tmp_path / "other", "llama", seed=1)) != fingerprint(checkpoint)


def test_refused_folders(copy: Path) -> None:
    weights, index = copy / "model.safetensors", copy / "model.safetensors.index.json"
    raw = weights.read_bytes()

    def refusal() -> str:
        with pytest.raises(CheckpointUnsupported) as info:
            fingerprint(copy)
        assert "\n" not in info.value.message
        return info.value.message

    weights.write_bytes(raw[:-1])
    assert "is not a whole safetensors file: " in refusal()
    for broken in (b"", b"\xff" * 100, (1 << 40).to_bytes(8, "little") + b"{}", (3).to_bytes(8, "little") + b"[1]"):
        weights.write_bytes(broken)
        assert "is not a whole safetensors file: " in refusal()
    weights.rename(copy / "model-1.safetensors")
    (copy / "model-1.safetensors").write_bytes(raw)
    assert "has no model.safetensors" in refusal()
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert "is incomplete: model-2.safetensors is missing" in refusal()
    shutil.copy(copy / "model-1.safetensors", copy / "model-2.safetensors")
    assert "is both in model-1.safetensors and in model-2.safetensors" in refusal()
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/model.safetensors"}}))
    assert "is not the name of a safetensors file beside it" in refusal()
    index.write_text("{}")
    assert "has no readable weight_map" in refusal()
    for file in (*copy.glob("*.safetensors"), index):
        file.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    assert "has only pickled weights, which can run code" in refusal()
    (copy / "config.json").write_text("[]")
    assert "is not a JSON object" in refusal()
    (copy / "config.json").write_text("{")
    assert "cannot be read" in refusal()
    (copy / "config.json").unlink()
    assert "is not a checkpoint: it has no config.json" in refusal()
