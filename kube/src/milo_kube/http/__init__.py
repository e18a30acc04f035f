"""HTTP over asyncio: a client with a connection pool, for HTTP/1.1 and HTTP/2, and a small HTTP/1.1 server.

httptools parses HTTP/1.1, and h2 implements HTTP/2.
"""
