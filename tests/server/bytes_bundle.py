"""Bundles of a random model over bytes, with the chat template of a family that calls tools.

The model says nothing sensible by itself. What it says is decided by grammars and by logit bias; what these leave
open is random.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.checkpoints import make_checkpoint, quiet

SPECIAL = ("<s>", "</s>", "<pad>", "[TOOL_CALLS]", "<|tool_call|>", "<|/tool_call|>")
ADDED = ("<tool_call>", "</tool_call>")
"""Like SPECIAL tokens of their own, but with a text; all others are bytes."""
NEWLINE = "Ċ"
"""As ByteLevel writes it."""
CONSTANT = 10.0

HERMES = """{% if tools %}{{ '<|system|>' }}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{{ '<tool_call>{"name": ..., "arguments": ...}</tool_call>' }}{% endif %}{% for message in messages %}\
{{ '<|' + message.role + '|>' + message.content }}{% for call in message.tool_calls or [] %}\
{{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}\
{{ '}\n</tool_call>' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
LLAMA = """{% if tools %}{{ 'Respond in the format {"name": function name, "parameters": dictionary}' }}\
{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}{% endif %}{% for message in messages %}\
{% if message.role == 'tool' %}{{ 'ipython' + message.content | tojson }}{% else %}{{ message.content }}{% endif %}\
{% endfor %}"""
MISTRAL = """{% if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson }}{% endif %}{% for message in messages %}\
{% if message.tool_calls %}{{ '[TOOL_CALLS][' }}{% for call in message.tool_calls %}{% if call.id | length != 9 %}\
{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}\
{{ call.function | tojson }}{% endfor %}{{ ']' }}{% else %}{{ message.content }}{% endif %}{% endfor %}"""
PHI4 = """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and \
message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + \
'<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""
PLAIN = "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}{% endfor %}"
TEMPLATES = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "phi-4": PHI4, "generic": PLAIN}


def make_bundle(
    folder: Path, template: str, *, preferred: Mapping[str, float] | None = None, adapter: str | None = None
) -> Path:
    """Write a bundle whose base is named `bytes`. Returns its folder.

    `preferred` is added to the logits of characters or tokens, more or less, whatever stands before them. `adapter` is
    the name of an adapter that changes little.
    """
    from loraplex.build.assembly import build_bundle
    from tests.checkpoints import make_adapter

    checkpoint = make_bytes_checkpoint(folder / "checkpoint", template)
    if preferred:
        _prefer(checkpoint, preferred)
    adapters = {adapter: make_adapter(checkpoint, folder / "peft", rank=1, alpha=0.01)} if adapter else {}
    with quiet():
        build_bundle(checkpoint, adapters, folder / "bundle", name="bytes", precision="float32")
    return folder / "bundle"


def make_bytes_checkpoint(folder: Path, template: str) -> Path:
    """Write a random model over bytes with its chat template. Returns folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = _words()
    make_checkpoint(folder, vocab_size=300, max_position_embeddings=4096)
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in ADDED])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def _prefer(checkpoint: Path, preferred: Mapping[str, float]) -> None:
    """Make the first number of every hidden state large, and let the logits of some tokens grow with it."""
    from safetensors.torch import load_file, save_file

    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"][:, 0] = CONSTANT
    for text, amount in preferred.items():
        weights["lm_head.weight"][token(text), 0] = amount
    save_file(weights, file, {"format": "pt"})


@cache
def _words() -> tuple[str, ...]:
    from tokenizers import pre_tokenizers

    return (*SPECIAL, *ADDED, *sorted(pre_tokenizers.ByteLevel.alphabet()))


def token(character: str) -> int:
    """The id of an ASCII character that ByteLevel writes as itself, or of a token of its own."""
    return _words().index(character)


def likely(*characters: str, bias: float = 100) -> dict[str, float]:
    """A logit bias that makes the model prefer these characters to all others."""
    return {str(token(character)): bias for character in characters}
