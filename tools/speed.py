"""Measures the speed of damage, training, inference and restoration on this machine.

    python tools/speed.py damage      # the damage generator against a plain OpenCV pipeline of the classic operations
    python tools/speed.py train       # a training step against a plain fp32 loop with OpenCV damage in DataLoader workers
    python tools/speed.py infer       # the network in bf16 and channels-last against eager fp32
    python tools/speed.py restore     # a picture from the shell, the exported network, a folder
    python tools/speed.py page        # a made page, drawn by default and its mean, in characters

Prints the hardware, the versions, a row per method (median [min – max] of n runs) and a verdict; the exit status is 1 if an aim is
missed. Methods take turns, so that a slow minute of the machine affects all of them. Times are wall times, those of `damage` on a
CPU processor times. On a CPU, the defaults need less than 8 GB of memory.
"""

import argparse
import copy
import itertools
import multiprocessing
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main_denoise_cae
import restore as restore_script
from datasets.degradation import Degradation
from datasets.pack import open_pack
from datasets.pages import draw_page
from datasets.pairs import EVALUATION_SEED, HandwritingSet, make_batch, shuffled_batches
from datasets.rng import sample_keys
from engine import LOSSES, train_one_epoch
from models.convolutions import DepthwiseConv2d, TransposedConv2d
from models.files import export_onnx, from_settings, load_network, predict_fn
from restoration import exported
from restoration.drawing import DEFAULT, MEAN, Drawing
from restoration.page import Canvas, find_page, restore_page
from restoration.pipeline import PACK, ROOT, WEIGHTS, Restorer, load_restorer
from util import distributed, images, metrics, script
from util.stop import StopSignal
from util.version import commit

AIMS = {
    "generator, pictures/s": ("≥", 440),  # a plain OpenCV pipeline of the classic operations on one core when this was set
    "engine's speed / plain loop's": ("≥", 2.5),
    "engine's speed / plain loop's on a GPU": ("≥", 4),
    "engine's memory / plain loop's": ("≤", 1),
    "time waiting for data / all": ("≤", 0.05),
    "processor time of the data / step": ("≤", 0.05),
    "speed of several processes / one": ("≥", 0.9),
    "bf16 speed / eager fp32": ("≥", 1),
    "exported speed / eager fp32": ("≥", 2),
    "PSNR between the outputs, dB": ("≥", 40),
    "from the shell, s": ("≤", 1),
    "from the shell / loading with torch and timm": ("≤", 0.333),
    "folder's speed / exported network's": ("≥", 0.9),
    "characters/s of a page": ("≥", 15),
}

SEVERITY = 0.3  # of the page's damage

# --- measuring ----------------------------------------------------------------------------------------------------------


def hardware(device: torch.device) -> str:
    """The processor or GPU, and the number of threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else distributed.processor()
    return f"{name}, {torch.get_num_threads()} threads"


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def show(name: str, seconds: Iterable[float], pictures: int, more: str = "") -> float:
    """Prints the row of a method from the seconds of each run; returns pictures/s."""
    ms = [1e3 * value / pictures for value in seconds]
    speed = 1e3 / median(ms)
    print(f"{name:30} {median(ms):9.2f} [{min(ms):.2f} – {max(ms):.2f}] ms/picture, n {len(ms)}, {speed:.4g} pictures/s{more}")
    return speed


def measure(tasks: dict[str, Callable], pictures: int, runs: int, clock: Callable = time.perf_counter) -> dict[str, float]:
    """Runs all tasks in turns, once to warm up and then `runs` times. Prints their rows; returns pictures/s of each."""
    seconds = {name: [] for name in tasks}
    for _ in range(1 + runs):
        for name, task in tasks.items():
            synchronize()
            start = clock()
            task()
            synchronize()
            seconds[name].append(clock() - start)
    return {name: show(name, taken[1:], pictures) for name, taken in seconds.items()}


def make_plain(network: nn.Module) -> nn.Module:
    """Gives a network torch's own convolutions and memory layout, in place, and returns it."""
    for module in network.modules():
        if isinstance(module, DepthwiseConv2d | TransposedConv2d):
            module.__class__ = type(module).__base__
    return network.to(memory_format=torch.contiguous_format)


