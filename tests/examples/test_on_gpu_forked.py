"""Parts that are forked from a server which has imported what they need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from examples.benchmarks.lines import Row, read
from examples.on_gpu import answers, plan
from examples.on_gpu.driver import ENVIRONMENT, ROOT

# The driver runs in a process of its own, since a process has one server.
DRIVER = """
import json, sys
from pathlib import Path
from examples.on_gpu.driver import Driver
from examples.on_gpu.plan import Part
job = json.loads(sys.argv[1])
worker = Driver(Path(job["out"]), job["device"])
worker.install(Path(job["out"]))
worker.preload(job["libraries"], job["others"], job["limit"])
for i, code in enumerate(job["codes"]):
    worker.run([Part(i, f"part {i}", job["part_limit"], 0, ("-c", code))])
assert not {"torch", "diffusers"} & sys.modules.keys()
print(json.dumps({name: how for name, (how, _) in worker.ended.items()}))
"""
TELLS = """
import os, sys
from pathlib import Path
from examples.benchmarks.lines import Results
results = Results(Path(sys.argv[sys.argv.index("--results") + 1]), "cpu")
results.add("sample", pid=os.getpid(), parent=os.getppid(), {})
"""
MARKER = "import os\nPID = os.getpid()\nopen({!r}, 'a').write(f'{{PID}}\\n')\n"


TORCH = """
import os
from types import SimpleNamespace
users = []  # processes that have initialised CUDA
def zeros(size, device):
    if users and users[-1] != os.getpid():
        raise RuntimeError("Cannot re-initialize CUDA in forked process")
    users.append(os.getpid())
    return SimpleNamespace(item=lambda: 0)
class cuda:
    is_initialized = lambda: os.getpid() in users
    get_device_properties = lambda i: zeros(1, "cuda") and SimpleNamespace(major=9, minor=0)
    get_device_capability = lambda: cuda.get_device_properties(0) and (9, 0)
    current_device = lambda: zeros(1, "cuda").item()
"""


def like_pytorch(tmp_path: Path) -> None:
    """A module with what is known of CUDA: what has used it cannot fork what uses it."""
    keeps = "import torch\nkept = torch.cuda.current_device\n"
    texts = {"torch": TORCH, "torch/_dynamo": "", "torch/_dynamo/device_interface": keeps}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)


def run(tmp_path: Path, *codes: str, device: str = "cpu", limit: float = 30, **job) -> Row:
    """How the parts with these programs ended, in a driver of their own."""
    job = {"out": str(tmp_path), "device": device, "limit": limit, "codes": codes, **job}
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    job = {"libraries": ["marker"], "others": [], "part_limit": 20, **job}
    (tmp_path / "marker.py").write_text(MARKER.format(str(tmp_path / "marks")))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(job)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        input="not for the parts",
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def lines(tmp_path: Path) -> list[Row]:
    return read(tmp_path / "results.jsonl")


def errors(tmp_path: Path) -> list[str]:
    return [line["error"] for line in lines(tmp_path) if "error" in line]


def marks(tmp_path: Path) -> list[int]:
    """The processes that have imported the marker."""
    return [int(line) for line in (tmp_path / "marks").read_text().splitlines()]


def is_alive(pid: int, seconds: float = 0) -> bool:
    """Whether a process is there, also after so many seconds."""
    until = time.monotonic() + seconds
    while (stat := Path(f"/proc/{pid}/stat")).exists():
        if stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        if time.monotonic() > until:
            return True
        time.sleep(0.1)
    return False


def test_what_parts_need_is_imported_once(tmp_path) -> None:
    code = "import marker\n" + TELLS.format("imported=marker.PID")
    assert set(run(tmp_path, code, code).values()) == {"ok"}
    (server,) = marks(tmp_path)
    first, second = lines(tmp_path)
    assert first["parent"] == second["parent"] == first["imported"] == second["imported"] == server
    assert len({server, first["pid"], second["pid"]}) == 3
    assert not is_alive(server, seconds=5)


def test_a_forked_part_is_as_if_python_had_been_called(tmp_path) -> None:
    code = """
