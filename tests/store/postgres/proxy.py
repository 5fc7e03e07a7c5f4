"""Between a client and a server, and in their way."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Proxy:
    """Passes bytes to a server and back, and cuts the connection where it is told to.

    Attributes:
        cut: ``before`` what it looks for reaches the server, ``after`` it did and before its answer comes back, or None. at: what it looks
            for: a COMMIT unless told. behind: only on a connection on which this went by. cuts: how often it did.
        last: behind the cut nobody gets through any more. down: nobody gets through, and whoever was is cut off; ``refused``: how many.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.cut: str | None = None
        self.at = b"COMMIT\0"
        self.behind: bytes | None = None
        self.cuts = 0
        self.last = False
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
        went_by = False
        with suppress(OSError):
            while data := source.recv(65536):
                went_by = went_by or (self.behind is not None and self.behind in data)
                if is_client and self.cut is not None and (self.behind is None or went_by) and self.at in data:
                    how, self.cut = self.cut, None
                    lost.set()
                    if how == "after":
                        target.sendall(data)
                        answered.wait(10)  # it is done
                    self.down = self.down or self.last
                    self.cuts += 1
                    break
                if lost.is_set():
                    answered.set()
                    return
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
