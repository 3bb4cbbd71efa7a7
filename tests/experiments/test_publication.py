"""A process killed anywhere while it publishes leaves the old run or the new one, whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from system_calls import kill_after

from mt_convert.errors import OutputError
from mt_convert.experiments import publication
from mt_convert.experiments.publication import publish, recover

NAMES = ("first", "second", "third")
OLD = {
    "first/a": "old",
    "second/a": "old",
    "second/deep/b": "old",
    "third/a": "kept",
    "results.json": "old",
    "recipe.yaml": "old",
    "versions.json": "old",
    "log.jsonl": "log",
    "finetuned/bptt/x": "of the user",
}
NEW = OLD | {
    "first/a": "new",
    "second/a": "new",
    "second/deep/b": "new",
    "results.json": "new",
    "recipe.yaml": "new",
    "versions.json": "new",
}


def write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def old_run(out: Path) -> None:
    """A finished run, and new stages that wait beside the old ones."""
    write(out, OLD)
    for name in ("first", "second"):
        texts = {key: text for key, text in NEW.items() if key.startswith(f"{name}/")}
        write(out, {f"{name}.new/{key.split('/', 1)[1]}": text for key, text in texts.items()})


def describe(folder: Path) -> None:
    for name in ("recipe.yaml", "versions.json", "results.json"):
        (folder / f"{name}.tmp").write_text("new")
        os.replace(folder / f"{name}.tmp", folder / name)


def publish_new(out: Path) -> None:
    moved = {out / f"{name}.new": name for name in ("first", "second")}
    publish(out, NAMES, {path: name for path, name in moved.items() if path.exists()}, describe)
    for name in NAMES:
        publication.remove(out / f"{name}.new")


def content(out: Path) -> dict[str, str]:
    """All that stands in a folder for people to see."""
    files = (path for path in out.rglob("*") if path.is_file())
    names = {str(path.relative_to(out)): path.read_text() for path in files}
    return {name: text for name, text in names.items() if ".new/" not in name}


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Do work in a process that ends itself at its so manieth call of the system; False if it came
    to its end before."""
    child = os.fork()
    if child == 0:
        try:
            kill_after(step)
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.long
def test_at_every_call_of_the_system_one_of_both_runs_is_there_whole(tmp_path: Path) -> None:
    found, step = [], 0
    while True:
        out = tmp_path / str(step) / "run"
        old_run(out)
        killed = killed_at(step, lambda out=out: publish_new(out))  # type: ignore[misc]
        found.append(content(out) == NEW)
        assert content(out) in (OLD, NEW)
        recover(out, NAMES)
        publish_new(out)
        assert content(out) == NEW
        assert sorted(path.name for path in out.iterdir()) == sorted(
            {name.split("/")[0] for name in NEW}
        )
        assert [path.name for path in out.parent.iterdir()] == ["run"]
        if not killed:
            break
        step += 1
    assert step > 48
    assert found == sorted(found)
    assert not found[0]


def cannot(*_: object, **__: object) -> None:
    raise OSError("not here")


@pytest.mark.parametrize("lacking", ["exchange", "_link"])
def test_where_folders_cannot_be_exchanged_the_stages_follow_one_another(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, lacking, cannot)
    out = tmp_path / "run"
    old_run(out)
    publish_new(out)
    assert content(out) == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_working_folder_stays_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    old_run(out)
    monkeypatch.chdir(out / "first")
    before = out.stat().st_ino
    publish_new(Path(".."))
    assert content(out) == NEW
    assert out.stat().st_ino == before


def test_links_pipes_and_modes_of_the_user_stay(tmp_path: Path) -> None:
    out = tmp_path / "run"
    old_run(out)
    (out / "link").symlink_to("/nowhere")
    os.mkfifo(out / "pipe")
    (out / "log.jsonl").chmod(0o600)
    out.chmod(0o750)
    publish_new(out)
    assert os.readlink(out / "link") == "/nowhere"
    assert (out / "pipe").is_fifo()
    assert [path.stat().st_mode & 0o777 for path in (out, out / "log.jsonl")] == [0o750, 0o600]


def test_through_a_link_the_folder_behind_it_is_published(tmp_path: Path) -> None:
    old_run(tmp_path / "disk" / "run")
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    publish_new(tmp_path / "run")
    assert (tmp_path / "run").is_symlink()
    assert content(tmp_path / "disk" / "run") == NEW


def test_what_cannot_be_described_leaves_the_old_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    old_run(out)

    def full(folder: Path) -> None:
        raise OutputError("no space")

    with pytest.raises(OutputError):
        publish(out, NAMES, {out / "first.new": "first"}, full)
    assert content(out) == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_versions_before_left_is_cleared_up(tmp_path: Path) -> None:
    write(tmp_path, {"first.old/a": "only", "second.old/a": "old", "second/a": "new"})
    recover(tmp_path, NAMES)
    assert content(tmp_path) == {"first/a": "only", "second/a": "new"}