import os, sys, subprocess
assert sys.stdin.read() == "" == subprocess.run("cat", capture_output=True, text=True).stdout
assert os.getsid(0) == os.getpgid(0) == os.getpid() and os.getcwd() == {root!r}
assert {environment!r}.items() <= os.environ.items() and {root!r} in os.environ["PYTHONPATH"]
assert __name__ == "__main__" and sys.argv[0] == "-c" and "--part" in sys.argv
"""
    code = code.format(root=str(ROOT), environment=ENVIRONMENT) + TELLS.format("")
    assert run(tmp_path, code)["part 0"] == "ok", (tmp_path / "log.txt").read_text()


def test_wheels_come_before_what_is_installed(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "tqdm-99-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tqdm.py", "import os\nPID = os.getpid()\n")
        about = "tqdm-99.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tqdm\nVersion: 99\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    code = "import sys, tqdm, importlib.metadata as of\n" + TELLS.format(
        "imported=tqdm.PID, file=tqdm.__file__, first=sys.path[0], version=of.version('tqdm')"
    )
    assert run(tmp_path, code, libraries=["tqdm"])["wheels"] == "ok"
    (line,) = lines(tmp_path)
    assert line["imported"] == line["parent"] and line["version"] == "99"
    assert Path(line["first"]).name.startswith("site-")
    assert Path(line["file"]).parent == Path(line["first"])


def test_a_forked_part_that_hangs_is_stopped_with_what_it_started(tmp_path) -> None:
    hangs = """
