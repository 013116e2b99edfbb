"""The function of examples/lambda behind a vsock: a line is an event, its answer lasts until the connection ends.

No Runtime API, no request id of anybody's, no log lines that travel: less work than Ember's `lambda` interface does for the
same handler, in favour of whoever runs this.
"""

import json
import socket

import app

PORT_EVENTS, PORT_READY = 5000, 5001  # as in guest.c


class Context:
    aws_request_id = "00000000-0000-0000-0000-000000000000"
    function_name = "greeter"


def serve(connection):
    event = b""
    while not event.endswith(b"\n"):
        piece = connection.recv(65536)
        if not piece:
            return
        event += piece
    answer = app.handler(json.loads(event), Context)
    connection.sendall(json.dumps(answer).encode())


listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listener.bind((socket.VMADDR_CID_ANY, PORT_EVENTS))
listener.listen(8)
with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as knock:
    knock.connect((socket.VMADDR_CID_HOST, PORT_READY))
while True:
    try:
        connection, _ = listener.accept()
        with connection:
            serve(connection)
    except OSError:
        # A restore resets connections; the next one is another clone's.
        continue
