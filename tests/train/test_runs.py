"""A run that meets damage, a full disk, a loss spike or its own end, and how it continues."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_me import run_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import vega_lite
from full_disk import full_disk
from nextword.base import RunError, UsageError
from nextword.base.toml import read_toml, set_values, to_toml
from nextword.cli import _console, main
from nextword.data import Dataset, open_dataset, save_tokenizer
from nextword.plots import MIME
from nextword.runtime import CpuBackend
from nextword.train import calibration, checkpoint, memory, pipeline
from nextword.train.callbacks import Callbacks, TrainStep
from nextword.train.changes import Change
from nextword.train.deadline import Deadline, End
from nextword.train.metrics import append_line, read_metrics
from nextword.train.pipeline import resume_run
from nextword.train.plots import curve
from nextword.train.run import RunResult, train_run
from nextword.train.run_dir import Measured, Prediction, RunRecord, locked_run, read_report
from nextword.train.schedules import learning_rate
from nextword.train.timing import StepTime
from nextword.train.trainer import Trainer

STEPS = 12


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NEXTWORD_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nextword.train.memory.keep_freed_memory", lambda: None)  # of the tests' own process
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    _console.output.cache_clear()
    _console.messages.cache_clear()


def begin(folder: Path, data: Dataset, kind: str = "gru", every: int = 5, base: str = "", **changes: Any) -> Path:
    """The folder of a small run that has not taken a step."""
    config = run_of(kind, data.vocabulary, STEPS).with_train(**changes).with_run(checkpoint_every=every)
    config = replace(config, model=replace(config.model, base=base))
    guess = Prediction(1e9, 1.0, 1e4, 0.5, 4.0, 3.0, 5.0, 2.0, formula_memory=1e9, law_bits=2.0, peak=1e10)
    folder.mkdir(parents=True)
    save_tokenizer(data.tokenizer(), folder)
    RunRecord(config, str(data.folder), data.fingerprint, ("text",), guess).write(folder)
    return folder


def resumed(
    folder: Path, callbacks: Callbacks | None = None, until: int | None = None, restart: bool = False, **change: Any
) -> RunResult:
    run = resume_run(folder)
    config = run.record.config
    return train_run(config, run.data, folder, callbacks, change=Change(**change), restart=restart, until=until)


def go_on(folder: Path, until: int | None = None, **change: Any) -> Measured | None:
    return resumed(folder, until=until, **change).measured


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The exit code, the output and the last line of the messages."""
    _console.output.cache_clear()
    _console.messages.cache_clear()
    code = main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "internal error" not in err
    return code, out, (err.strip().splitlines() or [""])[-1]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder) if "loss" in row]


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(folder)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict[str, bytes]:
    """Of the newest checkpoint, optimizer and all."""
    file = next(checkpoint.stored(folder / "checkpoints")[-1].glob("*.safetensors"))
    return {name: array.tobytes() for name, array in load_file(file).items()}


def damage(place: Path) -> None:
    file = next(place.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-5])


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / "run.json").read_text())
    change(data)
    (folder / "run.json").write_text(json.dumps(data))


def edit_config(folder: Path, *assignments: str) -> None:
    table = read_toml(folder / "config.toml")
    set_values(table, assignments)
    (folder / "config.toml").write_text(to_toml(table))


# ---- damaged checkpoints


