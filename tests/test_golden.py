"""The losses of twenty updates, compared with those in tests/data/golden_losses.json.

Exactly with the torch and the kind of CPU that the file was made with, else to a hundredth. Who means to move them writes the
file anew, and says why in the commit:

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
RUN = {"device": "cpu", "threads": 1, "side": 32, "latent_dim": 32, "samples_per_epoch": 40, "lr": 0.1, "clip_grad": 0.03}


def losses(pack: Path, folder: Path) -> dict:
    """{"losses": those of each update, "made with": what they may depend on}."""
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
        "processor": processor and processor[1],  # MKL rounds by its maker too
    }
    return {"pack": open_pack(pack).checksum, "made with": made_with, "losses": [loss.item() for loss in seen]}


def test_twenty_updates_have_the_losses_they_had(tiny_pack, tmp_path):
    golden, found = json.loads(FILE.read_text()), losses(tiny_pack, tmp_path)
    assert found["pack"] == golden["pack"], "the made-up pictures have changed"
    assert len(golden["losses"]) == 20
    rtol = 0 if found["made with"] == golden["made with"] else 1e-2
    assert found["losses"] == pytest.approx(golden["losses"], rel=rtol, abs=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        new = losses(pictures.tiny_pack(Path(place) / "tiny.pack"), Path(place) / "run")
    FILE.write_text(json.dumps(new, indent=1) + "\n")
