"""Connections that bring their request too slowly end, and many of them keep nobody out.

uvicorn waits for ever for the head and the body of a request. What it answers is never cut: a stream of events, or a
film that somebody paused, may take as long as it likes.
"""

from __future__ import annotations

import asyncio
import resource

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""From the first byte of a request, or from the connection, to the end of its headers."""
BODY_SECONDS, BODY_BYTES = 20.0, 4096
"""A body must bring so many bytes in every so many seconds; one that was refused already, must end in as many."""
MOST = max(64, min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
"""Connections at once. Beyond them the slowest that still brings its request goes."""
_SAID = b"The request came too slowly: its headers take at most %d seconds, and its body brings %d bytes in every %d."


class Patient(H11Protocol):
    """uvicorn's protocol, with an end to waiting."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since, self._came, self._timer = self.loop.time(), 0, self.loop.call_later(1, self._look)
        if len(self.connections) > MOST:
            now = self.loop.time()
            waiting = [c for c in self.connections if c._incoming() and now - c._since > 1]
            min(waiting, key=lambda c: (c._came, c._since), default=self)._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before, self._came = self.conn.their_state, self._came + len(data)
        if before is h11.IDLE and self.timeout_keep_alive_task:  # the first byte of another request
            self._since, self._came = self.loop.time(), len(data)
        super().data_received(data)
        if self.conn.their_state is not before:
            self._since, self._came = self.loop.time(), 0

    def _incoming(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _look(self) -> None:
        self._timer = self.loop.call_later(min(1.0, HEAD_SECONDS / 4, BODY_SECONDS / 4), self._look)
        waited, state = self.loop.time() - self._since, self.conn.their_state
        if state is h11.IDLE and waited > HEAD_SECONDS and not self.timeout_keep_alive_task:
            self._end()
        elif state is h11.SEND_BODY and waited > BODY_SECONDS:
            answered = self.cycle is not None and self.cycle.response_complete
            if answered or (self._came < BODY_BYTES and not self.flow.read_paused):
                self._end()
            else:
                self._since, self._came = self.loop.time(), 0

    def _end(self) -> None:
        """Says why, where no answer has begun, and closes."""
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.SEND_RESPONSE or (self.conn.our_state is h11.IDLE and self._came):
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            message = _SAID % (HEAD_SECONDS, BODY_BYTES, BODY_SECONDS)
            headers = [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]
            headers.append(("content-length", str(len(message))))
            for event in (h11.Response(status_code=408, headers=headers), h11.Data(data=message), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()
