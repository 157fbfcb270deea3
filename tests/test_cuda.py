"""What only a GPU can show."""

import pytest
import torch

import engine
import main_denoise_cae
from datasets import pairs
from datasets.degradation import Degradation
from datasets.pack import open_pack
from tests.test_training import flags
from util import settings
from util.stop import StopSignal

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_the_host_does_not_wait_for_the_device_until_it_looks(tiny_pack, monkeypatch):
    device = torch.device("cuda")
    s = settings.parse(main_denoise_cae.build_parser(), flags(data=tiny_pack, log_every=1000, bf16=True, in_chans=2))
    state = main_denoise_cae.start_state(s, device)
    data, damage = (
        pairs.HandwritingSet(open_pack(tiny_pack), "train", "seen", s.side, True, device),
        Degradation("mixed", s.side, device),
    )
    check, looked = engine.NonFinite.check, []

    def look(*arguments):
        torch.cuda.set_sync_debug_mode("default")
        looked.append(1)
        return check(*arguments)

    monkeypatch.setattr(engine.NonFinite, "check", look)
    for _ in range(2):  # the first time libraries are loaded and memory is taken, which may wait
        batches = pairs.load(data, pairs.shuffled_batches(len(data), s.batch_size, 0, state.epoch)[:12], device)
        engine.train_one_epoch(state, state.model, batches, 12, damage, s, StopSignal(), lambda state, now: None)
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, []
        if state.epoch < 2:
            torch.cuda.set_sync_debug_mode("error")
    assert len(looked) == 2 and state.step == 24


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_a_gpu(tiny_pack, tmp_path, compiled, capsys):
    assert main_denoise_cae.main(flags(data=tiny_pack, output_dir=tmp_path, device="cuda", bf16=True, compile=compiled)) == 0
    assert "on cuda:0" in capsys.readouterr().out
