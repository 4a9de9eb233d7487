"""One server's life: bind, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from loraplex.server.app import create_app
from loraplex.server.bundle import Bundle
from loraplex.server.serving import open_serving
from loraplex.server.settings import Settings

logger = logging.getLogger("loraplex")

CUT_GRACE = 2
"""Seconds between cutting the streams that outlast the drain and closing their connections."""


class Server(uvicorn.Server):
    """uvicorn's server, which ends with status 0 after a signal: uvicorn itself raises the signal again.

    A first SIGTERM or SIGINT drains, a second one of either stops at once.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM)
        try:
            for each in handled:
                loop.add_signal_handler(each, self._on_signal, each)
        except NotImplementedError:  # Windows has no signal handlers in its event loop
            with super().capture_signals():
                yield
            return
        try:
            yield
        finally:
            for each in handled:
                loop.remove_signal_handler(each)

    def _on_signal(self, received: signal.Signals) -> None:
        if self.should_exit:
            self.force_exit = True
        else:
            logger.info("%s: draining; another signal stops at once", received.name)
        self.handle_exit(received, None)


async def run(bundle: Bundle, settings: Settings, welcome: str | None = None) -> None:
    """Serve until a signal. `welcome` is printed once requests are answered, with {url} filled in.

    Raises BundleInvalid and AdapterInvalid before anything is answered; exits with status 1 if the port is taken.
    """
    config = uvicorn.Config(
        app=_not_started,
        host=settings.host,
        port=settings.port,
        log_config=None,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout + CUT_GRACE,
    )
    # Bound before the model is loaded, so that a taken port is said at once.
    socket = config.bind_socket()
    try:
        async with open_serving(settings, bundle) as serving:
            config.app = create_app(serving)
            url = f"http://{settings.host}:{socket.getsockname()[1]}"
            names = ", ".join(model.name for model in serving.registry)
            logger.info("ready on %s; models: %s", url, names)
            if welcome:
                print(welcome.format(url=url), flush=True)
            await Server(config).serve(sockets=[socket])
    finally:
        socket.close()


async def _not_started(*_: object) -> None:
    raise RuntimeError("requests are not accepted before the application stands")
