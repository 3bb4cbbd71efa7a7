"""Everything in this folder, by one command:

    python eval/conversion_error/regenerate.py --data FOLDER --weights FILE

FOLDER holds train.tar and test.tar of JPEG CIFAR-10, FILE the fp32 ResNet-20. The W4A4 and W2A2
networks of eval/cifar10_resnet20 are trained if --runs lacks them, and each of them for one epoch
more with every noise. Finished results are cached: a stopped command continues.
``--only PART ...`` makes single parts of the sweep (two commands at once share only finished
results), ``--pages`` writes the table and the page from the results that are there and
names the missing ones.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import page

from mt_convert.errors import SpecError, UnsupportedLayerError
from mt_convert.evaluation.analysis import Analysis, analyses
from mt_convert.evaluation.peers.converters import PEERS
from mt_convert.evaluation.peers.network import available
from mt_convert.evaluation.row_cache import RowCache
from mt_convert.evaluation.settings import METHODS, PeerSetting, Setting, with_calibration
from mt_convert.evaluation.subject import Subject
from mt_convert.experiments.study import run_chain, run_command, study_parser
from mt_convert.experiments.subjects import subjects_of
from mt_convert.report.rows import Row, results_from_json, results_to_json
from mt_convert.system.network_files import holds_network
from mt_convert.system.storage import read_json, write_json

HERE = Path(__file__).parent
ANALYSIS_IMAGES = 256  # images of errors by cause and of energy
SUBSET = 2000  # the first of the seeded order (data.seed 0) of all 10,000 test images
TIME_STEPS = (1, 2, 4, 8, 16, 32)
N = (1, 3, 7, 15)
CALIBRATED_FOR = (2, 8, 32)
BATCH = 125
BITS = ("w4a4", "w2a2")
UNSETTLED = {"w4a4": {1: 32, 3: 8, 7: 2}, "w2a2": {1: 8}}  # by n, the last T that is not exact
NOISES = ("none", "stochastic", "drop", "additive")
CALIBRATIONS = (
    *(
        "mse+membrane_mean",
        "mse+layer_wise(epochs=3)",
        "mse",
        "membrane_mean",
        "layer_wise(epochs=3)",
    ),
    *("alpha_beta", "percentile", "gaussian", "maximum(0.7)", "alpha_beta(signed)"),
    "thresholds(levels=3)",
)
FLOAT = "float"


@dataclass(frozen=True)
class Part:
    """Settings of one network: the name of a run, or `FLOAT`; on so many images, None for all."""

    name: str
    network: str
    settings: tuple[Setting | PeerSetting, ...]
    images: int | None = SUBSET

    @property
    def run(self) -> str:
        """The folder, below --runs, that its networks come from."""
        return "cifar10_resnet20_w4a4" if self.network == FLOAT else self.network


def parts() -> list[Part]:
    """The sweep, what tells most first."""
    signs = (True, False)
    trained = {bits: f"cifar10_resnet20_{bits}" for bits in BITS}
    short = [item for n in (3, 1) for sign in signs for item in calibrations(even(n, sign))]
    more = [item for n in (7, 15) for item in calibrations(even(n, True))]
    kinds = [kind(n) for n in (3, 1) for kind in (once, lambda n: even(n, False))]
    noisy = [
        Part("noise", f"qat_noise/{bits}_{noise}", (kind,))
        for bits in BITS
        for kind in map(first_steps, kinds)
        for noise in NOISES
    ]
    return [
        Part("float", FLOAT, tuple(even(n, sign) for n in N for sign in signs)),
        *(Part("qann", run, tuple(map(once, N))) for run in trained.values()),
        Part("peers", FLOAT, tuple(PeerSetting(name, TIME_STEPS) for name in PEERS)),
        *(
            Part(f"calibrated_{n}", FLOAT, few_steps(i for i in short if i.ladder.n == n))
            for n in (3, 1)
        ),
        *headline(),
        *noisy,
        Part("baselines", FLOAT, (METHODS["rate"].setting(1, TIME_STEPS), *ladders())),
        *(Part("qann_calibrated", trained[bits], tuple(unsettled(bits))) for bits in BITS),
        Part("calibrated_more", FLOAT, few_steps(more)),
        *(
            Part("calibrated_long", FLOAT, tuple(i for i in (*short, *more) if long(i, text)))
            for text in CALIBRATIONS
        ),
        *(
            Part("noise_long", f"qat_noise/w4a4_{noise}", (last_steps(once(1)),))
            for noise in NOISES
        ),
    ]


def few_steps(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """Those of at most 8 steps: the others take most of the time and tell least."""
    return tuple(setting for setting in settings if setting.time_steps[-1] <= 8)


def long(setting: Setting, text: str) -> bool:
    """16 and 32 steps with one calibration: signed neurons, and one unsigned threshold, up to
    n = 3 (with more thresholds the network is the float one by T = 8); the search for each layer's
    number of thresholds, the longest of all, with signed neurons alone."""
    if setting.time_steps[-1] <= 8 or setting.calibration_name != text or setting.ladder.n > 3:
        return False
    return setting.signed or (setting.ladder.n == 1 and "thresholds" not in text)


def unsettled(bits: str) -> Iterator[Setting]:
    """Calibrations of a trained network while it is not yet exact without: later T repeat it."""
    for n, last in UNSETTLED[bits].items():
        steps = tuple(T for T in TIME_STEPS if last >= T)
        yield from calibrations(dataclasses.replace(once(n), time_steps=steps))


def first_steps(setting: Setting) -> Setting:
    """A setting for up to 8 steps."""
    return dataclasses.replace(setting, time_steps=TIME_STEPS[:4])


def last_steps(setting: Setting) -> Setting:
    """A setting for 16 and 32 steps."""
    return dataclasses.replace(setting, time_steps=TIME_STEPS[4:])


def even(n: int, signed: bool) -> Setting:
    """The image in every step; with one threshold this is QCFS, or a ternary IF neuron."""
    name = ("signed_if" if signed else "qcfs") if n == 1 else "mt_uniform"
    return dataclasses.replace(METHODS[name].setting(n, TIME_STEPS), signed=signed)


def once(n: int) -> Setting:
    """The image once, signed neurons: settles on the quantized network."""
    return METHODS["mt_signed"].setting(n, TIME_STEPS)


def ladders() -> Iterator[Setting]:
    """As many thresholds that are not equal: binary cascades and powers of two."""
    for name, counts in (("mt_binary", (2, 3, 4)), ("mt_power_of_two", (3,))):
        for n in counts:
            yield METHODS[name].setting(n, TIME_STEPS)


def calibrations(setting: Setting) -> Iterator[Setting]:
    """A setting with each calibration; layer by layer up to 8 steps, whose time grows with T."""
    for text in CALIBRATIONS:
        for variant in with_calibration(setting, text, CALIBRATED_FOR):
            if "layer_wise" not in text or variant.time_steps[-1] <= 8:
                yield variant


def headline() -> list[Part]:
    """The rows that the page opens with, on all test images."""
    few = {"time_steps": (1, 2, 4)}
    ours = [dataclasses.replace(even(3, signed), **few) for signed in (True, False)]
    best = with_calibration(ours[0], "mse+membrane_mean", (4,))
    exact = dataclasses.replace(once(3), time_steps=(1, 2, 4, 8))
    return [
        Part("headline", FLOAT, (*ours[:1], *best), None),
        *(Part("headline", f"cifar10_resnet20_{bits}", (exact,), None) for bits in BITS),
    ]


def main() -> None:
    """Train what is missing, compute the results that are missing, write the table and the page."""
    arguments = study_parser(__doc__, "names of parts").parse_args()
    study = Study(
        arguments.runs, (f"data.root={arguments.data}", f"model.checkpoint={arguments.weights}")
    )
    if not arguments.pages:
        study.train(arguments.only)
        for part in parts():
            if not arguments.only or part.name in arguments.only:
                study.make(part)
        if not arguments.only or "errors" in arguments.only:
            study.analyses()
    if not arguments.only:
        (rows, missing), causes = study.collect(), study.analyses()
        write_json(HERE / "results.json", results_to_json(rows))
        write_json(HERE / "errors.json", [item.to_json() for item in causes])
        page.write(rows, missing, causes, HERE)


@dataclass
class Study:
    """Where runs and cached results lie, and which words name data and weights."""

    runs: Path
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        self.cache = RowCache(self.runs / "conversion_error", BATCH)
        self._subjects: dict[tuple[str, int | None], Subject] = {}

    def train(self, only: list[str] | None) -> None:
        """The quantized networks, and each one epoch further with every noise."""
        for bits in BITS:
            name = f"cifar10_resnet20_{bits}"
            if only is None or {"qann", "noise", "qann_calibrated", "headline"} & set(only):
                run_chain(self.runs, name, *self.words)
            for noise in NOISES if only is None or "noise" in only else ():
                few = ("evaluate.thresholds=[15]", "evaluate.time_steps=[1]")
                start = f"quantize.checkpoint={self.runs / name / 'train'}", "model.from_run=null"
                words = (*start, f"quantize.act_noise={noise}", "train.epochs=1", "train.lr=0.0005")
                less = (*few, "evaluate.iso_level=false", f"evaluate.images={SUBSET}")
                self._run(name, self.runs / "qat_noise" / f"{bits}_{noise}", (*words, *less))

    def _run(self, recipe: str, out: Path, more: tuple[str, ...] = ()) -> None:
        """One run of the real command."""
        if (out / "results.json").is_file():
            return
        run_command("run", recipe, *self.words, *more, "--out", str(out), "--resume")

    def subject(self, part: Part) -> Subject:
        """The networks and images of a part."""
        key = part.network, part.images
        if key not in self._subjects:
            act_bits = 8 if part.network == FLOAT else None
            words = self.words[:1]
            (subject,) = subjects_of(str(self.runs / part.run), [], words, act_bits, part.images)
            if part.network.startswith("qat_noise"):
                subject.describe["model"] += ", one epoch more"
            self._subjects[key] = subject
        return self._subjects[key]

    def make(self, part: Part) -> None:
        """All results of a part; a peer that is not installed is skipped and named."""
        for setting in part.settings:
            if isinstance(setting, PeerSetting) and (why := available(setting.method)):
                print(f"{setting.method}: {why}", file=sys.stderr)
                continue
            try:
                self.cache.rows(self.subject(part), [setting], f"{part.name}, {part.network}")
            except (SpecError, UnsupportedLayerError) as error:
                print(f"{part.name}, {part.network}: {error}", file=sys.stderr)

    def analyses(self) -> list[Analysis]:
        """Errors by cause and energy of a few settings, on the first `ANALYSIS_IMAGES` images."""
        plain = [dataclasses.replace(even(3, sign), time_steps=(1, 4)) for sign in (True, False)]
        by_first = [tuple(with_calibration(setting, CALIBRATIONS[0], (4,))) for setting in plain]
        trained = tuple(dataclasses.replace(once(n), time_steps=(1, 4)) for n in (1, 3))
        groups = [
            Part("errors", "cifar10_resnet20_w4a4", trained),
            *(Part("errors", FLOAT, (setting,)) for setting in plain),
            *(Part("errors", FLOAT, settings) for settings in by_first),
        ]
        return [
            analysis
            for part in groups
            for analysis in analyses(
                self.subject(part), part.settings, ANALYSIS_IMAGES, self.cache.folder
            )
        ]

    def collect(self) -> tuple[list[Row], list[str]]:
        """The rows of all finished results, and what is missing."""
        rows_by_file: dict[Path, list[Row]] = {}
        missing: list[str] = []
        for part in parts():
            if not holds_network(self.runs / part.run / "train"):
                missing += [f"{part.network}: not trained"]
                continue
            for setting in part.settings:
                path = self.cache.path(self.subject(part), setting)
                if path.is_file():
                    rows_by_file[path] = results_from_json(read_json(path)["results"])
                else:
                    missing.append(f"{part.network}: {page.setting_words(setting)}")
        return [row for rows in rows_by_file.values() for row in rows], missing


if __name__ == "__main__":
    main()
