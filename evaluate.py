"""Score a checkpoint, or the pictures of any method, on characters that training never saw.

    python evaluate.py --checkpoint runs/demo/best.pth --output_dir runs/demo/eval
    torchrun --nproc_per_node=2 evaluate.py --checkpoint runs/demo/best.pth --benchmark all --output_dir runs/demo/benchmark
    python evaluate.py --predictions OTHER/restored --benchmark rubbing --output_dir OTHER/scores
    python evaluate.py --real path/to/characters --output_dir runs/real
    python evaluate.py --real_clean path/to/clean/characters --output_dir runs/clean

A picture is restored as restore.py restores it: polarity and place are found, the network runs, the result goes back to its place.
But a network that takes a guide is told each character, unless --no-guide is passed. `--network_only` scores the bare network on
squares whose strokes are bright.

Without --benchmark, the test (or --split) characters of the pack, in hands of the training set ("seen_hands") and in held-out hands
("unseen_hands"), are degraded with a fixed seed at the network's image size. With it, the pictures are those of the frozen
benchmark; two results are comparable only under the same benchmark name. `prepare_data.py pairs --benchmark` writes its pictures
as files for other methods. Characters of a clerical hand, from data/copyleft.pack, are scored beside it. The restored picture and
the baselines (the degraded picture, Otsu's threshold, a median filter before it, a local threshold) are compared with the clean
picture and read by two recognisers: one was trained on clean glyphs, the hardened one on degraded glyphs too. Every picture is
scored once, however many processes there are. tools/compare.py compares two results. Writes to --output_dir:

    metrics.json      means and differences with 95 % intervals, by split, preset, severity and hand; what was scored
    per_picture.csv   one row per picture
    sheet.png         best, median and worst pictures by gain in PSNR: degraded, restored, clean
    report.html       all of it in one file

With --real, pictures of real characters, named by the character, are read before and after restoration. With --real_clean, clean
real characters are restored and compared with themselves, the contrast raised. Both write real.json.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from datasets import degradation
from datasets.pack import Pack, open_pack
from datasets.pairs import EVALUATION_SEED, HandwritingSet
from evaluation import benchmark, report
from evaluation.benchmark import Benchmark, clerical_benchmark
from evaluation.predictors import FolderPredictor, NetworkPredictor, PipelinePredictor
from evaluation.real import score_clean, score_real, show_clean, show_real
from evaluation.scoring import HARDENED, READINGS, RECOGNISER, RESTORED, Recognition, Scorer, score_all
from evaluation.sheet import draw_sheet, pick_tiles
from evaluation.sources import BenchmarkSource, held_out
from evaluation.statistics import calibration, calibration_of_readings
from evaluation.tables import frechet, show, tabulate, write_csv
from models.files import load_network
from models.recogniser import load_recogniser
from restoration.drawing import GUIDANCE, Drawing
from restoration.pipeline import COPYLEFT, PACK, WEIGHTS, Restorer, load_restorer
from restoration.reading import Reader, load_reader
from util import distributed
from util.files import replacing, write_json
from util.images import write_png
from util.settings import number
from util.version import VERSION, commit


def open_restorer(args: argparse.Namespace) -> Restorer:
    """The restorer of the checkpoint; the first process exports it where the others expect it."""
    threads = max(1, distributed.cpu_count() // distributed.local_world_size())
    first = distributed.rank() == 0
    if not first:
        distributed.barrier()
    try:
        return load_restorer(args.checkpoint, args.runtime, args.device, args.data, threads)
    finally:
        if first:
            distributed.barrier()


class Models(NamedTuple):
    """A network, or a restorer and its reader, its settings, and the recognisers: {suffix of their scores: (network, info)}."""

    network: nn.Module | None
    restorer: Restorer | None
    reader: Reader | None
    settings: dict
    judges: dict[str, tuple[nn.Module, dict]]


def load_models(args: argparse.Namespace, device: torch.device) -> Models:
    """The network or the restorer, none for predictions, and the recognisers."""
    network, restorer, reader, settings = None, None, None, {}
    if args.network_only:
        network, settings = load_network(args.checkpoint, device)
    elif not args.predictions:
        restorer = open_restorer(args)
        settings, reader = restorer.settings, load_reader(restorer) if args.read else None
    judges = {key: load_recogniser(path, device) for key, path in recognisers(args).items()}
    return Models(network, restorer, reader, settings, judges)


def set_up(
    args: argparse.Namespace, models: Models, pack: Pack, frozen: Benchmark | None, device: torch.device
) -> tuple[Scorer, dict]:
    """The scorer, and a description of the method, the pictures and the recognisers for metrics.json."""
    settings = models.settings
    about: dict = {"data": {"path": Path(args.data).name, "checksum": pack.checksum, "split": args.split}}
    if frozen:
        about["benchmark"] = {"name": frozen.name, "names": frozen.names, "per_cell": benchmark.PER_CELL}
        about["benchmark"] |= {"severities": benchmark.SEVERITIES, "generator": degradation.VERSION}
        about["damage"] = {"preset": args.benchmark, "table": frozen.tables, "seed": frozen.seed}
    guided, drawing = False, Drawing(args.steps, args.guidance)
    if args.predictions:
        about["predictions"] = str(args.predictions)
    else:
        guided = args.guide and not args.read and settings["in_chans"] > 1
        about["checkpoint"] = {"path": str(args.checkpoint), **{key: settings[key] for key in ("model", "epoch", "img_size")}}
        about |= {"guide": guided, "pipeline": "network only" if args.network_only else models.restorer.runtime}
        if models.restorer and models.restorer.draws:
            follows = guided or args.read
            about |= {"steps": drawing.steps_for(follows), "guidance": drawing.guidance if follows else None}
    about["img_size"] = frozen.img_size if frozen else settings["img_size"]

    if frozen:
        guides = HandwritingSet(pack, "test", "all", settings["img_size"], True, device) if guided and args.network_only else None
        source = BenchmarkSource(frozen, device, guides)
    else:
        data = HandwritingSet(pack, args.split, "all", settings["img_size"], guided and args.network_only, device)
        source = held_out(data, args.preset, args.limit, args.severity, args.seed)
        about["damage"] = {"preset": str(args.preset), "table": source.table, "seed": args.seed, "severity": args.severity}
        about["limit"] = args.limit
    if args.predictions:
        predict = FolderPredictor(args.predictions, [row["file"] for row in frozen.rows], frozen.img_size)
    elif models.restorer:
        forms = [row["form"] for row in source.rows]
        about |= {"wrong_guide": args.wrong_guide, "read": args.read}
        told = (wrong(forms) if args.wrong_guide else forms) if guided else None
        predict = PipelinePredictor(models.restorer, told, drawing, models.reader)
    else:
        predict = NetworkPredictor(models.network)

    groups, files = pack.group[[row["id"] for row in source.rows]], recognisers(args)
    judges = {suffix: Recognition(*judge, groups) for suffix, judge in models.judges.items()}
    for suffix, (_, info) in models.judges.items():
        description = {"path": files[suffix].name, **{key: value for key, value in info.items() if key != "groups"}}
        about["hardened" if suffix else "recogniser"] = description
    return Scorer(source, predict, judges), about


def wrong(forms: list[str]) -> list[str]:
    """For each character another one of them, the same each time."""
    others = sorted(set(forms))
    half = len(others) // 2
    other_of = dict(zip(others, others[half:] + others[:half], strict=True))
    return [other_of[form] for form in forms]


def recognisers(args: argparse.Namespace) -> dict[str, Path]:
    """{suffix of its scores: file} of the recognisers passed, or else of the bundled ones that exist."""
    files = (("", args.recogniser, RECOGNISER), ("_hardened", args.hardened, HARDENED))
    return {suffix: Path(path or bundled) for suffix, path, bundled in files if path or bundled.is_file()}


def versions() -> dict:
    packages = {"restorecae-zi": VERSION, "python": sys.version.split()[0], "torch": torch.__version__}
    return {"commit": commit(), "versions": packages}


def score_clerical(args: argparse.Namespace, models: Models, frozen: Benchmark, device: torch.device) -> dict:
    """The means of pictures of a clerical hand with the damage of the frozen benchmark."""
    clerical = clerical_benchmark(open_pack(COPYLEFT), list(frozen.tables))
    scorer, _ = set_up(args, models, clerical.pack, clerical, device)
    scores, *_ = score_all(scorer, args.batch_size)
    return {"name": clerical.name, **tabulate(clerical.pack, scorer.source.rows, scores, scorer.scores)}


def evaluate(args: argparse.Namespace, device: torch.device) -> None:
    """Scores, and on the first process writes the files."""
    pack, out = open_pack(args.data), Path(args.output_dir)
    frozen = None
    if args.benchmark:
        frozen = Benchmark(pack, benchmark.PRESETS if args.benchmark == "all" else (args.benchmark,))
        note = "" if frozen.verify() else "; not the frozen benchmark"
        if distributed.rank() == 0:
            print(f"benchmark {frozen.name}: {len(frozen)} pictures{note}")
    models = load_models(args, device)
    scorer, about = set_up(args, models, pack, frozen, device)
    scores, sums, features = score_all(scorer, args.batch_size)
    if frozen and not args.predictions and COPYLEFT.is_file():
        about["clerical"] = score_clerical(args, models, frozen, device)
    if distributed.rank() == 0:
        rows = scorer.source.rows
        result = {**tabulate(pack, rows, scores, scorer.scores), **frechet(features), "calibration": calibration(sums)}
        if args.read:
            columns = scores[:, RESTORED, [scorer.scores.index(name) for name in READINGS]]
            result["readings"] = calibration_of_readings(columns[:, 0], columns[:, 2])
        result |= {**about, **versions()}
        tiles = pick_tiles(scorer, scores)
        write_csv(out / "per_picture.csv", rows, scores, scorer.scores)
        write_png(out / "sheet.png", draw_sheet(tiles))
        held_out = {hand.name for hand in pack.hands if hand.role == "held_out"}
        with replacing(out / "report.html") as part:
            part.write_text(report.html(result, tiles, held_out), encoding="utf-8")
        write_json(out / "metrics.json", result)  # last: if it exists, so do the others
        show(result)
        print(f"written to {out}")
    distributed.barrier()


def evaluate_real(args: argparse.Namespace, device: torch.device) -> None:
    """Scores folders of real characters on the first process and writes real.json."""
    if distributed.rank() == 0:
        restorer = load_restorer(args.checkpoint, args.runtime, args.device, args.data)
        drawing = Drawing(args.steps, args.guidance)
        result: dict = {"checkpoint": Path(args.checkpoint or WEIGHTS).name, "runtime": restorer.runtime}
        result |= {"img_size": restorer.img_size, "steps": args.steps, "guidance": args.guidance, **versions()}
        if args.real:
            pack, files = open_pack(args.data), {"": RECOGNISER, **recognisers(args)}
            judges = {suffix: load_recogniser(path) for suffix, path in files.items()}
            result["folders"] = {str(folder): score_real(restorer, folder, pack, judges, drawing) for folder in args.real}
            show_real(result["folders"])
        if args.real_clean:
            result["clean_folders"] = {str(folder): score_clean(restorer, folder, drawing) for folder in args.real_clean}
            show_clean(result["clean_folders"])
        write_json(Path(args.output_dir) / "real.json", result)
    distributed.barrier()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", help="a run's checkpoint, a .safetensors or an .onnx file")
    add(
        "--predictions",
        metavar="DIR",
        help="score these pictures instead, which any method made of the benchmark's, under their names",
    )
    add("--real", nargs="+", type=Path, metavar="DIR", help="read real characters in these folders, named by the character")
    add("--real_clean", nargs="+", type=Path, metavar="DIR", help="restore clean real characters, or the right halves of pairs")
    add(
        "--network_only", action="store_true", help="score the bare network by torch in float32, without finding polarity and place"
    )
    add("--data", default=PACK, help="the handwriting set")
    add(
        "--output_dir", required=True, help="gets metrics.json, per_picture.csv, sheet.png, report.html; existing ones are replaced"
    )
    add(
        "--benchmark",
        nargs="?",
        const="all",
        choices=(*benchmark.PRESETS, "all"),
        help="score the frozen benchmark, or a preset of it",
    )
    add("--recogniser", help="weights of the recogniser of clean glyphs (default: weights/recogniser_convnext_atto.safetensors"
        " if it exists)")  # fmt: skip
    add("--hardened", help="weights of the recogniser that was trained on degraded glyphs too (default:"
        " weights/recogniser_hardened_convnext_atto.safetensors if it exists)")  # fmt: skip
    add("--guide", action=argparse.BooleanOptionalAction, default=True, help="pass the standard glyph to a network that takes one")
    add("--wrong_guide", action="store_true", help="give each picture another character's guide, which is to overrule nothing")
    add("--read", action="store_true", help="read every picture, and let its readings guide it, as restore.py --char auto")
    add("--steps", type=number(int, 1, 64), help="steps of a drawing, see restore.py; 1 scores the mean")
    add("--guidance", type=number(float, 0, 10), default=GUIDANCE, help="weight of the guide, see restore.py")
    add("--split", default="test", choices=("test", "val"), help="of the characters; decide on val, report on test")
    add("--severity", type=number(float, 0, 1), help="of the damage of all pictures (default: drawn from the preset)")
    add("--limit", type=number(int, 0), default=0, help="score N pictures, spread over hands and characters; 0 scores all")
    add(
        "--preset",
        default="mixed",
        help="damage: a preset of configs/damage/, a YAML file, a mixture (mixed:.6,classic:.4), or a folder of scans",
    )
    add("--seed", type=number(int, 0, 2**32 - 1), default=EVALUATION_SEED, help="of the damage; results compare only with the same")
    add("--batch_size", type=number(int, 1), default=64, help="pictures per process; a benchmark has its own")
    add("--runtime", choices=("auto", "onnx", "torch"), default="auto", help="of the pipeline: see restore.py")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # from torch.distributed.launch
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)

    def given(*names: str) -> str:
        """Those of these flags that differ from their defaults."""
        return ", ".join(f"--{name}" for name in names if getattr(args, name) != parser.get_default(name))

    damage = "limit", "preset", "seed", "split", "severity"
    if args.real or args.real_clean:
        if idle := given("predictions", "benchmark", "network_only", "guide", "wrong_guide", "read", "batch_size", *damage):
            parser.error(f"--real and --real_clean do not go with {idle}")
        return args
    if (args.checkpoint is None) == (args.predictions is None):
        parser.error("pass one of --checkpoint, --predictions, --real and --real_clean")
    if args.predictions and (not args.benchmark or args.network_only):
        parser.error("--predictions needs --benchmark, whose pictures they are made from, and no --network_only")
    if args.benchmark and (idle := given(*damage)):
        parser.error(f"{idle} do not go with --benchmark, which is frozen")
    if args.wrong_guide and (args.network_only or args.predictions or args.read or not args.guide):
        parser.error("--wrong_guide does not go with --network_only, --predictions, --read or --no-guide")
    if args.read and (args.network_only or args.predictions):
        parser.error("--read does not go with --network_only or --predictions")
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    return distributed.run(evaluate_real if args.real or args.real_clean else evaluate, args)


if __name__ == "__main__":
    sys.exit(main())
