"""All scores of all pictures: `Scorer` scores batches, `score_all` every picture of a source once, over all processes."""

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.split import group_of
from evaluation import strokes
from evaluation.measures import area_psnr, drd, grey
from evaluation.predictors import BASELINES, FolderPredictor, Predictor, resize
from evaluation.sources import BenchmarkSource, OnTheFlySource
from evaluation.statistics import calibration_sums
from models.recogniser import features_and_logits
from restoration.pipeline import ROOT
from util import distributed, metrics
from util.binarise import otsu

RECOGNISER = ROOT / "weights" / "recogniser_convnext_atto.safetensors"
HARDENED = RECOGNISER.with_name("recogniser_hardened_convnext_atto.safetensors")
JUDGES = {"A": RECOGNISER, "B": HARDENED}
METHODS = ("degraded", "restored", *BASELINES, "clean")
RESTORED = METHODS.index("restored")
RECOGNITION = ("top1", "top5")  # of each judge, whose suffix is appended; they and "grey" are the only scores of "clean"
SCORES = ("psnr", "ssim", "f1", "pseudo_f1", "drd", "chamfer", "broken", "invented", "psnr_degraded_area", "psnr_intact_area",
          "ssim_inverse", "grey")  # fmt: skip
READINGS = ("read_top1", "read_top5", "read_probability")  # is the first reading, or one of five, right? how sure is the first?
CLEAN_INPUT_PSNR = "psnr_clean"  # PSNR of the restored clean picture; not for pictures from a folder


class Recognition:
    """Recognition accuracy of pictures.

    Args:
        network: a network of `models.recogniser`.
        info: "groups", the code point of each class in order, and "img_size", S.
        groups: the code point of each picture's character group.
    """

    def __init__(self, network: nn.Module, info: dict, groups: np.ndarray):
        self.network, self.img_size = network, info["img_size"]
        class_of = {group: i for i, group in enumerate(info["groups"])}
        self.label = np.array([class_of.get(int(group), -1) for group in groups])

    def __call__(self, positions: np.ndarray, x: Tensor) -> Tensor:
        """(N, 2) float: whether the character is the top class, and among the top five; NaN for one that is no class."""
        return self.read(positions, x)[0]

    def read(self, positions: np.ndarray, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same and the features (N, d) that the network's last layer takes."""
        label = torch.from_numpy(self.label[positions]).to(x.device)[:, None]
        features, logits = features_and_logits(self.network, resize(x, self.img_size))
        guesses = logits.topk(5).indices
        hit = torch.cat([guesses[:, :1] == label, (guesses == label).any(1, keepdim=True)], dim=1).float()
        return torch.where(label < 0, torch.nan, hit), features


class Scorer:
    """Scores the pictures of a source. `scores`: names of the columns, recognition first.

    judges: recognisers, by the suffix of the names of their scores. Features are those of the judge with the suffix "".
    """

    def __init__(self, source: OnTheFlySource | BenchmarkSource, predict: Predictor, judges: dict[str, Recognition] | None = None):
        self.source, self.predict, self.judges = source, predict, judges or {}
        recognition = (score + suffix for suffix in self.judges for score in RECOGNITION)
        clean_input = () if isinstance(predict, FolderPredictor) else (CLEAN_INPUT_PSNR,)
        reads = READINGS if getattr(predict, "reader", None) else ()
        self.scores = (*recognition, *SCORES, *clean_input, *reads)

    @torch.inference_mode()
    def pictures(self, positions: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """(degraded, restored, clean) of N positions, each (N, 1, H, W) in [0, 1]."""
        degraded, clean, guide = self.source.pictures(positions)
        return degraded, self.predict(positions, degraded, guide).restored, clean

    @torch.inference_mode()
    def table(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The scores of N pictures (N, methods, scores) float64, in the order of METHODS and `scores`; the `calibration_sums`
        (N, 3, bins); and the features (N, methods, d) float32, where d = 0 without that judge."""
        degraded, clean, guide = self.source.pictures(positions)
        restored, probability, readings = self.predict(positions, degraded, guide)
        results = [degraded, restored, *(baseline(degraded) for baseline in BASELINES.values())]
        columns = {name: torch.full((len(positions), len(METHODS)), torch.nan, dtype=torch.float64) for name in self.scores}
        for row, x in enumerate(results):
            columns["psnr"][:, row] = metrics.psnr(x, clean)
            columns["f1"][:, row] = metrics.ink_f1(x, clean)
            columns["drd"][:, row] = drd(x, clean)
            columns["ssim"][:, row], columns["ssim_inverse"][:, row] = metrics.ssim_both(x, clean)
            columns["psnr_degraded_area"][:, row], columns["psnr_intact_area"][:, row] = area_psnr(x, degraded, clean)
        if CLEAN_INPUT_PSNR in columns:
            restored_clean = self.predict(positions, clean, guide).restored
            of_clean = [clean, restored_clean, *(baseline(clean) for baseline in BASELINES.values())]
            for row, x in enumerate(of_clean):
                columns[CLEAN_INPUT_PSNR][:, row] = metrics.psnr(x, clean)
        inks = [(otsu(x)[:, 0] > 0).cpu().numpy() for x in (*results, clean)]
        drawn = np.stack([strokes.stroke_scores(list(some[:-1]), some[-1]) for some in zip(*inks, strict=True)])
        for column, name in enumerate(strokes.SCORES):
            columns[name][:, : len(results)] = torch.from_numpy(drawn[:, :, column])
        features = []
        for row, x in enumerate((*results, clean)):
            columns["grey"][:, row] = grey(x)
            small = {size: resize(x, size) for size in {judge.img_size for judge in self.judges.values()}}
            read = {suffix: judge.read(positions, small[judge.img_size]) for suffix, judge in self.judges.items()}
            for suffix, (hits, _) in read.items():
                columns[f"top1{suffix}"][:, row], columns[f"top5{suffix}"][:, row] = hits.T
            features.append(read[""][1] if "" in read else x.new_empty(len(x), 0))
        for row, (position, found) in enumerate(zip(positions, readings or ())):
            group = group_of(self.source.rows[position]["form"])
            right = [group_of(char) == group for char in found]
            known = 1.0 if ord(group) in self.predict.reader.groups else torch.nan
            values = known * right[0], known * any(right), next(iter(found.values()))
            for name, value in zip(READINGS, values, strict=True):
                columns[name][row, RESTORED] = value
        table = torch.stack(list(columns.values()), dim=2).numpy()
        return table, calibration_sums(probability, clean), torch.stack(features, dim=1).float().cpu().numpy()


def score_all(scorer: Scorer, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `Scorer.table` returns for all n pictures in their order, each scored by one process, on every process."""
    rank, world, n = distributed.rank(), distributed.world_size(), len(scorer.source.rows)
    bar = tqdm(scorer.source.batches(batch_size, rank, world), desc="scoring", unit="batch", disable=True if rank else None)
    parts = [(batch, *scorer.table(batch)) for batch in bar]

    positions, *columns = zip(*(part for parts in distributed.gather(parts) for part in parts), strict=True)
    times = np.bincount(np.concatenate(positions), minlength=n)
    if not (times == 1).all():
        raise RuntimeError(f"{(times != 1).sum()} of {n} pictures were not scored exactly once")
    order = np.argsort(np.concatenate(positions))
    return tuple(np.concatenate(column)[order] for column in columns)
