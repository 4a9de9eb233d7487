"""What is said of a run besides its figures: warnings where they are doubtful, notes where they are not."""

from __future__ import annotations

from loraplex.bench.results.result import Run

BUSY = 0.8
"""Share of a core above which the client may be what is measured."""
SEVERAL = 2.0
"""Tokens a chunk from which ITL is too far from a time between tokens to be compared as one."""
UNLIKE = 1.5
"""Longest mean answer of an adapter by the shortest from which their tokens/s a request differ for that reason."""


def warnings(run: Run) -> list[str]:
    """What makes the figures doubtful."""
    found = []
    share, tokens = run.client.core_share, run.tokens
    done, failed = run.totals.completed, run.totals.failed
    if run.interrupted:
        ended = done + failed
        found.append(f"interrupted: only the {ended} of {ended + run.unfinished} requests that had ended by then count")
    if (talks := run.conversations) is not None and talks.turns_given_up:
        found.append(
            f"{talks.conversations_failed} of {talks.num_conversations} conversations ended with a turn that failed: "
            f"{talks.turns_given_up} turns after it were not sent"
        )
    if done and failed:
        found.append(f"{failed} of {done + failed} requests failed: latencies are of the others")
    if share > BUSY:
        found.append(
            f"the client took {share:.0%} of a core: the latencies may be its own; lower the load, or run two clients"
        )
    if broken := [each for each in run.churn if each.error]:
        found.append(f"{len(broken)} of {len(run.churn)} loads during the run failed: {broken[0].error}")
    if run.cold_error:
        found.append(f"adapters of --cold were not all measured: {run.cold_error}")
    if run.server_metrics is not None and run.server_metrics.error:
        found.append(f"no metrics of the server, {run.server_metrics.url}: {run.server_metrics.error}")
    if tokens.without_usage:
        found.append(f"{tokens.without_usage} of {done} answers came without usage: their tokens were counted here")
    if tokens.more_chunks:
        found.append(
            f"{tokens.more_chunks} of {done} answers had more chunks with text than usage has tokens: "
            "one of the two is wrong"
        )
    if tokens.fewer_chunks and tokens.usage_tokens >= SEVERAL * tokens.chunks:
        found.append(
            f"the server sends several tokens in one chunk ({tokens.usage_tokens} tokens in {tokens.chunks} chunks): "
            "ITL is the time between chunks and the peak throughput counts them, so compare TPOT, which goes by tokens"
        )
    return found


def notes(run: Run) -> list[str]:
    """What a reader of the figures should know, though nothing is wrong with them."""
    found = []
    tokens = run.tokens
    if tokens.fewer_chunks and tokens.usage_tokens < SEVERAL * tokens.chunks:
        found.append(
            f"{tokens.fewer_chunks} of {run.totals.completed} answers came in fewer chunks with text than they have "
            f"tokens ({tokens.chunks} chunks, {tokens.usage_tokens} tokens). That is no error: a token may have no "
            "text of its own, such as an end token that ignore_eos passes over, and a server may send two at once. "
            "ITL is the time between chunks and the peak throughput counts them; TPOT, E2EL and tokens/s go by tokens"
        )
    lengths = {
        name: each.total_output_tokens / each.completed
        for name, each in run.adapters.items()
        if each.total_output_tokens
    }
    if len(lengths) > 1 and max(lengths.values()) >= UNLIKE * min(lengths.values()):
        longest, shortest = max(lengths, key=lambda name: lengths[name]), min(lengths, key=lambda name: lengths[name])
        found.append(
            f"answers of {longest} have {lengths[longest]:.1f} tokens on average, those of {shortest} "
            f"{lengths[shortest]:.1f}: the first token is a larger part of a short answer, so the index of tokens/s "
            "per request is lower without anyone being served worse; --ignore-eos makes them as long as asked for"
        )
    if run.configuration.max_seconds is not None and not run.unsent and not run.unfinished:
        found.append(
            f"all requests were sent within --max-seconds {run.configuration.max_seconds:g}, which cut nothing short: "
            "raise --num-prompts for a run as long as that"
        )
    return found
