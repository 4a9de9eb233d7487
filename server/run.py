"""One server's life: bind, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from loraplex.server.app import create_app
from loraplex.server.bundle import Bundle
from loraplex.server.engine.connection import ENGINE
from loraplex.server.errors import CannotListen
from loraplex.server.protocol import LimitedRequest
from loraplex.server.serving import open_serving
from loraplex.server.settings import Settings

logger = logging.getLogger("loraplex")

KEEP_ALIVE_SECONDS = 75
"""How long a connection may be idle. Clients and proxies keep theirs for 5 to 60 s, and should be the first to close
one: were it the server, a request that is on its way would be lost."""


class Server(uvicorn.Server):
    """uvicorn's server, which ends with status 0 after a signal: uvicorn itself raises the signal again.

    A first SIGTERM or SIGINT drains for `drain` seconds, then `cut` has to end what still runs; a second one of either
    stops at once. `on_start` is called once it listens.
    """

    def __init__(
        self, config: uvicorn.Config, *, on_start: Callable[[], None], cut: Callable[[], None], drain: int
    ) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._cut = cut
        self._drain = drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

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
            asyncio.get_running_loop().call_later(self._drain, self._cut)
        self.handle_exit(received, None)


def serve(
    bundle: Bundle, settings: Settings, welcome: str | None = None, engine_command: Sequence[str] = ENGINE
) -> None:
    """`run` in an event loop of its own, uvloop's where it is installed (everywhere but on Windows).

    Ends the process with 143 where a SIGTERM came before anything was answered.
    """
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        try:
            runner.run(run(bundle, settings, welcome, engine_command))
        except asyncio.CancelledError:
            sys.exit(128 + signal.SIGTERM)


async def run(
    bundle: Bundle, settings: Settings, welcome: str | None = None, engine_command: Sequence[str] = ENGINE
) -> None:
    """Serve until a signal. `welcome` is printed once requests are answered, with {url} filled in.

    Raises CannotListen, and what `open_serving` does, before anything is answered.
    """
    _check_certificate(settings)
    _let_sigterm_cancel()
    # Bound before the model is loaded, so that a taken port is said at once.
    listener = _bind(settings.host, settings.port)
    # What uvicorn says of its own start and stop is said below, with the models.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app=_not_started,
        http=LimitedRequest,
        limit_concurrency=settings.connection_limit(),
        ws="none",
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        reset_contextvars=True,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=settings.stop_timeout,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    try:
        async with open_serving(settings, bundle, engine_command) as serving:
            config.app = create_app(serving)

            def announce() -> None:
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                url = f"{'https' if config.is_ssl else 'http'}://{host}:{listener.getsockname()[1]}"
                logger.info("ready on %s; models: %s", url, ", ".join(model.name for model in serving.registry))
                if welcome:
                    print(welcome.format(url=url), flush=True)

            gc.collect()
            gc.freeze()  # what stands now stands until the end: no collection need look at it again
            server = Server(config, on_start=announce, cut=serving.cut, drain=settings.drain_timeout)
            await server.serve(sockets=[listener])
            # After a second signal some still run: loads of adapters must not write to what is deleted next.
            left = list(server.server_state.tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
    finally:
        listener.close()


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: until the server is ready, connections are refused."""
    # With the protocol spelled out: event loops turn Nagle off for sockets that say they are TCP, and with it
    # on every stream's first token waits 40 ms for the acknowledgement of the headers.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def _check_certificate(settings: Settings) -> None:
    """Raises CannotListen where the files of --ssl-certfile and --ssl-keyfile cannot be used."""
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if certificate is None:
        return
    try:
        # With a password, or OpenSSL would ask for one at the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is one
        raise CannotListen(f"the certificate {certificate} and its key cannot be used: {error}") from None


def _let_sigterm_cancel() -> None:
    """Until `Server` listens to signals: so that what has been copied by then is deleted, as after Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):  # Windows has no signal handlers in its event loop
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def _not_started(*_: object) -> None:
    raise RuntimeError("requests are not accepted before the application stands")
