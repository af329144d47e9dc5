"""Two processes on this machine (gloo) end where one ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests import tiny
from tests.test_trainer import write_rows


@pytest.mark.parametrize("loss", ["listwise+0.1*pointwise", "pointwise"])
def test_two_processes_equal_one(tmp_path: Path, loss: str) -> None:
    """17 queries in steps of 4: the last step has one query, so one process gets a filler."""
    base = tiny.save_base(tmp_path / "base", "bert")
    rows = write_rows(tmp_path / "rows.jsonl", tiny.examples(17, documents=5))
    val = write_rows(tmp_path / "val.jsonl", tiny.examples(5, documents=5, seed=1))
    common = f"--model {base} --dataset {rows} --val_dataset {val} --use_cpu true --optim sgd"
    common += f" --max_length 128 --learning_rate 0.05 --num_train_epochs 2 --loss_type {loss}"
    common += " --dropout 0 --load_best_model_at_end false --dataloader_pin_memory false"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher, size in (
        ("one", [sys.executable], 4),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"], 2),
    ):
        words = [*launcher, "-m", "rankwright", "train", *common.split()]
        words += ["--output_dir", str(tmp_path / name), "--per_device_train_batch_size", str(size)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("saved to") == 1
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    for key in one:
        assert_close(two[key], one[key], rtol=1e-5, atol=1e-6)
    metrics = [
        (tmp_path / n / "metrics.json").read_text().split('"train_loss"')[0] for n in ("one", "two")
    ]
    assert metrics[0] == metrics[1]
