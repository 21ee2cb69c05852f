"""A reverse proxy as a process: TLS in front, one connection a request behind. For the tests of addresses and hosts.

    python tests/proxy.py CERTIFICATE KEY UPSTREAM-PORT /PREFIX strip|leave keep|rewrite forward|silent

prints its port and runs until it is stopped. `strip`: the prefix is taken off the path, as nginx does for a
`proxy_pass` with a path and JupyterHub for `/proxy/PORT/`; `keep`: the Host header goes on as it came.
"""

import asyncio
import ssl
import sys

certificate, key, upstream, prefix, path_rule, host_rule, headers_rule = sys.argv[1:]


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, OSError):
        writer.close()
        return
    (method, target, version), *lines = (head.split("\r\n")[0].split(" "), *head.split("\r\n")[1:-2])
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    host = next((value for name, value in headers if name.lower() == "host"), "")
    if prefix and not target.startswith(prefix):
        writer.write(b"HTTP/1.1 404 Outside\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        return
    if prefix and path_rule == "strip":
        target = target[len(prefix) :] or "/"
    headers = [pair for pair in headers if pair[0].lower() not in {"host", "connection", "keep-alive"}]
    headers += [("Host", host if host_rule == "keep" else f"127.0.0.1:{upstream}"), ("Connection", "close")]
    if headers_rule == "forward":
        client = writer.get_extra_info("peername")[0]
        headers += [("X-Forwarded-For", client), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", host)]
    behind, onward = await asyncio.open_connection("127.0.0.1", int(upstream))
    lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in headers), "", ""]
    onward.write("\r\n".join(lines).encode("latin-1"))
    await asyncio.gather(pipe(reader, onward), pipe(behind, writer))


async def main() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