def forward_flops(settings: dict) -> tuple[int, int]:
    """Returns (FLOPs of the forward pass for one picture, parameters) of the network of a run's settings."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = make_plain(from_settings(settings)).eval()
        network(torch.empty(1, settings["in_chans"], settings["img_size"], settings["img_size"]))
    return counter.get_total_flops(), sum(p.numel() for p in network.parameters())


# --- damage -------------------------------------------------------------------------------------------------------------


def classic_opencv(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies three of the four classic operations to one picture, (H, W) uint8."""
    for operation in rng.choice(4, 3, replace=False):
        if operation == 0:
            kernel = np.ones(rng.integers(1, 6, 2), np.uint8)
            picture = (cv2.erode if rng.random() < 0.5 else cv2.dilate)(picture, kernel)
        elif operation == 1:
            for x, y, w, h in np.hstack([rng.integers(0, len(picture), (10, 2)), rng.integers(1, 50, (10, 2))]).tolist():
                cv2.rectangle(picture, (x, y), (x + w, y + h), 255 if rng.random() < 0.5 else 0, -1)
        elif operation == 2:
            width = int(rng.integers(1, 6)) * 2 + 1
            picture = cv2.GaussianBlur(picture, (width, width), 0)
        else:
            for x, y in rng.integers(0, len(picture) - 15, (10, 2)):
                square = picture[y : y + 15, x : x + 15].astype(np.int16) + rng.integers(-64, 65)
                picture[y : y + 15, x : x + 15] = square.clip(0, 255)
    return picture


