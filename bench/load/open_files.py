"""The limit of open files, of which every connection takes one."""

from __future__ import annotations

import math
import resource

from loraplex.bench.load.options import Traffic

BESIDE = 64
"""Files that are open besides the connections: libraries, the event loop, what is written."""


def make_room(traffic: Traffic, requests: int) -> str | None:
    """Raise this process's limit where so many requests may need it; returns a warning where that is not allowed.

    A server may hold requests for as long as it likes, so any number of them can be under way at once.
    """
    wanted = min(requests, traffic.max_concurrency or requests) + BESIDE
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or wanted <= limit:
        return None
    ceiling = math.inf if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(min(wanted, ceiling)), most))
    if wanted <= ceiling:
        return None
    return (
        f"{wanted - BESIDE} requests may be under way at once, and this process may open {most} files, one for each "
        f"connection: raise the limit (ulimit -n {wanted}), or give --max-concurrency {max(1, most - BESIDE)}"
    )
