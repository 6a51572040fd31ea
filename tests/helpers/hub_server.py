"""How `local_hub` answers: each request of the Hub's client that pushing and pulling makes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

FRONT = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
LARGE = (".safetensors", ".png", ".bin")  # what the Hub keeps as LFS
TOKENS = {"hf_me": "me", "hf_you": "you"}


def git_oid(content: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)


class Handler(BaseHTTPRequestHandler):
    hub: Any
    protocol_version = "HTTP/1.1"
    routes: list[tuple[str, str]] = [
        (r"POST /api/repos/create", "create"),
        (r"GET /api/whoami-v2", "whoami"),
        (r"POST /api/validate-yaml", "validate"),
        (r"PUT /large/(\w+)", "upload"),
        (r"POST /verify", "verify"),
        (r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        (r"POST /api/models/([^/]+/[^/]+)/preupload/main", "preupload"),
        (r"POST /api/models/([^/]+/[^/]+)/commit/main", "commit"),
        (r"GET /api/models", "list"),
        (r"GET /api/models/([^/]+/[^/]+)/tree/([^/]+)", "tree"),
        (r"GET /api/models/([^/]+/[^/]+)/revision/([^/]+)", "info"),
        (r"GET /api/models/([^/]+/[^/]+)", "info"),
        (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    ]

    def log_message(self, *args: object) -> None:
        pass

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        request = f"{self.command} {unquote(url.path)}"
        self.hub.requests.append(request)
        fault = self.hub.fault(request)
        if fault is not None and fault.status is None:
            self.rfile.read(fault.after)
            self.connection.close()
            self.close_connection = True
            return
        self.body = self.read_body()
        try:
            if fault is not None and fault.status is not None:
                raise Refused(fault.status, "", "injected")
            for pattern, name in self.routes:
                match = re.fullmatch(pattern, request)
                if match:
                    getattr(self, f"on_{name}")(*match.groups())
                    return
            raise Refused(404, "", f"this Hub has no {request}")
        except Refused as error:
            status, code, message = error.args
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            self.answer({"error": message}, status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if content is data else "application/json"
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def user(self) -> str | None:
        """Who asks."""
        given = self.headers.get("Authorization")
        if given is None:
            return None
        known = TOKENS.get(given.removeprefix("Bearer "))
        if known is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return known

    def repo(self, name: str, write: bool = False) -> Any:
        """A repository that the user may see, or write."""
        user, owner = self.user, name.split("/")[0]
        found = self.hub.repos.get(name)
        if found is None or (found.private and user != owner):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != owner:
            raise Refused(403 if user else 401, "", "You may not write there")
        return found

    def on_create(self) -> None:
        asked = json.loads(self.body)
        if self.user is None:
            raise Refused(401, "", "Invalid username or password.")
        owner = asked.get("organization") or self.user
        if owner != self.user:
            raise Refused(403, "", "You may not make a repository there")
        name = f"{owner}/{asked['name']}"
        known = name in self.hub.repos
        if not known:
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private)
        self.answer({"url": f"{self.hub.endpoint}/{name}", "name": name}, 409 if known else 200)

    def on_whoami(self) -> None:
        if self.user is None:
            raise Refused(401, "", "Invalid username or password.")
        self.answer({"type": "user", "name": self.user, "orgs": []})

    def on_validate(self) -> None:
        match = FRONT.search(json.loads(self.body)["content"])
        try:
            card = yaml.safe_load(match.group(1)) if match else None
        except yaml.YAMLError as error:
            raise Refused(400, "", str(error)) from error
        errors = [] if isinstance(card, dict) else [{"message": "no metadata"}]
        self.answer({"errors": errors, "warnings": []})

    def on_preupload(self, name: str) -> None:
        files = self.repo(name, write=True).files
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            there = files.get(path)
            is_large = path.endswith(LARGE)
            oid = None
            if there is not None:
                oid = hashlib.sha256(there).hexdigest() if is_large else git_oid(there)
            mode = "lfs" if is_large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": answers})

    def on_batch(self, name: str) -> None:
        self.repo(name, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.endpoint}/large/{asked['oid']}"},
                "verify": {"href": f"{self.hub.endpoint}/verify"},
            }
            is_new = asked["oid"] not in self.hub.large
            objects.append({**asked, **({"actions": actions} if is_new else {})})
        self.answer({"transfer": "basic", "objects": objects})

    def on_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "", "The content is not what it says")
        self.hub.large[oid] = self.body
        self.answer(b"")

    def on_verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.hub.large.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "", "The upload is not whole")
        self.answer({})

    def on_commit(self, name: str) -> None:
        repo = self.repo(name, write=True)
        files, message = dict(repo.files), ""
        for line in self.body.splitlines():
            key, value = json.loads(line)["key"], json.loads(line)["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(message, files)
        url = f"{self.hub.endpoint}/{name}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": url})

    def on_list(self) -> None:
        wanted, found = set(self.query.get("filter", [])), []
        for repo in self.hub.repos.values():
            owner = repo.name.split("/")[0]
            is_named = self.query.get("search", [""])[0].lower() in repo.name.lower()
            is_theirs = owner == self.query.get("author", [owner])[0]
            is_seen = not repo.private or self.user == owner
            if is_named and is_theirs and is_seen and wanted <= set(repo.tags()):
                found.append(repo.info())
        found.sort(key=lambda info: -info["downloads"])
        self.answer(found[: int(self.query.get("limit", ["1000"])[0])])

    def revision(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        found = self.repo(name).at(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def on_info(self, name: str, revision: str = "main") -> None:
        self.revision(name, revision)
        self.answer(self.repo(name).info(revision))

    def on_tree(self, name: str, revision: str) -> None:
        _, files = self.revision(name, revision)
        self.answer(
            [
                {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
                for path, content in files.items()
            ]
        )

    def on_resolve(self, name: str, revision: str, path: str) -> None:
        sha, files = self.revision(name, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content, status = files[path], 200
        headers = {
            "X-Repo-Commit": sha,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part:
            start, whole = int(part[1]), len(content)
            end = int(part[2]) if part[2] else whole - 1
            content, status = content[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{whole}"
        self.answer(content, status, headers)
