"""HTTP over asyncio: a client with kept connections, over HTTP/1.1 and HTTP/2, and a small server of HTTP/1.1.

httptools parses HTTP/1.1, and h2 speaks HTTP/2.
"""
