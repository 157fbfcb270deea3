"""The losses of twenty updates, compared with those in tests/data/golden_losses.json.

They must be equal with the torch version and CPU that the file was made with, otherwise to 1 %. After an intended change, write the
file again and give the reason in the commit message:

    python -m tests.test_golden
"""

import json
import re
import tempfile
from pathlib import Path

import pytest
import torch

import main_denoise_cae
from datasets.pack import open_pack
from engine import LOSSES
from tests import pictures
from tests.test_training import flags

FILE = Path(__file__).parent / "data/golden_losses.json"
RUN = {"device": "cpu", "threads": 1, "img_size": 32, "latent_dim": 32, "samples_per_epoch": 40, "lr": 0.1, "clip_grad": 0.03}


def losses(pack: Path, folder: Path) -> dict:
    """{"pack": checksum, "made with": what the losses may depend on, "losses": of each update}."""
    seen, mse, threads = [], LOSSES["mse"], torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOSSES, "mse", lambda logits, clean: seen.append(mse(logits, clean)) or seen[-1])
        try:
            assert main_denoise_cae.main(flags(data=pack, output_dir=folder, **RUN)) == 0
        finally:
            torch.set_num_threads(threads)
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    made_with = {
        "torch": str(torch.__version__),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processor": processor and processor[1],  # MKL chooses its kernels by the vendor too
    }
    return {"pack": open_pack(pack).checksum, "made with": made_with, "losses": [loss.item() for loss in seen]}


def test_losses_of_twenty_updates_are_unchanged(tiny_pack, tmp_path):
    golden, new = json.loads(FILE.read_text()), losses(tiny_pack, tmp_path)
    assert new["pack"] == golden["pack"], "the pictures of the test have changed"
    assert len(golden["losses"]) == 20
    rtol = 0 if new["made with"] == golden["made with"] else 1e-2
    assert new["losses"] == pytest.approx(golden["losses"], rel=rtol, abs=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        new = losses(pictures.tiny_pack(Path(place) / "tiny.pack"), Path(place) / "run")
    FILE.write_text(json.dumps(new, indent=1) + "\n")
