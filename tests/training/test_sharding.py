"""Sharded weights (FSDP2) with the settings in examples/accelerate: results as without."""

import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.assertions import refuses
from helpers.processes import run_processes
from helpers.several_processes import (
    assert_trained_alike,
    spoil_gradients_in_shards,
    train_in_shards,
)
from helpers.training import assert_equal_weights

from tmapdiff import MomentLocalizer
from tmapdiff.errors import ConfigError
from tmapdiff.layers import GatedConv2dStack
from tmapdiff.training._sharding import prepare_sharding

SETTINGS = Path(__file__).parents[2] / "examples" / "accelerate"
utils = pytest.importorskip("accelerate.utils")
if not hasattr(utils.FullyShardedDataParallelPlugin(), "fsdp_version"):
    pytest.skip("accelerate without FSDP2", allow_module_level=True)


def launch(name):
    """Convert settings to arguments and variables, as `accelerate launch --config_file` does."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    command = ["--config_file", str(SETTINGS / name), "examples/train_charades.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    variables = prepare_multi_gpu_env(arguments)
    return arguments, {
        name: value
        for name, value in variables.items()
        if name.startswith(("FSDP", "ACCELERATE")) and os.environ.get(name) != value
    }


def test_settings_are_those_that_accelerate_reads():
    written = yaml.safe_load((SETTINGS / "fsdp2.yaml").read_text())
    arguments, variables = launch("fsdp2.yaml")
    assert arguments.use_fsdp
    assert not arguments.multi_gpu
    # The precision of a training is that of `TrainingConfig`.
    assert variables["ACCELERATE_MIXED_PRECISION"] == "no"
    for name, value in written["fsdp_config"].items():
        variable = name.upper().replace("_LAYER_CLS_", "_CLS_")  # accelerate's name
        assert variables[variable].lower() == str(value).lower()
    arguments, variables = launch("gpus.yaml")
    assert arguments.multi_gpu
    assert arguments.num_processes == 4
    assert variables["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "ACCELERATE_USE_FSDP" not in variables


def train(folder, variables, **options):
    # The norm for gradient clipping must be summed over shards.
    function = partial(train_in_shards, queries=16, gradient_clip=0.05, **options)
    run_processes(function, 2, folder / "logs", folder, variables)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.process
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_in_shards_is_as_without(tmp_path, precision):
    _, variables = launch("fsdp2.yaml")
    whole = train(tmp_path / "whole", {}, mixed_precision=precision)
    folder = tmp_path / "shards"
    options = {"mixed_precision": precision, "activation_checkpointing": True}
    shards = train(folder, variables, **options)
    assert_trained_alike(shards, whole)
    saved = MomentLocalizer.from_pretrained(folder / "model").state_dict()
    for name, value in shards["ema"].items():
        assert torch.equal(saved[name], value.to(saved[name].dtype))
    if precision == "no":
        shutil.rmtree(max((folder / "checkpoints").glob("epoch-*")))
        resumed = train(folder, variables, resume=True)
        assert len(resumed["losses"]) == len(shards["losses"]) / 2
        for which in ("raw", "ema"):
            assert_equal_weights(resumed[which], shards[which])
        assert resumed["history"] == shards["history"]


@pytest.mark.process
def test_gradients_that_are_not_finite_end_training(tmp_path):
    _, variables = launch("fsdp2.yaml")
    run_processes(spoil_gradients_in_shards, 2, tmp_path / "logs", tmp_path, variables)
    for rank in range(2):
        error = (tmp_path / f"error-{rank}").read_text()
        assert error.startswith("Trainer: expected a finite loss and norm of the gradient, got ")
        assert " and nan at step 0, queries " in error


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"FSDP_VERSION": "1", "FSDP_SYNC_MODULE_STATES": "false"}, "fsdp_version 2, got 1"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "fsdp_state_dict_type FULL_STATE_DICT, "),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading false, got t"),
    ],
)
def test_other_settings_are_refused(monkeypatch, changed, told):
    _, variables = launch("fsdp2.yaml")
    for name, value in {**variables, **changed}.items():
        monkeypatch.setenv(name, value)
    plugin = utils.FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(GatedConv2dStack(1, 1, [1]))
    state = SimpleNamespace(fsdp_plugin=plugin)
    accelerator = SimpleNamespace(distributed_type=utils.DistributedType.FSDP, state=state)
    with refuses(ConfigError, f"Trainer: expected {told}"):
        prepare_sharding(accelerator)


def test_deepspeed_is_refused():
    accelerator = SimpleNamespace(distributed_type=utils.DistributedType.DEEPSPEED)
    with refuses(ConfigError, "Trainer: expected accelerate with DDP or FSDP2, got DEEPSPEED."):
        prepare_sharding(accelerator)
