"""GET /v1/runs: training runs as they are written; only run folders are opened, and only by the names of the list."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

import nextword
from nextword.serve.runs import MOST_POINTS, RunFolders
from nextword.train.metrics import METRICS
from nextword.train.run_dir import locked_run
from run_folders import add_evaluation, add_sample, add_step, begin_run, finish_run
from serving import Server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def server(start: Callable[..., Server], tiny_path: Path, root: Path) -> Server:
    return start(tiny_path, "--alias", "tiny", "--runs", root)


def test_runs_are_listed_and_followed(server: Server, root: Path) -> None:
    assert server.get("/v1/runs").json == {"folder": str(root), "runs": [], "left_out": 0}
    run = begin_run(root / "first ⟨1⟩")
    path = f"/v1/runs/{quote(run.name)}"
    assert server.get(path).json["points"] == []
    add_step(run, 0, loss=3.0)
    add_evaluation(run, 1, 2.5)
    add_sample(run, 1, "Once <b>upon</b>")
    with locked_run(run):
        [row] = server.get("/v1/runs").json["runs"]
        assert (row["name"], row["state"], row["step"], row["steps"]) == (run.name, "running", 1, 10)
    one = server.get(path).json
    assert one["state"] == "interrupted"
    assert one["predicted"]["seconds"] == 20.0
    assert one["measured"] is None
    assert one["config"]["train"]["batch_size"] == 4
    assert one["points"] == [[0, 32, 0.5, 3.0]]
    assert one["evaluations"] == [[1, 32, 0.5, 2.5, 1.25, 0.1]]
    assert one["samples"] == [{"step": 1, "text": "Once <b>upon</b>"}]
    assert one["latest"] == {
        "learning_rate": 1e-3,
        "gradient_norm": 1.0,
        "tokens_per_second": 64.0,
        "share_of_peak": 0.4,
    }
    add_step(run, 1, loss=float("nan"))
    since = server.get(f"{path}?after={one['place']}").json
    assert (since["whole"], since["points"]) == (False, [[1, 64, 1.0, None]])
    for step in range(2, 10):
        add_step(run, step, loss=2.0)
    finish_run(run)
    done = server.get(f"{path}?after={since['place']}").json
    assert (done["state"], len(done["points"]), done["measured"]["nats_per_token"]) == ("finished", 8, 2.1)
    refused = server.get(f"{path}?after=yesterday")
    assert refused.error["message"] == "after 'yesterday' is not the place of an earlier answer"
    assert (refused.status, refused.error["param"]) == (400, "after")


def test_a_long_run_is_sent_thinned(server: Server, root: Path) -> None:
    run = begin_run(root / "long")
    rows = ({"step": step, "loss": 2.0, "tokens": 8, "seconds": 0.1} for step in range(3 * MOST_POINTS))
    (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    points = server.get("/v1/runs/long").json["points"]
    assert len(points) == MOST_POINTS
    assert points[-1][:2] == [3 * MOST_POINTS - 1, 24 * MOST_POINTS]


def test_damaged_runs_are_named_and_the_others_shown(server: Server, root: Path) -> None:
    begin_run(root / "good")
    for name, content in (("old", '{"format": "nextword-run/1"}'), ("half", '{"form'), ("list", "[]")):
        begin_run(root / name)
        (root / name / "run.json").write_text(content)
    begin_run(root / "no-config")
    (root / "no-config" / "config.toml").unlink()
    begin_run(root / "bad-report")
    (root / "bad-report" / "report.json").write_text('{"measured": {"memory": "much"}}')
    (root / "not-a-run").mkdir()
    (root / "file").write_text("")
    rows = {row["name"]: row for row in server.get("/v1/runs").json["runs"]}
    assert {name for name, row in rows.items() if "problem" in row} == {
        "old",
        "half",
        "list",
        "no-config",
        "bad-report",
    }
    assert rows["good"]["state"] == "interrupted"
    for name in ("old", "half", "no-config", "bad-report"):
        assert server.get(f"/v1/runs/{name}").status == 400
    os.mkfifo(root / "good" / METRICS)
    assert server.get("/v1/runs/good").status in (200, 400)


HOSTILE = (
    "..",
    ".",
    "",
    "../runs/in",
    "in/../in",
    "in/",
    "/etc",
    "in\0",
    "..%2f..",
    "linked",
    "inside-link",
    "IN",
    "a" * 5000,
)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_only_names_of_the_list_are_opened(tmp_path: Path, root: Path, name: str) -> None:
    outside = begin_run(tmp_path / "outside")
    run = begin_run(root / "in")
    (root / "linked").symlink_to(outside)
    begin_run(root / "inside-link")
    (root / "inside-link" / METRICS).symlink_to("/etc/passwd")
    folders = RunFolders(root)
    assert folders.names() == ["in"]
    assert folders.folder("in") == run
    with pytest.raises(Exception, match="unknown run"):
        folders.folder(name)
    assert folders.model(f"runs/{name}") is None


def test_hostile_names_over_http(server: Server, root: Path) -> None:
    begin_run(root / "in")
    for name in HOSTILE:
        answer = server.get(f"/v1/runs/{quote(name, safe='')}")
        assert answer.status == 404, name


def test_a_runs_model_answers_and_is_read_anew(server: Server, root: Path, tiny_model: Callable[..., Path]) -> None:
    run = begin_run(root / "mine")
    assert [model["id"] for model in server.get("/v1/models").json["data"]] == ["tiny"]
    missing = server.post("/v1/completions", {"prompt": "a", "model": "runs/mine"})
    assert (missing.status, missing.error["param"]) == (404, "model")
    texts = []
    for seed in (7, 8):
        model = tiny_model("lstm", seed=seed)
        for file in model.iterdir():
            shutil.copy(file, run)
        os.utime(run / "model.safetensors", (seed, seed))
        own = nextword.load(model).complete("To be", seed=3, max_tokens=20).text.replace("�", "")
        answer = server.complete("To be", model="runs/mine", seed=3, max_tokens=20)
        assert (answer["model"], answer["choices"][0]["text"]) == ("runs/mine", own)
        texts.append(own)
    assert texts[0] != texts[1]
    assert [model["id"] for model in server.get("/v1/models").json["data"]] == ["tiny", "runs/mine"]
    assert server.get("/v1/models/runs/mine").json["id"] == "runs/mine"
    assert "runs/mine" in server.get("/v1/plan/names").json["models"]
    planned = server.post("/v1/plan", {"question": "inference", "model": "runs/mine", "devices": "h100"}).json["plan"]
    assert planned["model"]["stored"]["value"] == (run / "model.safetensors").stat().st_size
    (run / "tokenizer.json").unlink()
    (run / "tokenizer.json").symlink_to(model / "tokenizer.json")
    assert server.post("/v1/completions", {"prompt": "a", "model": "runs/mine"}).status == 404
    assert server.complete("a", model="another", max_tokens=1)["model"] == "tiny"


def test_plans_and_runs_need_the_key(start: Callable[..., Server], tiny_path: Path, root: Path) -> None:
    begin_run(root / "mine")
    server = start(tiny_path, "--runs", root, "--api-key", "secret")
    key = {"Authorization": "Bearer secret"}
    for path in ("/v1/runs", "/v1/runs/mine", "/v1/plan/names"):
        assert (server.get(path).status, server.get(path, headers=key).status) == (401, 200)
    body = {"question": "train", "model": "gpt2"}
    assert (server.post("/v1/plan", body).status, server.post("/v1/plan", body, headers=key).status) == (401, 200)
