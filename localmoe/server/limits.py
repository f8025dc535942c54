"""What one client may take of the server: sizes in bytes, times in seconds."""

from __future__ import annotations

BODY = 32 << 20  # of one request
BODIES = 256 << 20  # of all requests that are being read
BODY_SILENCE = 30.0  # without a byte of a body that was announced
HEADERS = 100  # lines
HEADER_BYTES = 64 << 10
HEADER_TIME = 30.0  # from the first byte of a request to the end of its headers
KEEP_ALIVE = 75.0  # an idle connection
CONNECTIONS = 256
DEPTH = 64  # of nested JSON
STOP_TEXTS = 16
STOP_LENGTH = 1_000  # characters of each
ANSWERS = 16  # to one prompt
QUEUE = 32  # requests that wait for their turn
SIGN_OF_LIFE = 5.0  # silence before a client is told that its request is alive
UNDECIDED = 4.0  # before the status is sent, although the prompt is not accepted yet
