"""A stand-in for the Hugging Face Hub on the loopback interface, which the real client libraries talk to.

    with HubServer() as hub:                            # HF_ENDPOINT=hub.url before huggingface_hub is imported
        hub.repo("org/name").files()                    # what a visitor sees
        with hub.fault("PUT", "/lfs/", status=500): ... # what goes wrong on the way

Models, data sets and Spaces, public, private and gated, with commits, branches and tags. Large files (weights, plots,
Parquet) take the way of Git LFS. A commit is atomic here as it is there; that the client sends one commit is what
tests count.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_dummy"
OWNER = "org"
LARGE = (".safetensors", ".png", ".parquet", ".bin")
EPOCH = "2020-01-01T00:00:00.000Z"


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]
    large: frozenset[str]


@dataclass
class Repo:
    kind: str  # models, datasets or spaces
    name: str
    private: bool
    gated: str | bool = False
    sdk: str | None = None
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)

    def __post_init__(self):
        if not self.commits:
            self.commit("initial commit", {".gitattributes": b""}, set(), "main")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Path -> content at a branch, tag or commit; KeyError for a revision that does not exist."""
        return dict(self.at(revision).files)

    def at(self, revision: str) -> Commit:
        oid = self.refs.get(revision, revision)
        return {commit.oid: commit for commit in self.commits}[oid]

    def commit(self, title: str, files: dict[str, bytes], large: set[str], branch: str) -> Commit:
        digest = hashlib.sha1(f"{self.kind}{self.name}{len(self.commits)}{title}".encode())
        self.commits.append(Commit(digest.hexdigest(), title, files, frozenset(large)))
        self.refs[branch] = self.commits[-1].oid
        return self.commits[-1]


@dataclass
class Fault:
    """Goes wrong with requests of this method whose path matches: a status, or a connection cut after some bytes."""

    method: str
    pattern: str
    status: int | None = None
    cut_after: int = 0
    times: int | None = None
    met: int = 0


