"""Tests that need a GPU."""

from functools import partial

import pytest
import torch

import engine
import main_denoise_cae
from datasets import pairs
from datasets.degradation import Degradation
from datasets.pack import open_pack
from datasets.rng import sample_keys
from tests.test_training import flags
from util import settings
from util.stop import StopSignal

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_training_does_not_synchronise_between_checks(tiny_pack, monkeypatch):
    device = torch.device("cuda")
    s = settings.parse(main_denoise_cae.build_parser(), flags(data=tiny_pack, log_every=1000, bf16=True, in_chans=4))
    state = main_denoise_cae.start_state(s, device)
    data = pairs.HandwritingSet(open_pack(tiny_pack), "train", "seen", s.img_size, True, device)
    damage, loss_fn = Degradation("mixed", s.img_size, device), lambda logits, clean: engine.LOSSES[s.loss](logits.float(), clean)
    check, checks = engine.NonFinite.check, []

    def checked(*arguments):
        torch.cuda.set_sync_debug_mode("default")
        checks.append(state.global_step)
        return check(*arguments)

    def save(state):
        if (state.epoch, state.batch) == (1, 1):  # before, loading libraries and allocating memory may synchronise
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(engine.NonFinite, "check", checked)
    monkeypatch.setattr(engine, "check_interval", lambda log_every, seconds: log_every)
    for epoch in range(2):
        samples = pairs.load(data, pairs.shuffled_batches(len(data), s.batch_size, 0, epoch)[:12], device,
                             keys=partial(sample_keys, s.seed, epoch))  # fmt: skip
        shares = s.guide_drop, s.augment, s.brush, s.in_chans, s.state_drop
        batches = (pairs.make_batch(sample, damage, s.seed, epoch, *shares) for sample in samples)
        engine.train_one_epoch(state, state.model, batches, loss_fn, 12, s, StopSignal(), save)
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, []
    assert checks == [1, 12, 13, 24]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_a_gpu(tiny_pack, tmp_path, compiled, capsys):
    assert main_denoise_cae.main(flags(data=tiny_pack, output_dir=tmp_path, device="cuda", bf16=True, compile=compiled)) == 0
    assert "on 1 × cuda:0" in capsys.readouterr().out