def damage(args: Namespace) -> dict[str, float]:
    """The damage generator against a plain OpenCV pipeline of the classic operations, picture by picture, on one core."""
    cv2.setNumThreads(1)
    glyphs = HandwritingSet(open_pack(args.data), "train", img_size=args.img_size, device=args.device)
    positions = np.random.default_rng(0).choice(len(glyphs), (args.pictures // args.batch_size, args.batch_size))
    samples = [glyphs.batch(batch) for batch in positions]
    pictures = [(sample["clean"][:, 0].cpu().numpy() * 255).round().astype(np.uint8) for sample in samples]
    degradation, rng = Degradation(args.preset, args.img_size, torch.device(args.device)), np.random.default_rng(0)

    def generator() -> None:
        for sample in samples:
            degradation(sample["clean"], sample_keys(0, rng.integers(1000), sample["id"]))

    def opencv() -> None:
        for batch in pictures:
            np.stack([classic_opencv(picture.copy(), rng) for picture in batch]).astype(np.float32) / 255

    clock = time.perf_counter if args.device == "cuda" else time.process_time
    speed = measure({"generator": generator, "classic operations in OpenCV": opencv}, positions.size, args.runs, clock)
    return {"generator, pictures/s": speed["generator"]}


# --- train --------------------------------------------------------------------------------------------------------------


class OpenCVPictures:
    """The glyphs of a pack, read and degraded one by one: (degraded, clean), both (1, H, W) float32 in [0, 1]."""

    def __init__(self, glyphs: HandwritingSet):
        self.bits, self.drawn, self.img_size = glyphs.bits.cpu().numpy(), glyphs.pack.img_size, glyphs.img_size

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        glyph = np.unpackbits(self.bits[position]).reshape(self.drawn, self.drawn) * np.uint8(255)
        clean = cv2.resize(glyph, (self.img_size, self.img_size), interpolation=cv2.INTER_AREA)
        degraded = classic_opencv(clean.copy(), np.random.default_rng(position))
        return tuple(torch.from_numpy(x.astype(np.float32))[None] / 255 for x in (degraded, clean))


class Stopwatch:
    """Times a training after its first step. `data_ready` is called before each forward pass, `step_done` after each step."""

    def __init__(self):
        self.steps, self.made = 0, []  # made: processor seconds that each batch took to make
        self.step_done()

    def step_done(self, *_: object, **__: object) -> None:
        self.idle_since = time.perf_counter()

    def data_ready(self, *_: object) -> None:
        wait = time.perf_counter() - self.idle_since
        if self.steps < 2:
            synchronize()
            self.start, self.waited = time.perf_counter() - wait, 0.0
        self.waited += wait
        self.steps += 1


def first_batches(glyphs: HandwritingSet, s: Namespace, steps: int) -> list[np.ndarray]:
    batches = shuffled_batches(len(glyphs), s.batch_size, s.seed, 0, distributed.rank(), distributed.world_size())
    return list(itertools.islice(itertools.cycle(batches), steps))


def train_engine(s: Namespace, device: torch.device, steps: int, watch: Stopwatch) -> None:
    """The training of main_denoise_cae.py."""
    glyphs = HandwritingSet(open_pack(*s.data), "train", img_size=s.img_size, device=device)
    degradation, state = Degradation(s.preset, s.img_size, device), main_denoise_cae.start_state(s, device)
    if device.type == "cuda":
        main_denoise_cae.compile_or_warn(state.model, s, device)
    ddp = distributed.world_size() > 1
    model = nn.Sequential(DistributedDataParallel(state.model, gradient_as_bucket_view=True) if ddp else state.model)
    model.register_forward_pre_hook(watch.data_ready)
    state.optimizer.register_step_post_hook(watch.step_done)  # on a GPU, `save` is not called after each step

    def make(positions: np.ndarray) -> tuple[np.ndarray, Tensor, Tensor]:
        start = time.thread_time()
        batch = make_batch(glyphs.batch(positions), degradation, s.seed, 0)
        watch.made.append(time.thread_time() - start)
        return batch

    inputs = map(make, first_batches(glyphs, s, steps))

    def loss_fn(logits: Tensor, clean: Tensor) -> Tensor:
        return LOSSES[s.loss](logits.float(), clean)

    train_one_epoch(state, model, inputs, loss_fn, steps, s, StopSignal(), save=watch.step_done)


def train_plain(s: Namespace, device: torch.device, steps: int, watch: Stopwatch) -> None:
    """The same network in a plain fp32 loop: torch's default AdamW, OpenCV damage in DataLoader workers."""
    cv2.setNumThreads(1)  # in each worker, as torch does for itself
    torch.manual_seed(s.seed)
    model = make_plain(from_settings(vars(s))).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr * s.batch_size / 256)
    glyphs = HandwritingSet(open_pack(*s.data), "train", img_size=s.img_size)
    batches = [positions.tolist() for positions in first_batches(glyphs, s, steps)]
    for degraded, clean in DataLoader(OpenCVPictures(glyphs), batch_sampler=batches, num_workers=s.workers):
        watch.data_ready()
        loss = LOSSES[s.loss](model(degraded.to(device)), clean.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step_done()


def run_turn(work: Callable, s: Namespace, processes: int, steps: int) -> list[float]:
    """Trains in processes that start and end with the turn, so that one training at a time is in memory.

    Returns [seconds, seconds of waiting, processor seconds of the data, bytes]: the slowest process's times, the sum of the bytes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm"])  # it takes seconds to import, with torch
    with ProcessPoolExecutor(processes, context) as pool:
        threads = max(1, torch.get_num_threads() // processes)
        futures = [pool.submit(_train, work, s, steps, threads, rank, group) for rank in range(processes)]
        try:
            *times, memory = zip(*(future.result() for future in futures), strict=True)
        except BrokenProcessPool:
            raise OSError("a training process ended early; perhaps memory ran out") from None
    return [*map(max, times), sum(memory)]


def _train(work: Callable, s: Namespace, steps: int, threads: int, rank: int, group: dict[str, str]) -> tuple[float, ...]:
    os.environ.update(group, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(threads)
    watch, device = Stopwatch(), distributed.start(s.device)
    s.bf16 = distributed.has_bf16(device)
    try:
        work(s, device, steps, watch)
        synchronize()
        seconds = time.perf_counter() - watch.start
    finally:
        distributed.stop()
    return seconds, watch.waited, sum(watch.made[1:]), peak_memory(device)


def peak_memory(device: torch.device) -> int:
    """Bytes of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(args: Namespace) -> dict[str, float]:
    """A training step of the engine against a plain fp32 loop with OpenCV damage in DataLoader workers."""
    if args.pictures % args.batch_size or args.batch_size % args.processes:
        raise ValueError("--pictures must be a multiple of --batch_size, and --batch_size a multiple of --processes")
    keys, workers = ("model", "data", "img_size", "batch_size", "preset", "device"), min(4, distributed.cpu_count())
    flags = [*(f"--{key}={getattr(args, key)}" for key in keys), f"--workers={workers}"]
    s, several = main_denoise_cae.build_parser().parse_args(flags), f"engine, {args.processes} processes"
    trainings = {"engine": (train_engine, s, 1), "plain loop": (train_plain, s, 1)}
    if args.processes > 1:
        divided = Namespace(**{**vars(s), "batch_size": args.batch_size // args.processes})
        trainings[several] = (train_engine, divided, args.processes)
    turns, rows = {name: [] for name in trainings}, {}
    for name in [*trainings] * args.runs:
        turns[name].append(run_turn(*trainings[name], 1 + args.pictures // args.batch_size))
    for name, results in turns.items():
        seconds, waited, made, memory = zip(*results, strict=True)
        waiting, data, memory = sum(waited) / sum(seconds), sum(made) / sum(seconds), max(memory)
        more = f", {memory / 1e9:.2f} GB, waiting {waiting:.2%}{f', data {data:.2%}' * (data > 0)}"
        rows[name] = show(name, seconds, args.pictures, more), waiting, data, memory
    speed, waiting, data, memory = rows["engine"]
    figures = {"time waiting for data / all": waiting, "processor time of the data / step": data}
    if args.device == "cuda":
        figures["engine's speed / plain loop's on a GPU"] = speed / rows["plain loop"][0]
    else:
        figures["engine's speed / plain loop's"] = speed / rows["plain loop"][0]
        figures["engine's memory / plain loop's"] = memory / rows["plain loop"][-1]
    return figures | ({"speed of several processes / one": rows[several][0] / speed} if several in rows else {})


# --- infer and restore --------------------------------------------------------------------------------------------------


def networks(args: Namespace, in_chans: int, device: str) -> tuple[dict, nn.Module, nn.Module, Tensor]:
    """Returns (settings, network in channels-last, plain network with the same weights, degraded test pictures for them)."""
    if args.checkpoint:
        model, settings = load_network(args.checkpoint, device)
    else:
        torch.manual_seed(0)  # layer_scale 1, so that each block changes the output
        settings = {"model": args.model, "img_size": args.img_size, "in_chans": in_chans, "latent_dim": 768, "layer_scale": 1.0}
        model = from_settings(settings).to(device, memory_format=torch.channels_last).eval()
    img_size = settings["img_size"]
    glyphs = HandwritingSet(open_pack(args.data), "test", img_size=img_size, device=device)
    sample = glyphs.batch(np.arange(args.pictures) % len(glyphs))
    x = make_batch(sample, Degradation(args.preset, img_size, torch.device(device)), EVALUATION_SEED, 0)[1]
    others = settings["in_chans"] - 1  # no guide, and no state: the mean
    return settings, model, make_plain(copy.deepcopy(model)), F.pad(x, (0, 0, 0, 0, 0, others))


def compare(
    name: str, fast: Callable, x: Tensor | np.ndarray, slow: Callable, sizes: list[int], runs: int, **others: Callable
) -> tuple[dict[str, float], dict[str, float]]:
    """Measures a network against eager fp32 (`slow`) on batches of several sizes, and `others`.

    Returns (pictures/s of each method, figures: the least ratio over the batch sizes, the least PSNR over the pictures).
    """
    outputs = {}

    def run(method: str, predict: Callable, size: int) -> None:
        outputs[method] = torch.cat([torch.as_tensor(predict(x[i : i + size])) for i in range(0, len(x), size)])

    tasks = {f"{m}, batch {n}": partial(run, m, predict, n) for n in sizes for m, predict in ((name, fast), ("eager fp32", slow))}
    speed = measure({**tasks, **others}, len(x), runs)
    psnr = metrics.psnr(*(output.flatten(0, -3)[:, None] for output in outputs.values())).min().item()
    ratio = min(speed[f"{name}, batch {n}"] / speed[f"eager fp32, batch {n}"] for n in sizes)
    return speed, {f"{name} speed / eager fp32": ratio, "PSNR between the outputs, dB": psnr}


def infer(args: Namespace) -> dict[str, float]:
    """The network in bf16 and channels-last, as in validation, against eager fp32."""
    _, model, plain, x = networks(args, 1, args.device)

    @torch.inference_mode()
    def run(network: nn.Module, bf16: bool, x: Tensor) -> Tensor:
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            return network(x).float().sigmoid()

    return compare("bf16", partial(run, model, True), x, partial(run, plain, False), args.batch_size, args.runs)[1]


def restore(args: Namespace) -> dict[str, float]:
    """A picture from the shell against loading torch; the exported network against eager fp32; a folder against the network."""
    with tempfile.TemporaryDirectory() as folder:
        return {**restore_cold(args, Path(folder)), **restore_warm(args, Path(folder))}


def restore_cold(args: Namespace, folder: Path) -> dict[str, float]:
    """From the shell to the written picture, against a script that imports torch and timm and loads the same weights."""
    picture, environment = folder / "degraded.png", {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads)}
    images.write_png(picture, images.from_grey(np.random.default_rng(0).random((args.img_size, args.img_size))))
    loading = "import sys, torch, timm; from models.files import load_network; load_network(sys.argv[1])"

    def run(*command: object) -> None:
        subprocess.run([sys.executable, *map(str, command)], check=True, env=environment)

    # while warming up, restore.py exports its network
    tasks = {"from the shell": partial(run, ROOT / "restore.py", picture, folder / "restored.png", "--overwrite")}
    tasks["torch and timm, weights loaded"] = partial(run, "-c", loading, WEIGHTS)
    ours, loading = (1 / speed for speed in measure(tasks, 1, args.runs).values())
    return {"from the shell, s": ours, "from the shell / loading with torch and timm": ours / loading}


def restore_warm(args: Namespace, folder: Path) -> dict[str, float]:
    """Pictures per second of the exported network, alone and with files around it, and of eager fp32."""
    settings, model, plain, x = networks(args, 4, "cpu")
    export_onnx(model, settings, folder / "network.onnx")
    predict, _ = exported.load(folder / "network.onnx", args.threads)
    for number, picture in enumerate(x[:, 0].numpy()):
        images.write_png(folder / "degraded" / f"{number}.png", images.from_grey(picture))
    flags = restore_script.parse_args([str(folder / "degraded"), str(folder / "restored"), "--overwrite"])
    jobs, restorer = restore_script.plan(flags.input, flags.output), Restorer(predict, settings, args.data, "onnx")
    batch, folder = restore_script.BATCH, {"folder": lambda: list(restore_script.restore_jobs(jobs, restorer, flags))}
    sizes = [*args.batch_size, batch]
    speed, figures = compare("exported", predict, x.numpy(), predict_fn(plain), sizes, args.runs, **folder)
    return {**figures, "folder's speed / exported network's": speed["folder"] / speed[f"exported, batch {batch}"]}


def page(args: Namespace) -> dict[str, float]:
    """A made page, from the picture to the restored one: drawn as by default, and its mean. A row's pictures are characters."""
    glyphs = HandwritingSet(open_pack(args.data), "test", "all", args.img_size)
    picture = images.from_grey(draw_page(glyphs, int(sample_keys(args.seed, 0, np.arange(1))[0]), args.preset, SEVERITY).degraded)
    restorer = load_restorer(args.checkpoint or None, "onnx", data=args.data, threads=args.threads)

    def run(drawing: Drawing) -> None:
        found = find_page(picture)
        canvas = Canvas(found)
        for _, part, restored in restore_page(found, restorer, drawing):
            canvas.put(part, restored)

    count = len(find_page(picture).layout.characters)
    return {
        "characters/s of a page": measure({"drawn": partial(run, DEFAULT), "mean": partial(run, MEAN)}, count, args.runs)["drawn"]
    }


# --- the command line ---------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    cuda, cores = torch.cuda.is_available(), distributed.cpu_count()
    machine, checkpoint = {"device": "cuda" if cuda else "cpu", "threads": cores}, {"checkpoint": ""}
    training = {"batch_size": 32, "pictures": 640, "processes": 1} if cuda else {"batch_size": 8, "pictures": 16, "processes": 2}
    defaults = {
        damage: {"device": "cpu", "threads": 1, "batch_size": 32, "pictures": 320},
        train: {**machine, "model": "cae_convnext_tiny", **training},
        infer: {**machine, "model": "cae_convnext_tiny", **checkpoint, "batch_size": [1, 32], "pictures": 32},
        restore: {"threads": cores, "model": "restorer_convnext_tiny", **checkpoint, "batch_size": [1, 8], "pictures": 64},
        page: {"threads": cores, **checkpoint, "seed": 0, "runs": 3},
    }
    meaning = {
        "data": "handwriting set", "preset": "of damage", "img_size": "in pixels", "runs": "per method", "device": "cpu or cuda",
        "threads": "of the CPU", "model": "name of the network", "checkpoint": "use this trained network", "pictures": "per run",
        "batch_size": "in pictures", "seed": "of the page", "processes": "also train with N that share batch and threads",
    }  # fmt: skip
    for work, flags in defaults.items():
        kind = argparse.ArgumentDefaultsHelpFormatter
        command = commands.add_parser(work.__name__, help=work.__doc__, description=work.__doc__, formatter_class=kind)
        command.set_defaults(work=work)
        for name, value in {"data": str(PACK), "preset": "mixed", "img_size": 224, "runs": 5, **flags}.items():
            one, many = (value[0], {"nargs": "+"}) if isinstance(value, list) else (value, {})
            command.add_argument(f"--{name}", type=type(one), default=value, help=meaning[name], **many)
    return parser.parse_args(argv)


def verdict(figures: dict[str, float]) -> bool:
    """Prints the figures beside their aims; returns whether all are reached."""
    parts = []
    for name, value in figures.items():
        sign, aim = AIMS[name]
        missed = value < aim if sign == "≥" else value > aim
        parts.append(f"{'MISSED ' * missed}{name} {value:.3g} (aim {sign} {aim})")
    reached = not any(part.startswith("MISSED") for part in parts)
    print(f"{'ok' if reached else 'FAILED'}: {'; '.join(parts)}")
    return reached


def report(args: argparse.Namespace) -> bool:
    """Prints what is measured, and where; returns whether an aim is missed."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(args.threads)
        versions = f"torch {torch.__version__}, timm {version('timm')}, openvino {version('openvino')}, cv2 {cv2.__version__}"
        machine = hardware(torch.device(getattr(args, "device", "cpu")))
        print(f"{machine}; Python {platform.python_version()}, {versions}; commit {commit()}")
        print(", ".join(f"{key} {value}" for key, value in vars(args).items() if value and key != "work"))
        return not verdict(args.work(args))
    finally:
        torch.set_num_threads(threads)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 if an aim is missed or anything fails."""
    return script.run(report, parse_args(argv))


if __name__ == "__main__":
    script.as_script(main)
