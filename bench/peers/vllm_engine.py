"""vLLM's engine behind a pipe: waves of requests come as JSON lines, their times go back as JSON lines.

Runs in vLLM's own environment and imports nothing of loraplex: `python vllm_engine.py CHECKPOINT '{"a0": "PEFT"}'`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

PREFIX = "wave: "


def open_engine(checkpoint: str, adapters: dict[str, str], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The engine as `vllm serve` sets it up, and each adapter's request by name."""
    from vllm import LLM  # type: ignore[import-not-found,unused-ignore]
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]

    llm = LLM(checkpoint, enable_lora=True, max_loras=len(adapters), max_lora_rank=16, **options)
    loras = {name: LoRARequest(name, index, path) for index, (name, path) in enumerate(adapters.items(), 1)}
    return llm.llm_engine, loras


def wave(engine: Any, loras: dict[str, Any], first: int, asked: dict[str, Any]) -> dict[str, Any]:
    """All requests at once, until the last has ended; times in seconds. Request numbers count from `first`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found,unused-ignore]

    sampling = SamplingParams(
        temperature=0,
        ignore_eos=True,
        max_tokens=asked["output"],
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    last: dict[str, float] = {}
    firsts: list[float] = []
    between: list[float] = []
    tokens = 0
    begun: dict[str, float] = {}
    start = time.perf_counter()
    for index, (adapter, prompt) in enumerate(asked["requests"]):
        number = str(first + index)
        begun[number] = time.perf_counter()
        engine.add_request(
            number, {"prompt_token_ids": prompt}, sampling, lora_request=loras[adapter] if adapter else None
        )
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            gained = len(output.outputs[0].token_ids)
            if not gained:
                continue
            # vLLM appends a suffix of its own to the number.
            number = output.request_id if output.request_id in begun else output.request_id.rpartition("-")[0]
            tokens += gained
            if number in last:
                between.append(now - last[number])
            else:
                firsts.append(now - begun[number])
            last[number] = now
    return {"tokens": tokens, "seconds": time.perf_counter() - start, "first": firsts, "between": between}


def main() -> None:
    checkpoint, adapters, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    # vLLM prints to standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine, loras = open_engine(checkpoint, adapters, options)
    first = 0
    print(f"{PREFIX}ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(PREFIX + json.dumps(wave(engine, loras, first, asked)), file=answers, flush=True)
        first += len(asked["requests"])


if __name__ == "__main__":
    main()
