"""Flags of other benchmark clients: what they are called here, or what to do instead."""

from __future__ import annotations

from cyclopts import CycloptsError, CycloptsPanel, UnknownOptionError

PAGE = "--html FILE writes a page with the course of the run and its distributions"
RENAMED = {
    # SGLang's bench_serving
    "--warmup-requests": "--num-warmups",
    "--lora-name": "--adapters",
    "--lora-request-distribution": "--adapter-mix",
    "--random-input": "--random-input-len",
    "--random-output": "--random-output-len",
    "--output-file": "--result-filename, with --save-result",
    "--output-details": "--save-detailed",
    "--extra-request-body": "--extra-body",
    "--apply-chat-template": "--backend openai-chat",
    "--disable-ignore-eos": "--no-ignore-eos",
    # SGLang's and vLLM's clients for conversations
    "--gsp-num-turns": "--multi-turn-num-turns, with --multi-turn",
    "--num-rounds": "--multi-turn-num-turns, with --multi-turn",
    "--sub-question-input-length": "--per-turn-input-len, with --multi-turn",
    "--num-clients": "--multi-turn-concurrency, with --multi-turn",
    "--max-active-conversations": "--multi-turn-concurrency, with --multi-turn",
    "--max-turns": "--multi-turn-max-turns, with --multi-turn",
    # aiperf, genai-perf and guidellm
    **dict.fromkeys(
        ("--conversation-num", "--num-conversations", "--num-sessions"), "--num-prompts, with --multi-turn"
    ),
    **dict.fromkeys(("--conversation-turn-mean", "--session-turns-mean"), "--multi-turn-num-turns, with --multi-turn"),
    "--conversation-turn-delay-mean": "--multi-turn-delay-ms, with --multi-turn",
    "--session-turn-delay-mean": "--multi-turn-delay-ms, with --multi-turn",
    "--session-concurrency": "--multi-turn-concurrency, with --multi-turn",
    "--url": "--base-url",
    "--target": "--base-url",
    "--concurrency": "--max-concurrency",
    "--request-count": "--num-prompts",
    "--max-requests": "--num-prompts",
    "--benchmark-duration": "--max-seconds",
    "--warmup-request-count": "--num-warmups",
}
INSTEAD = {
    # vllm bench serve
    "--use-beam-search": "beam search is not measured here: leave it out",
    "--profile": "it starts the profiler of vLLM's server, which is none of a client's: leave it out",
    "--plot-timeline": PAGE,
    "--timeline-itl-thresholds": PAGE,
    "--plot-dataset-stats": PAGE,
    "--chat-template-kwargs": "the server applies the template: give --extra-body '{\"chat_template_kwargs\": {...}}'",
    "--no-stream": "files are read whole here: leave it out",
    "--random-batch-size": "embeddings are not measured here: leave it out",
    "--no-reranker": "reranking is not measured here: leave it out",
    # SGLang's bench_serving
    "--flush-cache": "leave it out, and take another --seed for every run, so that no prefix cache answers",
    "--disable-stream": "TTFT and ITL need a stream: leave it out",
}
DATASETS = ("hf", "sonnet", "spec-bench", "speed-bench", "blazedit", "random-mm", "asr", "txt-slices", "burstgpt")
"""Beginnings of flags of datasets that are not here."""


def explained(error: CycloptsError) -> object:
    """What is printed of an error on the command line."""
    if not isinstance(error, UnknownOptionError):
        return CycloptsPanel(error)
    given = (error.token.keyword or error.token.value).partition("=")[0]
    flag = given.replace("_", "-")
    if flag in RENAMED:
        return CycloptsPanel(f"{given} is {RENAMED[flag]} here.")
    if flag in INSTEAD:
        return CycloptsPanel(f"{given}: {INSTEAD[flag]}.")
    if flag.startswith(tuple(f"--{each}-" for each in DATASETS)):
        return CycloptsPanel(
            f"{given} is of a dataset that is not here: write its prompts as JSON lines for --dataset-name custom."
        )
    return CycloptsPanel(error)
