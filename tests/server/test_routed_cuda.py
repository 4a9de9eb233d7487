"""`loraplex serve` on a GPU, as it is found by default: seeds, guides, stop strings and clients that leave.

Skipped where there is no CUDA: continuous integration has none.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
import pytest

from tests.checkpoints import make_adapter, make_checkpoint, quiet
from tests.server.process import ServerProcess, serving

pytestmark = [
    pytest.mark.skipif(not og.is_cuda_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
]

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
MODELS = ("bytes", "one", "two", "three")
PROMPT = list(range(40, 90))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model over bytes, so that guides have something to choose from, and three adapters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from loraplex.build.assembly import build_bundle

    folder = tmp_path_factory.mktemp("bytes")
    # Head size 64, the smallest that the paged attention kernels take.
    checkpoint = make_checkpoint(
        folder / "checkpoint",
        vocab_size=300,
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    words = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(words[:3])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(checkpoint)
    peft = {
        name: make_adapter(checkpoint, folder / name, rank=rank, alpha=4, seed=rank)
        for name, rank in (("one", 4), ("two", 8), ("three", 16))
    }
    with quiet():
        build_bundle(checkpoint, peft, folder / "bundle", name="bytes", precision="float16", device="cuda")
    return folder / "bundle"


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two slots for three adapters."""
    folder = tmp_path_factory.mktemp("routed")
    flags = ("--max-running", "16", "--max-linked", "2", "--link-cache", str(folder / "cache"))
    with serving(bundle, folder / "log", *flags, "--kv-cache-mib", "512") as found:
        yield found
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    assert "routed" in log


def ask(server: ServerProcess, model: str, **options: Any) -> Any:
    """The first choice of an answer."""
    chosen: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0}
    return server.client.completions.create(model=model, **chosen | options).choices[0]


def test_seeds(server: ServerProcess) -> None:
    sampled: dict[str, Any] = {"temperature": 1.5, "extra_body": {"ignore_eos": True}}
    for model in MODELS:
        first, second = (ask(server, model, seed=7, **sampled).text for _ in range(2))
        assert first == second
        assert ask(server, model, seed=8, **sampled).text != first


def test_guides(server: ServerProcess) -> None:
    """Hot enough that a random model finds its way out of the white space that JSON allows."""
    for model in MODELS:
        answer = server.client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Which?"}],
            max_tokens=600,
            temperature=2,
            seed=1,
            response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}},
        )
        found = json.loads(answer.choices[0].message.content or "")
        assert found["name"] in ("red", "blue")
        assert 1 <= found["count"] <= 99
        guided = ask(server, model, extra_body={"guided_regex": "[a-c]{3,8}-[0-9]{2}"})
        assert re.fullmatch("[a-c]{3,8}-[0-9]{2}", guided.text)


def test_stop_strings(server: ServerProcess) -> None:
    for model in MODELS:
        whole = ask(server, model, extra_body={"guided_regex": "[a-f]{24}"}).text
        stop = whole[8:11]
        stopped = ask(server, model, stop=[stop], extra_body={"guided_regex": "[a-f]{24}"})
        assert stopped.text == whole.partition(stop)[0]
        assert stopped.finish_reason == "stop"


def test_a_client_that_leaves_cancels(server: ServerProcess) -> None:
    labels = {"adapter": "two", "finish_reason": "cancelled"}
    before = server.metric("loraplex_requests_total", **labels)
    stream = server.client.completions.create(
        model="two", prompt=PROMPT, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    server.wait_for("loraplex_requests_total", before + 1, **labels)
    server.wait_for("loraplex_requests_running", 0, adapter="two")


def test_many_at_once_answer_as_each_alone(server: ServerProcess) -> None:
    """More adapters than slots. Float16 may choose otherwise near a tie, in another batch: beginnings are compared."""
    alone = {model: ask(server, model).text for model in MODELS}

    async def together() -> list[Any]:
        async with server.async_client as client:
            create = client.completions.create
            asked = (create(model=model, prompt=PROMPT, temperature=0, max_tokens=40) for model in MODELS * 6)
            return await asyncio.gather(*asked)

    for model, answer in zip(MODELS * 6, asyncio.run(together()), strict=True):
        assert answer.choices[0].text[:6] == alone[model][:6]
