"""A service under load: `python -m benchmarks.soak --checkpoint DIR` starts `hymate serve`, has clients ask it, and
reports times, errors and memory.

Each client keeps one connection. Eight of ten requests predict a record, two add an event to a stream.
Memory is that of the service's process, after a first twentieth of the requests and at the end.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hymate_training.files import markdown_table, write_json
from hymate_training.inference.checkpoints import load_extractor

START_SECONDS = 240.0
LONGEST = 120  # events of a record


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("model_cards/hymate-physionet2012-mortality"))
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file of the result")
    args = parser.parse_args()
    result = soak(args.checkpoint, args.requests, args.clients)
    print(markdown_table([("measure", "value"), *result.items()]))
    if args.output:
        write_json(args.output, result)
    if result["5xx"] or result["other errors"]:
        sys.exit(1)


def soak(checkpoint: Path, requests: int, clients: int) -> dict[str, Any]:
    """Has clients send requests to a service of its own; what was measured."""
    records = random_records(checkpoint, 200)
    with tempfile.TemporaryDirectory() as folder, serving(checkpoint, Path(folder) / "streams.safetensors") as service:
        statuses: Counter[int] = Counter()
        seconds: list[float] = []
        lock = threading.Lock()
        tenth = max(1, requests // 20 // clients)

        def ask(client: int, count: int) -> None:
            own_seconds, own_statuses = _ask(service.port, records, client, count)
            with lock:
                seconds.extend(own_seconds)
                statuses.update(own_statuses)

        def all_clients(count: int) -> float:
            threads = [threading.Thread(target=ask, args=(client, count)) for client in range(clients)]
            began = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return time.perf_counter() - began

        all_clients(tenth)
        before = _resident(service.process.pid)
        seconds.clear()
        elapsed = all_clients(requests // clients - tenth)
        after = _resident(service.process.pid)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {
        "requests": sum(statuses.values()),
        "clients": clients,
        "requests per second": round(len(seconds) / elapsed, 1),
        "p50 (ms)": round(p50, 1),
        "p99 (ms)": round(p99, 1),
        "5xx": sum(count for status, count in statuses.items() if status >= 500),
        "other errors": sum(count for status, count in statuses.items() if not 200 <= status < 300 and status < 500),
        "memory after a twentieth (MB)": round(before / 1e6, 1),
        "memory at the end (MB)": round(after / 1e6, 1),
    }


def random_records(checkpoint: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records of any variables and values in the training records' ranges, as requests hold them."""
    extractor, rng = load_extractor(checkpoint), np.random.default_rng(seed)
    records = []
    for number in range(count):
        length = int(rng.integers(1, LONGEST + 1))
        chosen = rng.integers(extractor.num_variables, size=length)
        low, high = np.array(extractor.value_ranges)[chosen].T
        events = [
            {"time": time, "variable": extractor.variables[variable], "value": value}
            for time, variable, value in zip(
                np.sort(rng.uniform(0, 48, length)).tolist(), chosen, rng.uniform(low, high).tolist(), strict=True
            )
        ]
        static = {
            column["name"]: str(rng.choice(column["categories"]))
            if "categories" in column
            else float(rng.uniform(*column["range"]))
            for column in extractor.static_columns
        }
        records.append({"record_id": f"r{number}", "events": events, "static": static})
    return records


class Service:
    """A running `hymate serve`."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process = process
        self.port = port

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            return _request(connection, method, path, body)


@contextlib.contextmanager
def serving(checkpoint: Path, state: Path, *options: str, **environment: str) -> Iterator[Service]:
    """A service in a process of its own, which is terminated at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hymate_training", "serve", "--checkpoint", str(checkpoint), "--port", str(port)]
    limits = ["--max-requests-per-second", "1000000"]
    process = subprocess.Popen(
        [*command, "--state", str(state), *limits, *options], env={**os.environ, **environment}, stderr=subprocess.PIPE
    )
    service = Service(process, port)
    try:
        _wait_for(service)
        yield service
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _wait_for(service: Service) -> None:
    began = time.perf_counter()
    while time.perf_counter() - began < START_SECONDS:
        if service.process.poll() is not None:
            raise RuntimeError(f"the service did not start: {service.process.communicate()[1].decode()}")
        try:
            service.request("GET", "/health")
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the service did not start in time")


def _ask(port: int, records: list[dict[str, Any]], client: int, count: int) -> tuple[list[float], Counter[int]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    seconds, statuses = [], Counter[int]()
    _, stream = _request(connection, "POST", "/streams", {"static": records[client]["static"]})
    for number in range(count):
        record = records[(client * 31 + number) % len(records)]
        path, body = "/predict", {"records": [record]}
        if number % 10 in (3, 7):
            path, body = f"/streams/{stream['id']}/events", {"events": [record["events"][0] | {"time": number / 10}]}
        began = time.perf_counter()
        status, _ = _request(connection, "POST", path, body)
        seconds.append(time.perf_counter() - began)
        statuses[status] += 1
    _request(connection, "DELETE", f"/streams/{stream['id']}")
    connection.close()
    return seconds, statuses


def _request(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    headers = {} if body is None else {"content-type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    content = response.read()
    return response.status, json.loads(content) if content[:1] in (b"{", b"[") else content


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
