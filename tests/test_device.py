"""Where a run trains: RecBole's keys gpu_id and use_gpu, and the GPU that a comparison gives to a job."""

import subprocess
import sys

import pytest
import torch

from recbole_prmkd.compare import job as jobs
from recbole_prmkd.compare import work
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.config import load_config


@pytest.mark.parametrize(("use_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_use_gpu_is_honoured(use_gpu, device, settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_config("BPR", "tiny", config_dict=settings(use_gpu=use_gpu))["device"].type == device


def test_wrong_devices_end_in_one_sentence(settings):
    with pytest.raises(UserError, match="use_gpu is 'no': write --use_gpu=True"):
        load_config("BPR", "tiny", config_dict=settings(use_gpu="no"))
    several = {"nproc": 2, "world_size": 2, "local_rank": 0, "offset": 0, "ip": "localhost", "port": 1}
    with pytest.raises(UserError, match="2 processes need as many GPUs in gpu_id"):
        load_config("BPR", "tiny", config_dict=settings(gpu_id="0", **several))


def test_cuda_is_not_asked_before_recbole_has_said_which_gpu():
    """The first question decides which GPUs a process sees: asked earlier, --gpu_id=1 would train on GPU 0."""
    script = """
import os, sys
import torch
seen = []
torch.cuda.is_available = lambda: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")) or False
torch.cuda.device_count = lambda: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")) or 0
from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.recbole_host.config import load_config
load_config("SASRec", "ml-100k", config_dict={"gpu_id": "1", "kd": "prmkd"})
sys.exit(not seen or set(seen) != {"1"})
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_job_does_not_train_on_the_cpu_in_place_of_its_gpu(tmp_path, monkeypatch):
    """As after a fault of the GPU, when CUDA shows none to a new process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    jobs.Job("a cell", tmp_path, "train", "BPR", "tiny", {}).write()
    monkeypatch.setattr(sys, "argv", ["work", str(tmp_path), "7"])
    with pytest.raises(SystemExit, match=r"CUDA shows no GPU 7.*--use_gpu=False"):
        work.main()


@pytest.mark.parametrize(("gpu", "given"), [(None, ""), ("2", "2")])
def test_a_job_is_given_its_gpu_or_that_it_has_none(gpu, given, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda command, **_: commands.append(command))
    jobs.start_in(tmp_path, 1, gpu)
    assert commands[0][-2:] == [str(tmp_path), given]
