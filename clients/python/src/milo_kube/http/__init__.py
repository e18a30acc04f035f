"""HTTP/1.1 over asyncio: a client with keep-alive connections, and a small server. httptools does the parsing."""
