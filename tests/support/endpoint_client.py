"""What an Inference Endpoint does with a pushed folder, where our packages are not installed. Run by test_endpoint.py.

python -I endpoint_client.py FOLDER REQUESTS ANSWERS: loads FOLDER/handler.py, hands each request of the JSON file
REQUESTS to it, and leaves answers and messages of errors in ANSWERS.
"""

import importlib.util
import json
import runpy
import sys
from pathlib import Path


def main(folder: Path, requests: Path, answers: Path):
    remote = runpy.run_path(str(Path(__file__).with_name("remote_client.py")))
    sys.meta_path.insert(0, remote["Absent"](remote["OURS"]))
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    endpoint = handler.EndpointHandler(str(folder))
    found = []
    for request in json.loads(requests.read_text()):
        try:
            found.append(endpoint(request))
        except ValueError as error:
            found.append(str(error))
    answers.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
