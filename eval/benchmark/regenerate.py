"""Everything in this folder, by one command on a machine that does nothing else:

    python eval/benchmark/regenerate.py --threads 2
    python eval/benchmark/regenerate.py --device cuda --out FOLDER

ResNet-20 at batches of 1 and 128 beside everything, at 32 with T up to 16; ResNet-18, MobileNetV2
and EfficientNet-Lite0 at 224 pixels beside all float networks. `--profile` says where the time goes
by kind of layer, in profile.md, one thread; `--busy` what threads bring on free and on busy cores,
in busy.md. `--run FOLDER` takes a trained ResNet-20 instead of random weights, `--lite0 FOLDER` a
pretrained EfficientNet-Lite0. What is not installed is named on the page; all is there with the
extra `export`, spikingjelly and sinabs. Parts that are done are kept in --parts and not timed
again; `--pages` writes the page from results.json alone.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from mt_convert.experiments.bench import layers, threads
from mt_convert.experiments.bench.command import (
    BenchOptions,
    publish,
    run_layers,
    run_threads,
    time_networks,
)
from mt_convert.experiments.bench.contenders.contender import ContenderKind
from mt_convert.experiments.bench.contenders.registry import all_contenders
from mt_convert.experiments.bench.rows import Benchmark, benchmark_from_json, merge
from mt_convert.system.storage import atomic, digest, read_json, write_json

HERE = Path(__file__).parent
ROUNDS = 7
PEER_STEPS = (4, 16)
LARGE = ("resnet18", "mobilenetv2_100", "tf_efficientnet_lite0")
PROFILE = """# Where the time goes, by kind of layer

The integer network by its native kernels, one thread, neurons included; "of limit" is the share of
the int8 multiply-adds that the machine did at best in the same rounds. "sums by oneDNN": the sums
alone, without neurons, by torch's int8 kernels where they are exact, of bytes that lie ready. Where
those took longer than sums and neurons here, or not much less, a library's kernels would gain
nothing.

"""
BUSY = """# Threads, on free cores and on busy ones

One thread and two, of ours and of onnxruntime, with nothing beside and with a process on every core
that never rests. Each call is timed by itself; "of one" are the median and the 99th percentile of
the calls of a round beside those of one thread in the same round, the median of the rounds. The
aims for batch 1 and two threads on busy cores: 1.1, and 2 for the 99th percentile.

`python eval/benchmark/regenerate.py --busy --threads 2` makes this page.
"""
OURS = ("integer_native", "integer_native_binary")
INT8 = ("onnxruntime_int8", "onnxruntime_int8_sums")
PEERS = ("spikingjelly_rate", "sinabs")


def parts(base: BenchOptions, resnet20: str, lite0: str = LARGE[-1]) -> list[BenchOptions]:
    """What is timed together, what tells most first; no network and batch stands there twice."""
    large = (*LARGE[:-1], lite0)
    steps = (1, 2, *PEER_STEPS[:1], 8, *PEER_STEPS[1:])
    floats = [name for name, item in all_contenders().items() if item.kind is ContenderKind.FLOAT]
    rivals = (*OURS, *floats, *INT8)
    groups = [
        *(((resnet20,), (batch,), (1, 4), ()) for batch in (128, 1)),
        ((resnet20,), (32,), steps, (*rivals, "simulate_compile", *PEERS)),
        *(((name,), (batch,), (1, 4), rivals) for name in large for batch in (1, 32)),
    ]
    return [
        replace(base, networks=names, batches=batches, time_steps=T, contenders=contenders)
        for names, batches, T, contenders in groups
    ]


def main() -> None:
    """Time what is not there yet, then write results, page and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", default="resnet20_cifar", help="folder of a run of ResNet-20")
    parser.add_argument("--lite0", default=LARGE[-1], help="folder of a run of EfficientNet-Lite0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--parts", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--pages", action="store_true", help="write the page from results.json")
    parser.add_argument("--profile", action="store_true", help="time layers: profile.md alone")
    parser.add_argument("--busy", action="store_true", help="time threads: busy.md alone")
    parser.add_argument("--before", type=Path, help="layers.json of an earlier profile")
    arguments = parser.parse_args()
    if arguments.profile:
        networks = (arguments.run, *LARGE[:-1], arguments.lite0)
        write_profile(networks, arguments.rounds, arguments.parts, arguments.out, arguments.before)
        return
    if arguments.busy:
        networks = (arguments.run, *LARGE[:-1], arguments.lite0)
        options = BenchOptions(networks, (1,), (1,), rounds=arguments.rounds, device="cpu")
        times = run_threads(replace(options, threads=arguments.threads), arguments.parts / "busy")
        threads.publish(times, arguments.out, BUSY)
        return
    if not arguments.pages:
        base = BenchOptions(
            (arguments.run,),
            rounds=arguments.rounds,
            threads=arguments.threads,
            device=arguments.device,
            memory=not arguments.no_memory,
            every=True,
        )
        whole = parts(base, arguments.run, arguments.lite0)
        benchmark = merge([time_part(part, arguments.parts) for part in whole])
        write_json(arguments.out / "results.json", benchmark.to_json())
    stored = benchmark_from_json(read_json(arguments.out / "results.json"))
    publish((HERE / "head.md").read_text(), stored, arguments.out)


def write_profile(
    networks: tuple[str, ...], rounds: int, store: Path, out: Path, before: Path | None
) -> None:
    """Time the layers of these networks and set them beside an earlier profile's."""
    options = BenchOptions(networks, (1,), (1, 4), rounds=rounds, threads=1, device="cpu")
    runs = {"now": run_layers(options, store / "layers")}
    if before is not None:
        runs = {"before": layers.read(before.parent), **runs}
    write_json(out / "layers.json", runs["now"].to_json())
    with atomic(out / "profile.md") as temporary:
        temporary.write_text(PROFILE + layers.profile(runs))


def time_part(part: BenchOptions, folder: Path) -> Benchmark:
    """A part from its file, or timed now."""
    path = folder / f"{digest({'schema': 'benchmark_part/1', **asdict(part)})[:16]}.json"
    if not path.is_file():
        write_json(path, time_networks(part, folder / "networks").to_json())
    return benchmark_from_json(read_json(path))


if __name__ == "__main__":
    main()
