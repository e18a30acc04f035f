"""A Git server over HTTP, read-only: `python git_server.py ADDRESS PORT REPOSITORY`."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_SERVICE = "git-upload-pack"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer with the references of the repository."""
        if not self.path.endswith(f"/info/refs?service={_SERVICE}"):
            self.send_error(404)
            return
        line = f"# service={_SERVICE}\n"
        self._answer("advertisement", f"{len(line) + 4:04x}{line}0000".encode() + _upload_pack("--advertise-refs"))

    def do_POST(self) -> None:
        """Answer with the objects that the client asks for."""
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer("result", _upload_pack(asked=asked))

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"application/x-{_SERVICE}-{kind}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _upload_pack(*options: str, asked: bytes = b"") -> bytes:
    command = ["git", "upload-pack", "--stateless-rpc", *options, sys.argv[3]]
    return subprocess.run(command, input=asked, stdout=subprocess.PIPE, check=True).stdout


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), _Handler).serve_forever()