def test_a_fine_tuned_run_without_a_sound_checkpoint_stops_and_begins_anew_only_by_name(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(begin(tmp_path / "base", data, "transformer"))
    tuned = begin(tmp_path / "tuned", data, "transformer", base=str(tmp_path / "base"), seed=8)
    go_on(tuned)
    first = losses(tuned)[0]
    assert first < math.log(data.vocabulary) - 0.2  # it began from what the base had learned
    (tuned / "report.json").unlink()
    for place in checkpoint.stored(tuned / "checkpoints"):
        damage(place)
    before = content(tuned)
    code, _, said = command(capsys, "runs", "resume", tuned)
    assert code == 1
    assert f"{tuned / 'checkpoints'}: all checkpoints are damaged" in said
    assert "step-00000010" in said
    assert "step-00000012" in said
    assert f"nextword runs resume {tuned} --restart" in said
    assert content(tuned) == before
    assert command(capsys, "runs", "resume", tuned, "--restart")[0] == 0
    assert rows(tuned)[0]["loss"] == first
    assert len(rows(tuned)) == STEPS
    kept = {f"before-restart/{name}": each for name, each in before.items() if name.startswith("checkpoints/")}
    assert kept.items() <= content(tuned).items()


def test_a_damaged_newest_checkpoint_is_moved_aside_and_does_not_count_among_those_kept(
    data: Dataset, tmp_path: Path
) -> None:
    folder = begin(tmp_path / "run", data)
    edit_config(folder, "run.keep_checkpoints=1")
    go_on(folder, until=5)
    later = shutil.copytree(folder / "checkpoints" / "step-00000005", folder / "checkpoints" / "step-00000009")
    damage(later)
    go_on(folder, until=7)
    assert names(folder) == ["damaged-step-00000009", "step-00000007"]


@pytest.mark.parametrize("sealed", [False, True])
def test_the_last_sound_checkpoint_stays_until_the_next_one_is_found_whole(
    sealed: bool, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(tmp_path / "run", data)
    edit_config(folder, "run.keep_checkpoints=1")
    go_on(folder, until=5)
    seal = checkpoint._seal

    def cut(folder: Path, state: dict[str, Any]) -> None:
        if not sealed:
            damage(folder)
        seal(folder, state)
        if sealed:
            damage(folder)

    monkeypatch.setattr(checkpoint, "_seal", cut)
    with pytest.raises(RunError, match="could not be written"):
        go_on(folder)
    assert names(folder) == ["step-00000005"]


# ---- ended runs


def test_resuming_an_ended_run_says_so_and_touches_nothing(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    assert command(capsys, "runs", "resume", folder)[0] == 0
    before = content(tmp_path)
    assert "ledger.jsonl" in before
    for options in ([], ["--on-loss-spike", "skip"], ["--json"]):
        code, out, said = command(capsys, "runs", "resume", folder, *options)
        assert code == 0
        assert f"{folder} finished after 12 steps: nothing to do" in said
    assert json.loads(out)["measured"] == json.loads(before["run/report.json"])["measured"]
    assert content(tmp_path) == before


def test_a_run_that_the_clock_ended_is_told_by_the_steps_and_tokens_it_took(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    assert command(capsys, "runs", "resume", folder)[0] == 0
    report = json.loads((folder / "report.json").read_text())
    report["measured"] |= {"steps": 7, "tokens": 70, "ends": [{"step": 5, "before": 12, "after": 7}]}
    (folder / "report.json").write_text(json.dumps(report))
    (row,) = json.loads(command(capsys, "runs", "list", tmp_path, "--json")[1])
    assert (row["steps"], row["tokens"], row["state"]) == (7, 70, "finished")
    assert "finished after 7 steps" in command(capsys, "runs", "resume", folder)[2]


@pytest.mark.parametrize("kind", ["transformer", "gru"])
def test_sample_completions_allocate_a_cache_of_their_own_size_alone(
    kind: str, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated: list[int] = []
    allocate = CpuBackend.allocate

    def recorded(self: CpuBackend, pages: int) -> None:
        allocated.append(pages * self.page_bytes)
        allocate(self, pages)

    monkeypatch.setattr(CpuBackend, "allocate", recorded)
    folder = begin(tmp_path / "run", data, kind)
    record = RunRecord.read(folder)
    config = record.config.with_run(sample_every=6).with_train(context=64 if kind == "gru" else 16)
    replace(record, config=config).write(folder)
    assert command(capsys, "runs", "resume", folder)[0] == 0
    assert len(allocated) == 2
    assert max(allocated) < 1e6  # the default, 1 GiB, would be the run's peak memory


def test_a_run_is_one_entry_of_the_ledger_however_often_it_ended(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    for _ in range(2):
        (folder / "report.json").unlink(missing_ok=True)
        assert command(capsys, "runs", "resume", folder)[0] == 0
    measured = read_report(folder)
    assert measured is not None
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2
    (entry,) = calibration.read()
    assert entry.measured_bits == measured.bits_per_byte
    calibration.append(replace(entry, run=str(tmp_path / "copy")))
    calibration.append(replace(entry, id="another"))
    assert len(calibration.read()) == 3


def test_an_ended_run_is_made_longer_with_more_steps(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    assert command(capsys, "runs", "resume", folder)[0] == 0
    assert command(capsys, "runs", "resume", folder, "--steps", 20)[0] == 0
    assert sorted(losses(folder)) == list(range(20))
    report = json.loads((folder / "report.json").read_text())
    assert report["measured"]["steps"] == 20
    assert report["predicted"] is None  # it was of 12 steps
    assert len(calibration.read()) == 1
    code, _, said = command(capsys, "runs", "resume", folder, "--steps", 20)
    assert (code, "nothing to do" in said) == (0, True)


def test_the_report_of_a_run_of_several_sessions_is_of_all_of_them(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(tmp_path / "run", data)
    peaks = iter([3e12, 2e12, 1e12])
    for until in (4, 9, None):
        peak = int(next(peaks))
        monkeypatch.setattr(memory, "resident_peak", lambda peak=peak: peak)
        measured = go_on(folder, until=until)
    assert measured is not None
    assert measured.memory == 3e12
    assert measured.seconds == pytest.approx(sum(row["seconds"] for row in rows(folder)))
    assert measured.tokens == sum(row["tokens"] for row in rows(folder))
    assert measured.train_loss == pytest.approx(sum(losses(folder).values()) / STEPS)
    (folder / "report.json").unlink()  # killed between its last checkpoint and its report
    again = go_on(folder)
    assert again is not None
    assert again.wall_seconds > measured.wall_seconds > measured.seconds
    assert replace(again, threads=1, wall_seconds=measured.wall_seconds) == measured


# ---- what is changed on resuming


def test_a_changed_run_has_the_same_bits_whenever_it_is_resumed_again(data: Dataset, tmp_path: Path) -> None:
    once, again = begin(tmp_path / "once", data), tmp_path / "again"
    go_on(once, until=6)
    shutil.copytree(once, again)
    change = {"learning_rate_scale": 0.5, "steps": 20, "on_loss_spike": "skip"}
    go_on(once, **change)
    go_on(again, until=8, **change)
    damage(again / "checkpoints" / "step-00000008")
    go_on(again, until=9)  # from step 6 once more
    go_on(again)
    assert losses(again) == losses(once)
    assert weights(again) == weights(once)
    planned = RunRecord.read(once).config.train
    for row in rows(once):
        total, scale = (STEPS, 1.0) if row["step"] < 6 else (20, 0.5)
        assert row["learning_rate"] == scale * learning_rate(replace(planned, steps=total), row["step"])
    assert [each.to_dict() for each in RunRecord.read(again).changes] == [{"step": 6, **change}]


def test_threads_change_from_the_step_on_from_which_they_were_asked_for(data: Dataset, tmp_path: Path) -> None:
    class Counting(Callbacks):
        def __init__(self) -> None:
            self.threads: list[int] = []

        def on_step(self, step: TrainStep) -> None:
            self.threads.append(torch.get_num_threads())

    folder = begin(tmp_path / "run", data)
    go_on(folder, until=5)
    go_on(folder, until=7, threads=2)
    for place in checkpoint.stored(folder / "checkpoints")[1:]:
        damage(place)
    heard = Counting()
    resumed(folder, heard, until=7)
    assert heard.threads == [2, 2]
    shutil.rmtree(folder / "checkpoints")
    heard = Counting()
    resumed(folder, heard, until=7)
    assert heard.threads == [1] * 5 + [2] * 2


def test_threads_that_are_asked_for_are_not_replaced_by_those_that_suit_the_load(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(tmp_path / "run", data, "transformer")
    edit_config(folder, "run.follow_load=true")
    go_on(folder, until=5)
    used: list[int] = []
    monkeypatch.setattr(Callbacks, "on_step", lambda self, step: used.append(torch.get_num_threads()))
    resumed(folder, until=7, threads=2)
    assert used == [2, 2]


def test_a_change_is_shown_and_one_that_cannot_be_is_refused(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    go_on(folder, until=8)
    for options, wanted in (
        (["--steps", 7], "the run is at step 8 already"),
        (["--learning-rate-scale", "nan"], "give a finite number above 0"),
        (["--learning-rate-scale", -1], "give a finite number above 0"),
    ):
        code, _, said = command(capsys, "runs", "resume", folder, *options)
        assert (code, wanted in said) == (2, True)
    assert RunRecord.read(folder).changes == ()
    assert main(["runs", "resume", str(folder), "--steps", "10", "--on-loss-spike", "skip"]) == 0
    assert "resumed from step 8 of 10" in capsys.readouterr().err
    assert len(losses(folder)) == 10
    assert "from step 8 on: --on-loss-spike skip, --steps 10" in " ".join(
        command(capsys, "runs", "show", folder)[1].split()
    )
    shown = json.loads(command(capsys, "runs", "show", folder, "--json")[1])
    assert shown["changes"] == [{"step": 8, "on_loss_spike": "skip", "steps": 10}]


def test_a_change_asked_for_before_the_step_of_the_same_one_is_in_force_from_there(
    data: Dataset, tmp_path: Path
) -> None:
    folder = begin(tmp_path / "run", data)
    go_on(folder, until=5)
    go_on(folder, until=7, learning_rate_scale=0.5)
    resumed(folder, until=3, restart=True, learning_rate_scale=0.5)
    assert [each.step for each in RunRecord.read(folder).changes] == [5, 0]
    planned = RunRecord.read(folder).config.train
    assert [row["learning_rate"] for row in rows(folder)] == [0.5 * learning_rate(planned, step) for step in range(3)]


# ---- loss spikes


@pytest.fixture
def trouble_at_step_7(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the data whose loss is no number at the planned learning rate, however often it is met."""
    gradients = Trainer._gradients

    def spoiled(self: Trainer, batch: Any) -> tuple[float, int]:
        loss, counted = gradients(self, batch)
        met = self.progress.step + self.progress.skipped == 7 and self.learner.optimizer.param_groups[0]["lr"] > 2e-3
        return (math.nan if met else loss), counted

    monkeypatch.setattr(Trainer, "_gradients", spoiled)


@pytest.mark.usefixtures("trouble_at_step_7")
@pytest.mark.parametrize("every", [5, 0])
@pytest.mark.parametrize("way", ["--on-loss-spike skip", "--on-loss-spike rewind", "--learning-rate-scale 0.5"])
def test_each_way_that_the_message_names_leads_past_the_step_where_the_run_stopped(
    way: str, every: int, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "a run", data, every=every)
    for _ in range(2):  # it stops where it stopped
        code, _, said = command(capsys, "runs", "resume", folder)
        assert code == 1
        assert "step 7: the loss is nan" in said
        stopped = rows(folder)[-1]
        assert (stopped["step"], stopped["action"], stopped["reason"]) == (7, "stop", "the loss is nan")
        assert math.isnan(stopped["loss"])
        assert stopped["gradient_norm"] > 0
    commands = re.findall(r"`nextword ([^`]*)`", said)
    (way_on,) = [each for each in commands if each.endswith(way)]
    assert len(commands) == 3
    assert command(capsys, *shlex.split(way_on))[0] == 0
    assert sorted(losses(folder)) == list(range(STEPS))
    assert read_report(folder) is not None
    assert math.isfinite(read_report(folder).train_loss)  # type: ignore[union-attr]


@pytest.mark.usefixtures("trouble_at_step_7")
@pytest.mark.parametrize(
    ("action", "steps"),
    [
        ("stop", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("skip", list(range(STEPS))),
        ("rewind", [*range(8), *range(5, STEPS)]),
    ],
)
def test_a_step_that_the_guard_rejected_is_in_the_metrics_with_its_reason_and_in_what_shows_them(
    action: str, steps: list[int], data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data, on_loss_spike=action)
    assert command(capsys, "runs", "resume", folder)[0] == (1 if action == "stop" else 0)
    assert [row["step"] for row in rows(folder)] == steps
    (rejected,) = [row for row in rows(folder) if "action" in row]
    assert (rejected["step"], rejected["action"], rejected["reason"]) == (7, action, "the loss is nan")
    code, shown, _ = command(capsys, "runs", "show", folder, "--plot", tmp_path / "curve.svg")
    assert code == 0
    assert f"1 x {action}; the last at step 7: the loss is nan" in " ".join(shown.split())
    (said,) = json.loads(command(capsys, "runs", "show", folder, "--json")[1])["rejected"]
    assert said == {"step": 7, "action": action, "reason": "the loss is nan"}
    counted = curve(folder).tokens
    assert len(counted) == (8 if action == "stop" else STEPS)
    assert math.isnan(curve(folder).losses[7]) == (action != "rewind")


def test_a_notebook_shows_a_runs_curves_with_its_own_numbers(data: Dataset, tmp_path: Path) -> None:
    result = resumed(begin(tmp_path / "run", data))
    shown = result._repr_mimebundle_()
    steps = vega_lite.marks(shown[MIME], "line")[0]
    assert vega_lite.column(steps, "loss") == [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    dots = vega_lite.marks(shown[MIME], "point")[0]
    held_out = [row["val"]["nats_per_token"] for row in read_metrics(tmp_path / "run") if "val" in row]
    assert vega_lite.column(dots, "loss") == held_out
    assert f"{STEPS} steps" in shown["text/plain"]
    assert "nats a token on held-out text" in shown["text/plain"]


def test_a_run_whose_first_loss_is_no_number_can_be_shown(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_gradients", lambda self, batch: (math.nan, 1))
    folder = begin(tmp_path / "run", data)
    assert command(capsys, "runs", "resume", folder)[0] == 1
    for options in ([], ["--json"], ["--plot", str(tmp_path / "curve.svg")]):
        assert command(capsys, "runs", "show", folder, *options)[0] == 0
    assert command(capsys, "runs", "compare", folder, folder, "--plot", tmp_path / "both.svg")[0] == 0


def test_weights_that_are_no_numbers_are_not_kept(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(tmp_path / "run", data, every=3)
    handle = Trainer._periodic

    def spoil(self: Trainer, end: int) -> None:
        if self.progress.step == 6:
            next(self.model.parameters()).data[0, 0] = math.nan
        handle(self, end)

    monkeypatch.setattr(Trainer, "_periodic", spoil)
    code, _, said = command(capsys, "runs", "resume", folder)
    assert code == 1
    assert "after step 6 weights are not finite (embedding.weight, 1 of" in said
    assert "the last one is step-00000003" in said
    assert names(folder) == ["step-00000003"]
    assert not (folder / "model.safetensors").exists()


# ---- Ctrl-C


def test_an_interrupted_run_names_the_command_that_goes_on_with_it(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(tmp_path / "a run of a name that a terminal of eighty columns has no room for", data)
    handle = Trainer._periodic

    def interrupt(self: Trainer, end: int) -> None:
        self.callbacks.interrupted = self.progress.step == 4  # type: ignore[attr-defined]
        handle(self, end)

    monkeypatch.setattr(Trainer, "_periodic", interrupt)
    code, _, said = command(capsys, "runs", "resume", folder)
    assert code == 130
    assert len(rows(folder)) == 5
    assert command(capsys, *shlex.split(said.partition("Resume: nextword ")[2]))[0] == 0
    assert [row["step"] for row in rows(folder)] == list(range(STEPS))


# ---- a full disk


def test_a_checkpoint_on_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_later(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    go_on(folder, until=5)
    with full_disk(20_000):
        code, _, said = command(capsys, "runs", "resume", folder)
    assert code == 1
    assert "step-00000010: the checkpoint could not be written (file too large)" in said
    assert "the last one is step-00000005" in said
    assert f"nextword runs resume {folder}" in said
    assert names(folder) == ["step-00000005"]
    assert command(capsys, "runs", "resume", folder)[0] == 0


def test_metrics_on_a_full_disk_keep_whole_lines_and_go_on_there(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    with full_disk(500):
        code, _, said = command(capsys, "runs", "resume", folder)
    assert code == 1
    assert f"{folder / 'metrics.jsonl'}: file too large. Free some space, then continue: nextword runs resume" in said
    lines = (folder / "metrics.jsonl").read_text()
    assert lines.endswith("}\n")
    assert command(capsys, "runs", "resume", folder)[0] == 0
    assert len(rows(folder)) == lines.count("\n") + STEPS


def test_a_model_that_does_not_fit_on_the_disk_is_written_later(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    go_on(folder)
    before = content(folder)
    for name in ("report.json", "model.safetensors"):
        (folder / name).unlink()
    with full_disk(20_000):
        code, _, said = command(capsys, "runs", "resume", folder)
    assert code == 1
    assert "file too large" in said
    assert not list(folder.glob(".*"))
    assert not (folder / "report.json").exists()
    assert command(capsys, "runs", "resume", folder)[0] == 0
    assert content(folder)["model.safetensors"] == before["model.safetensors"]


def test_a_line_that_was_cut_off_is_replaced_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st')
    append_line(path, {"step": 1})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_what_killed_processes_left_half_written_is_gone_at_the_next_start(data: Dataset, tmp_path: Path) -> None:
    folder = begin(tmp_path / "run", data)
    go_on(folder, until=5)
    before = names(folder)
    for left in (".model", "checkpoints/.step-00000099.part"):
        (folder / left).mkdir()
        (folder / left / "model.safetensors").write_bytes(b"half")
    (folder / ".report.json.abc.part").write_text("{")
    go_on(folder, until=5)
    assert not list(folder.glob(".*"))
    assert names(folder) == before


# ---- what goes while a run trains


class Meanwhile(Callbacks):
    """Does something once a step is done."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act = step, act

    def on_step(self, step: TrainStep) -> None:
        if step.step == self.step:
            self.act()


@pytest.fixture
def own_data(data: Dataset, tmp_path: Path) -> Dataset:
    """A copy to be damaged."""
    return open_dataset(shutil.copytree(data.folder, tmp_path / "data"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_that_becomes_shorter_ends_the_run_in_one_line_and_not_the_process(
    split: str, own_data: Dataset, tmp_path: Path
) -> None:
    folder = begin(tmp_path / "run", own_data)
    shard = own_data.folder / f"{split}-00000.bin"
    with pytest.raises(RunError, match=f"{split}-00000.bin no longer holds its [0-9,]+ tokens; prepare the data again"):
        resumed(folder, Meanwhile(7, lambda: os.truncate(shard, 100)))
    assert names(folder) == (["step-00000005"] if split == "train" else ["step-00000010", "step-00000012"])


def test_a_run_goes_on_with_data_that_was_deleted_after_it_was_mapped(own_data: Dataset, tmp_path: Path) -> None:
    folder = begin(tmp_path / "run", own_data)
    resumed(folder, Meanwhile(3, (own_data.folder / "train-00000.bin").unlink))
    assert len(losses(folder)) == STEPS
    with pytest.raises(UsageError, match=r"does not hold .* tokens.* Give the text again: nextword runs resume"):
        resume_run(folder)


@pytest.mark.parametrize("away", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("elsewhere"))])
def test_a_folder_that_is_moved_or_deleted_is_not_made_again(
    away: Callable[[Path], object], data: Dataset, tmp_path: Path
) -> None:
    folder = begin(tmp_path / "run", data)
    with pytest.raises(RunError, match=r"run/metrics\.jsonl cannot be written: its folder was moved or deleted"):
        resumed(folder, Meanwhile(7, lambda: away(folder)))
    assert not folder.exists()
    if (elsewhere := tmp_path / "elsewhere").exists():
        go_on(elsewhere)
        assert sorted(losses(elsewhere)) == list(range(STEPS))


def test_a_run_that_cannot_begin_on_a_full_disk_leaves_nothing(data: Dataset, tmp_path: Path) -> None:
    with full_disk(100), pytest.raises(RunError, match=r"run: file too large\. Free some space, then try again"):
        train_run(run_of("gru", data.vocabulary, STEPS), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- run.json and config.toml


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda run: run.update(sources="text"), "sources 'text': give a list"),
        (lambda run: run.update(data=None), "data None: give text"),
        (lambda run: run.pop("fingerprint"), "fingerprint is missing"),
        (lambda run: run.update(colour="red"), "unknown setting 'colour'"),
        (lambda run: run["prediction"].pop("seconds"), "prediction.seconds is missing"),
        (lambda run: run["prediction"].update(memory_parts=[1]), "prediction.memory_parts (1,): give an object"),
        (lambda run: run.update(changes=[{"step": -3}]), "changes.step -3: give a whole number of at least 0"),
        (lambda run: run.update(changes=[{"step": 3, "batch": 4}]), "unknown setting 'changes.batch'"),
        (lambda run: run.update(changes=7), "changes 7: give a list"),
        (lambda run: run.update(format="nextword-run-folder/1"), "the run is from another version of nextword"),
    ],
)
def test_a_value_of_run_json_that_is_none_is_named_in_one_line(
    change: Callable[[dict[str, Any]], Any], wanted: str, data: Dataset, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = begin(tmp_path / "run", data)
    edit(folder, change)
    code, _, said = command(capsys, "runs", "resume", folder)
    assert code == 2
    assert said.startswith(f"nextword: {folder / 'run.json'}: ")
    assert wanted in said


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("run.threads=two", "run.threads 'two': give a whole number of at least 0"),
        ("run.keep_checkpoints=0", "run.keep_checkpoints 0: give a whole number of at least 1"),
        ("run.checkpoint_every=1.5", "run.checkpoint_every 1.5: give a whole number"),
        ("train.on_loss_spike=sometimes", "train.on_loss_spike 'sometimes': give one of stop, skip, rewind"),
        ("train.colour=red", "unknown setting 'train.colour'"),
        ("model.spec.width=0", "width 0: give"),
    ],
)
def test_a_value_of_config_toml_that_is_none_is_named_in_one_line(
    assignment: str, wanted: str, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    edit_config(folder, assignment)
    code, _, said = command(capsys, "runs", "resume", folder)
    assert code == 2
    assert said.startswith(f"nextword: {folder / 'config.toml'}: ")
    assert wanted in said


@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("model.spec.width=48", "model.spec.width: 32 -> 48"),
        ("train.learning_rate=0.5", "train.learning_rate: 0.003 -> 0.5"),
        ("train.steps=40", "train.steps: 12 -> 40"),
        ("run.threads=2", "run.threads: 1 -> 2"),
        ("", "changes"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_they_are_named(
    assignment: str, wanted: str, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begin(tmp_path / "run", data)
    go_on(folder, until=5)
    if assignment:
        edit_config(folder, assignment)
    else:
        edit(folder, lambda run: run.update(changes=[{"step": 2, "learning_rate_scale": 2.0}]))
    before = content(folder)
    code, _, said = command(capsys, "runs", "resume", folder)
    assert code == 2
    assert "step-00000005 was trained with other settings than the run has now" in said
    assert wanted in said
    assert content(folder) == before


def test_a_checkpoint_of_another_shape_is_refused_in_one_line_and_stays(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that another program wrote: its hashes and settings agree, its tensors do not."""
    folder = begin(tmp_path / "run", data)
    go_on(folder, until=5)
    place = folder / "checkpoints" / "step-00000005"
    (file,) = place.glob("*.safetensors")
    tensors = load_file(file)
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    name = next(name for name in tensors if name.startswith("model."))
    save_file({**tensors, name: tensors[name][:-1].copy()}, file, metadata)
    state = json.loads((place / "state.json").read_text())
    state["files"][file.name] = (file.stat().st_size, sha256(file.read_bytes()).hexdigest())
    (place / "state.json").write_text(json.dumps(state))
    before = content(folder)
    code, _, said = command(capsys, "runs", "resume", folder)
    assert code == 1
    assert f"{place}: does not hold this model" in said
    assert content(folder) == before


def test_the_resolved_configuration_trained_again_has_the_same_losses(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen, timed and measured is in config.toml: nothing is chosen again."""
    monkeypatch.setenv("NEXTWORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pipeline, "time_part", lambda *_: StepTime(1, 1e-3, 0.05))
    monkeypatch.setattr(Deadline, "end", lambda self, step, *_: End(40, 58, 50) if step == 40 else None)
    chosen = ["--params", "30k", "--minutes", "3s", "--set", "train.dropout=0.1"]
    first = command(capsys, "train", text_folder, *chosen, "--out", tmp_path / "first")
    assert first[0] == 0, first[2]
    given = ["--config", tmp_path / "first" / "config.toml", "--out", tmp_path / "second"]
    second = command(capsys, "train", text_folder, *given)
    assert second[0] == 0, second[2]
    assert len(losses(tmp_path / "first")) == 50
    assert losses(tmp_path / "second") == losses(tmp_path / "first")
    configs = [(tmp_path / name / "config.toml").read_text() for name in ("first", "second")]
    assert configs[0] == configs[1]


def test_train_run_is_a_function_without_a_terminal_signals_threads_or_ledger(
    data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Watching(Callbacks):
        def on_step(self, step: TrainStep) -> None:
            assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    config, threads = run_of("gru", data.vocabulary, STEPS), torch.get_num_threads()
    generator = torch.get_rng_state()
    result = train_run(config.with_run(threads=threads % 2 + 1), data, tmp_path / "run", Watching())
    assert torch.get_num_threads() == threads
    assert result.measured is not None
    assert result.measured.threads == threads % 2 + 1
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "ledger.jsonl").exists()
    assert torch.equal(torch.get_rng_state(), generator)  # though dropout draws from it
    with pytest.raises(UsageError, match=r"holds another run: train\.seed: 7 -> 8"):
        train_run(config.with_train(seed=8), data, tmp_path / "run")


def test_runs_in_threads_of_one_process_start_from_the_weights_of_their_seed(data: Dataset, tmp_path: Path) -> None:
    config = run_of("lstm", data.vocabulary, STEPS).with_train(dropout=0.0).with_run(threads=1)

    def train(name: int) -> float:
        result = train_run(config, data, tmp_path / str(name))
        assert result.measured is not None
        return result.measured.nats_per_token

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(train, range(4)))
    assert set(together) == {train(4)}


def test_a_run_that_is_told_to_stop_does_and_is_continued_by_the_same_call(data: Dataset, tmp_path: Path) -> None:
    class Stopping(Callbacks):
        def __init__(self) -> None:
            self.steps = 0

        def on_step(self, step: TrainStep) -> None:
            self.steps += 1

        def should_stop(self) -> bool:
            return self.steps == 4

    config = run_of("gru", data.vocabulary, STEPS)
    assert train_run(config, data, tmp_path / "run", Stopping()).outcome.interrupted
    assert len(rows(tmp_path / "run")) == 5
    assert train_run(config, data, tmp_path / "run").measured is not None
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(STEPS))


# ---- runs list


@pytest.mark.usefixtures("trouble_at_step_7")
def test_the_list_tells_how_each_run_stands(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(begin(tmp_path / "runs" / "a", data, learning_rate=2e-3))
    go_on(begin(tmp_path / "runs" / "b", data), until=6)
    stopped = begin(tmp_path / "runs" / "c", data)
    with pytest.raises(RunError, match="step 7"):
        go_on(stopped)
    begin(tmp_path / "runs" / "d", data)

    def states() -> list[str]:
        rows = json.loads(command(capsys, "runs", "list", tmp_path / "runs", "--json")[1])
        return [f"{row['state']} at {row['step']}" for row in rows]

    with locked_run(tmp_path / "runs" / "d"):
        (tmp_path / "runs" / "old").mkdir()
        (tmp_path / "runs" / "old" / "run.json").write_text('{"format": "nextword-run-folder/1"}')
        assert sorted(states()) == ["finished at 12", "interrupted at 6", "running at 0", "stopped at 7"]
        assert "stopped by a loss spike at step 7" in command(capsys, "runs", "list", tmp_path / "runs")[1]
        code, _, said = command(capsys, "runs", "resume", tmp_path / "runs" / "d")
        assert code == 2
        assert "another process is training this run" in said
    assert "running at 0" not in states()
