"""A Hub on this machine: an HTTP server that answers as the Hub does, and a client of it.

The client is huggingface_hub's own in a process of its own, since it reads HF_ENDPOINT when it is
imported. Other tests take the fixtures so:

    from local_hub import FIXTURES

    _hub, local_hub, hub_client, trained, folder = FIXTURES

    def test_something(local_hub, hub_client):
        hub_client.run("push(folder, 'me/dog')", folder=str(folder))
        assert "me/dog" in local_hub.repos
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import build_tiny_pipe
from hub_server import FRONT, Handler, git_oid
from tiny import unlearner


@dataclass
class Repo:
    """A repository: its files at every commit."""

    name: str
    private: bool = False
    downloads: int = 0
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{self.name} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((sha, message, files))
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2]

    @property
    def messages(self) -> list[str]:
        return [message for _, message, _ in self.commits]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for sha, _, files in reversed(self.commits):
            if revision in ("main", sha):
                return sha, files
        return None

    def tags(self) -> list[str]:
        """Those of the card, and those that the Hub makes of it."""
        match = FRONT.search(self.files.get("README.md", b"").decode())
        card = yaml.safe_load(match.group(1)) if match else {}
        found = [*card.get("tags", [])]
        found += [card[key] for key in ("library_name", "pipeline_tag") if key in card]
        if "license" in card:
            found.append(f"license:{card['license']}")
        if "base_model" in card:
            relation = card.get("base_model_relation", "finetune")
            found += [f"base_model:{card['base_model']}"]
            found += [f"base_model:{relation}:{card['base_model']}"]
        return [*dict.fromkeys(found), "region:us"]

    def info(self, revision: str = "main") -> dict[str, Any]:
        found = self.at(revision)
        assert found is not None
        sha, files = found
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": git_oid(content)}
            for name, content in files.items()
        ]
        return {
            "_id": "0" * 24,
            "id": self.name,
            "modelId": self.name,
            "author": self.name.split("/")[0],
            "sha": sha,
            "private": self.private,
            "tags": self.tags(),
            "downloads": self.downloads,
            "likes": 0,
            "lastModified": "2026-01-02T03:04:05.000Z",
            "createdAt": "2026-01-02T03:04:05.000Z",
            "siblings": siblings,
        }


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    Args:
        kind: method and path, as a regular expression.
        times: how many of them.
        status: of the answer; None: the connection is cut instead.
        after: bytes of the body that are read before.
    """

    kind: str
    times: int
    status: int | None
    after: int = 0


class LocalHub:
    """The server; use it with `with`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, kind: str, status: int, times: int = 1) -> None:
        """Answer the next requests of a kind, such as "POST .*/commit/", with an error."""
        self.faults.append(Fault(kind, times, status))

    def cut(self, kind: str, after: int, times: int = 1) -> None:
        """Cut the connection of the next requests of a kind in the middle of their body."""
        self.faults.append(Fault(kind, times, None, after))

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> Repo:
        """A repository that somebody else made."""
        repo = self.repos[name] = Repo(name, private)
        repo.commit("first", files)
        return repo

    def asked(self, kind: str) -> list[str]:
        """The requests of a kind so far."""
        return [request for request in self.requests if re.match(kind, request)]

    def fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.match(fault.kind, request):
                fault.times -= 1
                return fault
        return None


class ClientError(Exception):
    """What was raised in the client's process: its class and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


CLIENT = """
import ast, json, os, sys, time, warnings

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever is printed goes elsewhere
wait = time.sleep
time.sleep = lambda seconds: wait(min(seconds, 0.01))  # between two tries
from diffusers_fdu import *

for line in sys.stdin:
    asked = json.loads(line)
    names = {**globals(), **asked["names"]}
    tree = ast.parse(asked["code"])
    last = ast.Expression(tree.body.pop().value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(compile(tree, "code", "exec"), names)
            value = eval(compile(last, "code", "eval"), names)
            answer = {"value": value}
        except BaseException as error:
            answer = {"kind": type(error).__name__, "message": str(error)}
    answer["warnings"] = [str(w.message) for w in caught if w.category is UserWarning]
    print(json.dumps(answer, default=str), file=answers, flush=True)
"""


def environment(hub: LocalHub, home: Path, token: str | None = "hf_me") -> dict[str, str]:
    """Of a process that talks to this Hub and no other."""
    dropped = ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    own["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return {**kept, **own, **({"HF_TOKEN": token} if token else {})}


class HubClient:
    """A process with this library and the Hub's client, which runs code."""

    def __init__(self, hub: LocalHub, home: Path, token: str | None = "hf_me") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(home / "client.log").open("w"),
            text=True,
            env=environment(hub, home, token),
        )
        self.warnings: list[str] = []

    def run(self, code: str, **names: Any) -> Any:
        """Run code, with names of JSON types; the value of its last line.

        Raises:
            ClientError: what it raised.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"code": code, "names": names}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        self.warnings = answer["warnings"]
        if "kind" in answer:
            raise ClientError(answer["kind"], answer["message"])
        return answer["value"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def _hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def local_hub(_hub: LocalHub) -> LocalHub:
    """An empty Hub, at the same address for all tests of a file."""
    for left in (_hub.repos, _hub.large, _hub.requests, _hub.faults):
        left.clear()
    return _hub


@pytest.fixture(scope="module")
def hub_client(_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    """A client that is logged in as "me"; its cache stays for all tests of a file."""
    client = HubClient(_hub, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny pipe."""
    worker = unlearner(build_tiny_pipe())
    worker.unlearn("dog", "cat")
    return worker.save(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "own"))


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(client: HubClient, code: str, **names: Any) -> ClientError:
    """The error of one line that code raises."""
    with pytest.raises(ClientError) as error:
        client.run(code, **names)
    assert "\n" not in error.value.message and "hf_me" not in error.value.message
    return error.value


FIXTURES = (_hub, local_hub, hub_client, trained, folder)
