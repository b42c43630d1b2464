"""A web application on sessions from handfast: it says what it knows of its client.

    pip install 'handfast[asgi]'
    python web.py /run/web/tls.sock

Any ASGI application goes in the place of this one. HTTP/1.1 and HTTP/2 come from Hypercorn.
"""

import asyncio
import json
import sys

from handfast import app
from handfast.app import asgi


async def application(scope, receive, send):
    """Answer every request in the same way."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    tls = scope["extensions"]["tls"]
    answer = {
        "http": scope["http_version"],
        "scheme": scope["scheme"],
        "path": scope["path"],
        "client": scope["client"],
        "tls": hex(tls["tls_version"]),
        "certificate": tls["client_cert_name"],
    }
    body = json.dumps(answer).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def main(path):
    """Serve until SIGTERM."""
    with app.listen(path, group="handfast") as listener:
        await asgi.serve(application, listener)


asyncio.run(main(sys.argv[1]))