import os, signal, subprocess, sys, time
ignores = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", ignores])
forked = os.fork() or time.sleep(60)
time.sleep(1)
print(f"{child.pid} {forked}", flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(60)
"""
    begun = time.monotonic()
    ended = run(tmp_path, hangs, TELLS.format(""), part_limit=3)
    assert time.monotonic() - begun < 25
    assert ended == {"imports": "ok", "part 0": "failed", "part 1": "ok"}
    (error,) = errors(tmp_path)
    reason, _, pids = error.partition(": ")
    assert reason == "stopped after 3 s" and len(pids.split()) == 2
    assert not any(is_alive(int(pid), seconds=5) for pid in pids.split())


def test_a_forked_part_leaves_nothing_behind(tmp_path) -> None:
    code = "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
    assert run(tmp_path, code + TELLS.format("child=child.pid"))["part 0"] == "ok"
    assert not is_alive(lines(tmp_path)[0]["child"], seconds=5)


def test_however_a_forked_part_dies_its_last_words_are_kept_and_the_next_goes_on(tmp_path) -> None:
    puts = "import ctypes, os, signal, sys\nctypes.CDLL(None).puts(b'said in C')\n"
    dies = (
        f"{puts}os.kill(os.getpid(), signal.SIGSEGV)",
        "print('said in Python', end=''); import os; os._exit(7)",
        "raise ValueError('no such card')",
        "import subprocess, sys; subprocess.run(['echo', 'said by a child']); sys.exit(1)",
        "import sys; sys.exit('said at the end')",
    )
    ended = run(tmp_path, *dies, TELLS.format(""))
    assert [ended[f"part {i}"] for i in range(6)] == ["failed"] * 5 + ["ok"]
    assert errors(tmp_path) == [
        "ended with -11: said in C",
        "ended with 7: said in Python",
        "ended with 1: ValueError: no such card",
        "ended with 1: said by a child",
        "ended with 1: said at the end",
    ]
    assert len(marks(tmp_path)) == 1


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import not_there", "ended with 255: ModuleNotFoundError: No module named 'not_there'"),
        ("raise ValueError('bad')", "ended with 255: ValueError: bad"),
        ("import os; os.kill(os.getpid(), 11)", "ended with 255: importing fails"),
        ("import time; time.sleep(60)", "ended with 255: importing fails"),
    ],
)
def test_parts_import_for_themselves_where_it_cannot_be_done_once(
    tmp_path, program, error
) -> None:
    (tmp_path / "fails.py").write_text(program)
    code = "import marker\n" + TELLS.format("imported=marker.PID")
    begun = time.monotonic()
    ended = run(tmp_path, code, code, libraries=["marker", "fails"], limit=3)
    assert time.monotonic() - begun < 25
    assert ended == {"imports": "failed", "part 0": "ok", "part 1": "ok"}
    assert errors(tmp_path) == [error]
    server, *others = marks(tmp_path)
    assert others == [line["pid"] for line in lines(tmp_path)[1:]]
    assert not is_alive(server, seconds=5)
    assert "from here each part imports for itself" in (tmp_path / "log.txt").read_text()


def test_a_module_that_cannot_be_imported_fails_the_parts_that_need_it(tmp_path) -> None:
    (tmp_path / "fails.py").write_text("raise ValueError('bad')")
    code = TELLS.format("")
    ended = run(tmp_path, f"import fails\n{code}", code, others=["fails", "json.tool"])
    assert ended == {"imports": "ok", "part 0": "failed", "part 1": "ok"}
    assert errors(tmp_path) == ["ended with 1: ValueError: bad"]
    assert lines(tmp_path)[1]["parent"] == marks(tmp_path)[0]
    assert "importing json.tool" in (tmp_path / "log.txt").read_text()


def test_the_server_stays_longer_than_the_imports_may_take(tmp_path) -> None:
    ended = run(tmp_path, "import time; time.sleep(5)\n" + TELLS.format(""), limit=4)
    assert set(ended.values()) == {"ok"} and marks(tmp_path) == [lines(tmp_path)[0]["parent"]]


def test_parts_import_for_themselves_once_the_server_is_gone(tmp_path) -> None:
    kills = (
        "import os, time; print('it ends', flush=True); os.kill(os.getppid(), 9); time.sleep(9)"
    )
    code = "import marker\n" + TELLS.format("imported=marker.PID")
    ended = run(tmp_path, code, kills, code, code)
    assert [ended[f"part {i}"] for i in range(4)] == ["ok", "failed", "ok", "ok"]
    assert errors(tmp_path) == ["ended with 255: it ends"]
    forked, _, *others = lines(tmp_path)
    assert forked["imported"] != forked["pid"]
    assert all(line["imported"] == line["pid"] for line in others)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_parts_import_for_themselves_where_what_is_forked_cannot_use_the_gpu(tmp_path) -> None:
    ended = run(tmp_path, TELLS.format(""), device="cuda", libraries=[])
    assert ended == {"imports": "failed", "part 0": "ok"}
    assert errors(tmp_path) == ["ended with 255: RuntimeError: the GPU did not answer"]


def test_what_is_forked_can_use_the_gpu_though_libraries_ask_about_it(tmp_path) -> None:
    like_pytorch(tmp_path)
    (tmp_path / "asks.py").write_text(
        "import torch\nimport torch._dynamo.device_interface as keeps\n"
        "assert torch.cuda.get_device_capability() == (9, 0)\n"
    )
    code = "import asks, torch\ntorch.zeros(1, device='cuda')\n"
    code += "assert asks.keeps.kept is torch.cuda.current_device\n"
    code += TELLS.format("users=torch.users")
    ended = run(tmp_path, code, device="cuda", libraries=["torch", "marker", "asks"])
    assert ended == {"imports": "ok", "part 0": "ok"}
    (line,) = lines(tmp_path)
    assert line["users"] == [line["pid"]] and marks(tmp_path) == [line["parent"]]


@pytest.mark.parametrize(
    ("imported", "error"),
    [
        ("torch.zeros(1, device='cuda')", "255: RuntimeError: CUDA was initialised by an import"),
        ("torch.users.append(1)", "1: RuntimeError: Cannot re-initialize CUDA in forked process"),
    ],
)
def test_imports_that_use_the_gpu_are_found_out(tmp_path, imported, error) -> None:
    """As PyTorch can tell, and as only a forked process finds."""
    like_pytorch(tmp_path)
    (tmp_path / "uses.py").write_text(f"import torch\n{imported}\n")
    code = "import torch\ntorch.zeros(1, device='cuda')\n" + TELLS.format("")
    ended = run(tmp_path, code, device="cuda", libraries=["torch", "uses"])
    assert ended == {"imports": "failed", "part 0": "ok"}
    assert errors(tmp_path) == [f"ended with {error}"]


def test_what_libraries_ask_about_the_gpu_is_answered_while_they_are_imported(monkeypatch) -> None:
    properties = {"major": 9, "minor": 0, "name": "a card"}
    monkeypatch.setattr(answers, "asked", lambda: properties)
    before = dict(vars(torch.cuda))
    with answers.answered():
        assert torch.cuda.get_device_capability() == (9, 0)
        assert torch.cuda.get_device_properties(0).name == "a card"
        assert torch.cuda.current_device() == 0
    assert dict(vars(torch.cuda)) == before


def test_the_parts_find_everything_imported(tmp_path) -> None:
    """At their first line; libraries that import lazily have imported what is used."""
    wanted = {"libraries": plan.LIBRARIES, "others": plan.modules(plan.PARTS)}
    code = "import sys\nbefore = list(sys.modules)\n" + TELLS.format("before=before")
    assert run(tmp_path, code, **wanted, limit=90)["imports"] == "ok"
    names = {*plan.LIBRARIES, *wanted["others"], "diffusers.models.unets.unet_2d_condition"}
    assert names <= {*lines(tmp_path)[0]["before"]}