class HubServer:
    """Serves until the `with` block ends. `requests` lists (method, path) as they came."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

    def repo(self, name: str, kind: str = "models") -> Repo:
        return self.repos[kind, name]

    @contextmanager
    def fault(self, method: str, pattern: str, **how) -> Iterator[Fault]:
        """Lets matching requests fail while the block lasts, `times` times or always."""
        fault = Fault(method, pattern, **how)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)


def card_session(url: str) -> Callable:
    """Takes the place of `huggingface_hub.repocard.get_session`, so that the server at `url` validates cards.

    Older clients send them to the Hub itself, whatever HF_ENDPOINT says.
    """
    from huggingface_hub import get_session  # noqa: PLC0415 - once its environment is set

    def post(address: str, **arguments):
        return get_session().post(address.replace("https://huggingface.co", url), **arguments)

    return lambda: SimpleNamespace(post=post)


def validate_card(content: str, kind: str) -> list[str]:
    """What is wrong with a card's metadata, as the Hub tells it: huggingface_hub's own parser, and the Hub's lists."""
    # only this needs more than the standard library
    from huggingface_hub import DatasetCard, ModelCard, SpaceCard  # noqa: PLC0415

    try:
        data = {"dataset": DatasetCard, "space": SpaceCard}.get(kind, ModelCard)(content).data.to_dict()
    except Exception as error:  # whatever the parser raises, the card is at fault
        return [f"{type(error).__name__}: {error}"]
    errors = []
    license_name = data.get("license")
    if license_name is not None and license_name not in LICENSES:
        errors.append(f'"license" must be one of the Hub\'s identifiers, not {license_name!r}')
    if license_name == "other" and not data.get("license_name"):
        errors.append('"license_name" is required where "license" is "other"')
    if (task := data.get("pipeline_tag")) is not None and task not in PIPELINE_TAGS:
        errors.append(f'"pipeline_tag" must be one of the Hub\'s tasks, not {task!r}')
    asked = data.get("extra_gated_fields", {})
    if not all(how in ("text", "checkbox", "country", "date_picker") for how in asked.values()):
        errors.append('"extra_gated_fields" must say how each is answered')
    if kind == "space" and (data.get("sdk") != "gradio" or not {"colorFrom", "colorTo", "emoji"} <= set(data)):
        errors.append('a Space names its "sdk", an emoji and two colors')
    if len(data.get("short_description", "")) > 60:
        errors.append('"short_description" is longer than 60 characters')
    for key in ("tags", "datasets", "metrics", "models"):
        found = data.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, str) and item for item in found):
            errors.append(f'"{key}" must be a list of strings')
    unknown = [name for name in data.get("datasets", []) if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", str(name))]
    errors += [f'"datasets" holds {name!r}, which is no repository' for name in unknown]
    results = [result for model in data.get("model-index", []) for result in model["results"]]
    metrics = [metric for result in results for metric in result["metrics"]]
    bad = [metric for metric in metrics if not isinstance(metric["value"], int | float | str) or _is_nan(metric)]
    return errors + [f'"model-index": the value of {metric["type"]} is {metric["value"]!r}' for metric in bad]


def _is_nan(metric: dict) -> bool:
    return metric["value"] != metric["value"]


# those of the Hub's identifiers that releases of health data and of models use
LICENSES = {"apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0", "mit", "odbl"} | {
    "odc-by",
    "other",
    "pddl",
    "unknown",
}
PIPELINE_TAGS = {"tabular-classification", "tabular-regression", "time-series-forecasting", "feature-extraction"}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - the base class's names

    def _serve(self):
        split = urlsplit(self.path)
        self.route, self.query = unquote(split.path), parse_qs(split.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, self.route))
        self.cut_after = None
        for fault in self.hub.faults:
            left = fault.times is None or fault.met < fault.times
            if left and fault.method == self.command and re.search(fault.pattern, self.route):
                fault.met += 1
                if fault.status is not None:
                    return self._answer(fault.status, {"error": "injected fault"})
                self.cut_after = fault.cut_after
        if self.cut_after is not None and self.command != "GET":
            return self._cut()
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, self.route)
            if found and self.command in method.split("|"):
                return action(self, **found.groupdict())
        return self._answer(404, {"error": f"no route {self.command} {self.route}"})

    # ------------------------------------------------------------------------------------------------- answering

    def _answer(self, status: int, content=None, headers: dict[str, str] | None = None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut_after is not None:
            self.wfile.write(body[: self.cut_after])
            self._cut()
        else:
            self.wfile.write(body)

    def _cut(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def _refuse(self, status: int, code: str, message: str):
        self._answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    @property
    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, kind: str, name: str, write: bool = False) -> Repo | None:
        repo = self.hub.repos.get((kind, name))
        if (write or repo is None or repo.private) and not self._authorized:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")  # the Hub does not tell which
            return None
        if repo is None:
            self._refuse(404, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit | None:
        try:
            return repo.at(revision)
        except KeyError:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None

    # ---------------------------------------------------------------------------------------------------- routes

    def who(self):
        if not self._authorized:
            return self._answer(401, {"error": "Invalid username or password."})
        return self._answer(200, {"type": "user", "name": OWNER, "orgs": [], "auth": {"type": "access_token"}})

    def create_repo(self):
        content = json.loads(self.body)
        kind, name = f"{content.get('type') or 'model'}s", f"{content.get('organization') or OWNER}/{content['name']}"
        if not self._authorized:
            return self._answer(401, {"error": "Invalid username or password."})
        if not name.startswith(f"{OWNER}/"):
            return self._answer(403, {"error": f"You don't have the rights to create a {kind} under this namespace"})
        if (kind, name) in self.hub.repos:
            return self._answer(409, {"error": "You already created this repo", "url": f"{self.hub.url}/{name}"})
        private = content.get("visibility") == "private" or bool(content.get("private"))
        if kind == "spaces" and not content.get("sdk"):
            return self._answer(400, {"error": "a Space needs an SDK"})
        self.hub.repos[kind, name] = Repo(kind, name, private, sdk=content.get("sdk"))
        prefix = "" if kind == "models" else f"{kind}/"
        return self._answer(200, {"url": f"{self.hub.url}/{prefix}{name}", "name": name, "id": "0"})

    def delete_repo(self):
        content = json.loads(self.body)
        kind, name = f"{content.get('type') or 'model'}s", f"{content.get('organization') or OWNER}/{content['name']}"
        if self._repo(kind, name, write=True):
            del self.hub.repos[kind, name]
            return self._answer(200, {})

    def settings(self, kind: str, name: str):
        if repo := self._repo(kind, name, write=True):
            repo.gated = json.loads(self.body)["gated"]
            return self._answer(200, {})

    def validate_yaml(self):
        content = json.loads(self.body)
        errors = [{"message": message} for message in validate_card(content["content"], content["repoType"])]
        return self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def repo_info(self, kind: str, name: str, revision: str | None = None):
        if (repo := self._repo(kind, name)) and (commit := self._commit(repo, revision or "main")):
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            about = {"_id": "0", "id": name, "modelId": name, "author": OWNER, "sha": commit.oid, "tags": []}
            return self._answer(
                200,
                {
                    **about,
                    "private": repo.private,
                    "gated": repo.gated,
                    "siblings": siblings,
                    "lastModified": EPOCH,
                    "createdAt": EPOCH,
                },
                {"X-Repo-Commit": commit.oid},
            )

    def refs(self, kind: str, name: str):
        if repo := self._repo(kind, name):
            listed = [
                (ref in repo.tags, {"name": ref, "ref": ref, "targetCommit": oid}) for ref, oid in repo.refs.items()
            ]
            branches, tags = ([ref for is_tag, ref in listed if is_tag == wanted] for wanted in (False, True))
            return self._answer(200, {"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def create_ref(self, kind: str, name: str, what: str, ref: str):
        if repo := self._repo(kind, name, write=True):
            content = json.loads(self.body or b"{}")
            target = content.get("startingPoint") or (ref if what == "tag" else None) or "main"
            new = content["tag"] if what == "tag" else ref
            if commit := self._commit(repo, target):
                repo.refs[new] = commit.oid
                if what == "tag":
                    repo.tags.add(new)
                return self._answer(201, {})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None):
        if (repo := self._repo(kind, name)) and (commit := self._commit(repo, revision)):
            start = f"{folder}/" if folder else ""
            recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = {}
            for path in sorted(commit.files):
                inside = path.removeprefix(start)
                if not path.startswith(start):
                    continue
                parts = inside.split("/")
                for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                    parent = start + "/".join(parts[:depth])
                    entries[parent] = {"type": "directory", "path": parent, "size": 0, "oid": _oid(parent.encode())}
                if recursive or len(parts) == 1:
                    entries[path] = _entry(commit, path)
            if folder and not entries:
                return self._refuse(404, "EntryNotFound", f"{folder} does not exist")
            return self._answer(200, list(entries.values()), {"X-Repo-Commit": commit.oid})

    def paths_info(self, kind: str, name: str, revision: str):
        if (repo := self._repo(kind, name)) and (commit := self._commit(repo, revision)):
            if self.headers.get("Content-Type", "").startswith("application/json"):
                paths = json.loads(self.body)["paths"]
            else:
                paths = parse_qs(self.body.decode()).get("paths", [])
            found = []
            for path in [paths] if isinstance(paths, str) else paths:
                if path in commit.files:
                    found.append(_entry(commit, path))
                elif any(known.startswith(f"{path}/") for known in commit.files):
                    found.append({"type": "directory", "path": path, "size": 0, "oid": _oid(path.encode())})
            return self._answer(200, found)

    def preupload(self, kind: str, name: str, revision: str):
        if self._repo(kind, name, write=True):
            files = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for item in json.loads(self.body)["files"]
            ]
            return self._answer(200, {"files": files})

    def lfs_batch(self, name: str, kind: str | None = None):
        if self._repo(kind or "models", name, write=True):
            objects = []
            for item in json.loads(self.body)["objects"]:
                upload = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}}
                objects.append({**item, **({} if item["oid"] in self.hub.blobs else upload)})
            return self._answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._answer(400, {"error": "content does not have the digest that was announced"})
        self.hub.blobs[oid] = self.body
        return self._answer(200, {})

    def commit(self, kind: str, name: str, revision: str):
        if (repo := self._repo(kind, name, write=True)) and (parent := self._commit(repo, revision)):
            files, large, title = dict(parent.files), set(parent.large), ""
            for line in self.body.splitlines():
                item = json.loads(line)
                key, value = item["key"], item["value"]
                if key == "header":
                    title = value["summary"]
                elif key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    if value["oid"] not in self.hub.blobs:
                        return self._answer(400, {"error": f"{value['path']} was not uploaded"})
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                    large.add(value["path"])
                elif key == "deletedFile":
                    files.pop(value["path"], None)
                elif key == "deletedFolder":
                    folder = value["path"].rstrip("/") + "/"
                    files = {path: body for path, body in files.items() if not path.startswith(folder)}
            commit = repo.commit(title, files, large, revision)
            url = f"{self.hub.url}/{name}/commit/{commit.oid}"
            return self._answer(200, {"commitUrl": url, "commitOid": commit.oid, "success": True})

    def resolve(self, name: str, revision: str, path: str, kind: str | None = None):
        if (repo := self._repo(kind or "models", name)) and (commit := self._commit(repo, revision)):
            headers = {"X-Repo-Commit": commit.oid}
            if path not in commit.files:
                headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
                return self._answer(404, {"error": "Entry not found"}, headers)
            content = commit.files[path]
            headers |= {"ETag": f'"{_etag(commit, path)}"', "Accept-Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if not wanted:
                return self._answer(200, content, headers)
            start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self._answer(206, content[start : end + 1], headers)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _etag(commit: Commit, path: str) -> str:
    content = commit.files[path]
    return hashlib.sha256(content).hexdigest() if path in commit.large else _oid(content)


def _entry(commit: Commit, path: str) -> dict:
    content = commit.files[path]
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
    if path in commit.large:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 128}
    return entry


API = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
PLAIN = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.who),
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("DELETE", r"/api/repos/delete", _Handler.delete_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", API, _Handler.repo_info),
    ("GET", API + r"/revision/(?P<revision>.+)", _Handler.repo_info),
    ("PUT", API + r"/settings", _Handler.settings),
    ("GET", API + r"/refs", _Handler.refs),
    ("POST", API + r"/(?P<what>branch|tag)/(?P<ref>.+)", _Handler.create_ref),
    ("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    ("POST", API + r"/paths-info/(?P<revision>.+)", _Handler.paths_info),
    ("POST", API + r"/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", API + r"/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", PLAIN + r"\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]+)", _Handler.lfs_put),
    ("GET|HEAD", PLAIN + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
