"""Between a client and a server, and in their way."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """Passes bytes to a server and back, and cuts the connection where it is told to.

    Attributes:
        cut: ``before`` what it looks for reaches the server, ``after`` it did and before its answer comes back, or None. at: what it looks
            for: a COMMIT unless told. cuts: how often it did. down: nobody gets through, and whoever was is cut off; ``refused``: how
            many.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.cut: str | None = None
        self.at = b"COMMIT\0"
        self.cuts = 0
        self.down = False
        self.refused = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()
        self._cut_all()

    def go_down(self) -> None:
        self.down = True
        self._cut_all()

    def _cut_all(self) -> None:
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.down:
                    client.close()
                    self.refused += 1
                    continue
                server = socket.create_connection(("127.0.0.1", self._server))
                self._open += [client, server]
                lost, answered = threading.Event(), threading.Event()
                threading.Thread(target=self._pass, args=(client, server, lost, answered, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, lost, answered, False), daemon=True).start()

    def _pass(
        self, source: socket.socket, target: socket.socket, lost: threading.Event, answered: threading.Event, is_client: bool
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if is_client and self.cut is not None and self.at in data:
                    how, self.cut = self.cut, None
                    self.cuts += 1
                    lost.set()
                    if how == "after":
                        target.sendall(data)
                        answered.wait(10)  # it is done
                    break
                if lost.is_set():
                    answered.set()
                    return
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
