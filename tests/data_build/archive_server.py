"""A local HTTP server that stands for the archives: the real clients are pointed to it by `Policy.mirror`.

A request for ``https://host/path?query`` arrives as ``/host/path?query``. The script of a test answers it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Request:
    """What arrived: ``host`` and ``path`` as the client meant them."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: str

    @property
    def form(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(self.body).items()}


@dataclass
class Reply:
    """What is sent back. ``cut`` sends only that many bytes of the body and hangs up; ``hang_s`` waits first."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang_s: float = 0.0


class ArchiveServer:
    """Answers with ``script(request) -> Reply``; ``requests`` lists what came."""

    def __init__(self, script: Callable[[Request], Reply]):
        self.script, self.requests, self._stop = script, [], threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                url = urlsplit(self.path)
                _, host, *rest = url.path.split("/", 2)
                request = Request(
                    self.command,
                    host,
                    "/" + unquote("".join(rest)),
                    {key: values[-1] for key, values in parse_qs(url.query).items()},
                    {key.lower(): value for key, value in self.headers.items()},
                    self.rfile.read(length).decode(),
                )
                outer.requests.append(request)
                reply = outer.script(request)
                if reply.hang_s and outer._stop.wait(reply.hang_s):
                    return
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])
                if reply.cut is not None:
                    self.close_connection = True

            do_GET = do_POST = do_HEAD = answer

            def log_message(self, *arguments):
                pass

            def handle(self):
                try:
                    super().handle()
                except (ConnectionError, TimeoutError):  # the client hung up, as some tests let it
                    pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "ArchiveServer":
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
