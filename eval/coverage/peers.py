"""The peers on the same architectures as our own coverage run, in an environment of their own.

    python eval/coverage/peers.py                        # everything, resumed where it stopped
    python eval/coverage/peers.py --only 'mobilenet*'
    python eval/coverage/peers.py --page                 # only write PEERS.md again

Makes a virtual environment with SpikingJelly and sinabs (torch and timm are those of the Python
that runs this), then one process per architecture and peer, bounded in time and memory. Takes the
smallest architecture of each family from results.json, or --architectures FILE, a JSON object of
names and image sizes. Rows go to peers.json as they come, those of other architectures or sizes
go; the page is PEERS.md. A quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import sysconfig
import time
import venv
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PINNED = ("spikingjelly==2.0.0", "sinabs==3.1.3")
BESIDE = ("loguru", "pbr", "nir", "nirtorch", "h5py")
CONTROLS = {"torchvision/resnet18": 64, "torchvision/vit_b_16": 64}
SCHEMA = "mt_convert.coverage_peers/1"
INSIDE = "MT_CONVERT_PEERS_ENVIRONMENT"


def main() -> None:
    """Make the environment, run what is missing in it, write the page."""
    options = arguments()
    if not options.page:
        if INSIDE not in os.environ:
            sys.exit(again_in(environment(options.environment)))
        run(options)
    import peers_page

    peers_page.write(HERE)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", metavar="PATTERN", default="*", help="architectures to run")
    parser.add_argument("--page", action="store_true", help="only write the page from peers.json")
    parser.add_argument("--architectures", type=Path, metavar="FILE")
    parser.add_argument("--environment", type=Path, default=HERE / ".venv-peers")
    parser.add_argument("--seconds", type=float, default=120.0, help="limit of one process")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="limit of one process")
    return parser.parse_args()


def environment(folder: Path) -> Path:
    """The Python of a virtual environment that holds the peers; made if it is not there."""
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    borrowed = folder / "lib" / version / "site-packages" / "borrowed.pth"
    if not borrowed.exists():
        print(f"making {folder} ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps"]
        constraints = ["-c", ROOT / "constraints.txt"]
        subprocess.run([*install, *constraints, *PINNED, *BESIDE], check=True)
        # Last, because pip would take what it sees there for installed.
        borrowed.write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python


def again_in(python: Path) -> int:
    """Run this command in another Python; its exit code."""
    path = os.pathsep.join([str(HERE), str(ROOT)])
    variables = {"PYTHONPATH": path, INSIDE: "1", "OMP_NUM_THREADS": "1"}
    command = [python, Path(__file__), *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, **variables}).returncode


def run(options: argparse.Namespace) -> None:
    """Try every architecture with every peer that peers.json does not hold yet."""
    import peers_trial

    from mt_convert.system.storage import write_json

    settings = {
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("spikingjelly", "sinabs", "torch", "timm", "torchvision")
        },
        "images": peers_trial.IMAGES,
        "calibration_batches": peers_trial.CALIBRATION_BATCHES,
        "time_steps": peers_trial.TIME_STEPS,
        "limits": {"seconds": options.seconds, "gigabytes": options.gigabytes},
    }
    sizes = {**architectures(options.architectures), **CONTROLS}
    jobs = [(a, size, p) for a, size in sizes.items() for p in peers_trial.PEERS]
    order = {job: place for place, job in enumerate(jobs)}
    rows = [row for row in read_stored(HERE / "peers.json", settings) if job_of(row) in order]
    done = {job_of(row) for row in rows}
    missing = [job for job in jobs if job not in done and fnmatch.fnmatch(job[0], options.only)]
    print(f"{len(missing)} of {len(jobs)} to run", flush=True)
    families = family_of(sizes)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["peers_trial"])
    for number, job in enumerate(missing, 1):
        names = dict(zip(("architecture", "input_size", "peer"), job, strict=True))
        row = {**names, "family": families[job[0]], **run_job(context, job, options)}
        rows.append(row)
        rows.sort(key=lambda row: order[job_of(row)])
        content = {"schema": SCHEMA, "settings": settings, "calls": peers_trial.calls()}
        write_json(HERE / "peers.json", {**content, "rows": rows})
        summary = row["error"] or f"{row['spiking_layers']} spiking, left {row['operators_left']}"
        print(f"{number}/{len(missing)} {job[0]} {job[2]}: {summary}", flush=True)


def job_of(row: dict[str, Any]) -> tuple[str, int, str]:
    """What was tried to come to this row."""
    return row["architecture"], row["input_size"], row["peer"]


def architectures(file: Path | None) -> dict[str, int]:
    """Names and image sizes: from ``file``, or the smallest of each family in results.json."""
    if file is not None:
        return {name: int(size) for name, size in json.loads(file.read_text()).items()}
    ours = HERE / "results.json"
    if not ours.exists():
        sys.exit(f"no {ours.name} beside this script: pass --architectures FILE")
    import peers_page

    return peers_page.smallest(json.loads(ours.read_text())["rows"])


def read_stored(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run with the same settings; exits if they were others."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != settings:
        sys.exit(
            f"{path.name} was made with {content['settings']}, not {settings}: move it away to "
            "start anew, or ask for the same limits"
        )
    return list(content["rows"])


def family_of(names: dict[str, int]) -> dict[str, str]:
    """timm's module of each architecture, and the library's name for those of others."""
    from timm.models import _registry

    return {n: _registry._model_to_module.get(n) or n.partition("/")[0] for n in names}


def run_job(context: Any, job: tuple[str, int, str], options: argparse.Namespace) -> dict[str, Any]:
    """One trial in a process of its own; a process that dies or takes too long gives a row too."""
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(send, job, options.gigabytes))
    started = time.perf_counter()
    process.start()
    send.close()
    error = f"stopped after {options.seconds:g} s"
    if receive.poll(options.seconds):
        try:
            return dict(receive.recv())
        except EOFError:
            process.join()
            error = f"the process ended with exit code {process.exitcode}"
    process.kill()
    process.join()
    return {
        **{"converted": False, "forward": None, "spiking_layers": 0, "shared_neurons": None},
        **{"time_operators": 0, "activations": None, "modules_left": None, "operators_left": None},
        **{"stage": "unknown", "error": error, "seconds": round(time.perf_counter() - started, 2)},
    }


def child(send: Connection, job: tuple[str, int, str], gigabytes: float) -> None:
    """Runs in the process of one trial: bounds its memory, silences it, sends the row back."""
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    import peers_trial
    import torch

    torch.set_num_threads(1)
    send.send(peers_trial.trial(*job))


if __name__ == "__main__":
    main()
