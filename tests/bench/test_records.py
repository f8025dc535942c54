"""The log of a measurement: what was done is not done again, whatever ended it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.bench.records import Job, Log, Run, Tick
from localmoe.errors import StorageError, UsageError

JOB = Job("m", 1000, "page", 400, 0, prompt_tokens=4, steps=8)
JOBS = [replace(JOB, repeat=i) for i in range(3)]
RUN = Run(job=JOB, ticks=(Tick(1, 0.5, 10), Tick(2, 1.0, 30)), hits=3, charged_peak=7, error="")


def test_read_back_as_written(tmp_path: Path) -> None:
    """Every field survives the file."""
    path = tmp_path / "log.jsonl"
    Log(path).add(RUN)
    assert Log(path).runs == [RUN]


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Jobs with a run are not missing; another setting is another job."""
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.add(RUN)
    log.add(replace(RUN, job=JOBS[2]))
    again = Log(path)
    assert again.missing(JOBS) == [JOBS[1]]
    assert again.missing([replace(JOB, steps=9)]) == [replace(JOB, steps=9)]
    assert again.of(JOBS[:1]) == [RUN]


def test_a_line_cut_by_a_crash_is_forgotten(tmp_path: Path) -> None:
    """The run before it stays, and the next one is appended to a new line."""
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.add(RUN)
    with path.open("a") as file:
        file.write('{"job":{"mod')
    again = Log(path)
    assert again.runs == [RUN]
    again.add(replace(RUN, job=JOBS[1]))
    assert [run.job for run in Log(path).runs] == JOBS[:2]


@pytest.mark.parametrize("text", ["not json\n", '{"a": 1}\n', "[]\n{}\n"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    """And not written to."""
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"notes\.txt:1"):
        Log(path)
    assert path.read_text() == text


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Log(tmp_path / "no" / "log.jsonl").add(RUN)
