"""Runs schemathesis against a server of its own: `make schemathesis`.

Ends with an error if a request makes the server fail, or an answer breaks the schema.
"""

import subprocess
import sys
from pathlib import Path

from served import Served

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance"
)


def main():
    """Starts a server, checks it, stops it."""
    server = Served()
    command: list[str] = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"http://{server.http_address}/openapi.json",
        "--checks",
        CHECKS,
        "--max-examples",
        "50",
        "--exclude-path-regex",
        "load$",
        *sys.argv[1:],
    ]
    ended = subprocess.run(command, check=False)
    server.stop()
    sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
