"""Moto's server with a bucket in it, as the S3 service of a cluster that is only tried out."""

from __future__ import annotations

import os
import threading
import urllib.request

from moto.server import ThreadedMotoServer

PORT = 9000


def main() -> None:
    bucket = os.environ["WINNOW_BUCKET"]
    server = ThreadedMotoServer("0.0.0.0", PORT, verbose=False)  # noqa: S104 (a container's own network)
    server.start()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/{bucket}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
    threading.Event().wait()


if __name__ == "__main__":
    main()
