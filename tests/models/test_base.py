import copy
import inspect
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from helpers.assertions import assert_same, refuses
from helpers.contracts import randomize_
from safetensors import SafetensorError

from tmapdiff._core.declared_weights import check_declared_weights
from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, FileError, TmapdiffError
from tmapdiff.models import MapDiffusionDecoder, MultimodalEncoder

FIELDS = {
    "num_clips": 4,
    "num_anchors": 2,
    "num_scales": 2,
    "feature_channels": 2,
    "channels": 4,
    "time_channels": 4,
    "kernel_sizes": (3, 1),
    "num_groups": 2,
}
FILES = {"config.json", "diffusion_pytorch_model.safetensors"}
WAYS = [{}, {"max_shard_size": "2KB"}, {"max_shard_size": "4KB"}, {"variant": "fp16"},
        {"variant": "fp16", "max_shard_size": "2KB"}]  # fmt: skip


@pytest.fixture
def model() -> MapDiffusionDecoder:
    return randomize_(MapDiffusionDecoder(**FIELDS))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def public(model: ConfigMixin) -> dict[str, object]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


@pytest.fixture
def warnings_of_diffusers() -> Iterator[list[str]]:
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.WARNING)  # other tests may have silenced it
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)
    logger.setLevel(level)


CASTS: dict[str, Callable[[MapDiffusionDecoder, Path], Any]] = {
    "to(dtype)": lambda model, _: model.to(torch.bfloat16),
    "to(dtype=)": lambda model, _: model.to(dtype=torch.bfloat16),
    "to(device, dtype)": lambda model, _: model.to("cpu", torch.bfloat16),
    "from_pretrained": lambda model, folder: (
        model.save_pretrained(folder),
        MapDiffusionDecoder.from_pretrained(folder, torch_dtype=torch.bfloat16),
    )[1],
}


@pytest.mark.parametrize("cast", CASTS)
def test_casting_warns_of_nothing(model, tmp_path, warnings_of_diffusers, cast):
    found = CASTS[cast](copy.deepcopy(model), tmp_path)
    assert found.dtype == torch.bfloat16
    assert warnings_of_diffusers == []


@pytest.mark.skipif(
    "kept in float32" not in inspect.getsource(sys.modules[ModelMixin.__module__]),
    reason="diffusers does not warn yet",
)
def test_parts_to_keep_in_float32_are_still_warned_of(model, warnings_of_diffusers, monkeypatch):
    monkeypatch.setattr(MapDiffusionDecoder, "_keep_in_fp32_modules", ["head"])
    copy.deepcopy(model).to(torch.bfloat16)
    assert ["head" in one for one in warnings_of_diffusers] == [True]


def test_a_model_that_checkpoints_activations_can_be_pickled(model):
    model.enable_gradient_checkpointing()
    features = [torch.randn(2, 2, *shape) for shape in model.grid.shapes]
    given = torch.randn(2, model.grid.num_cells), torch.tensor([9, 3]), features
    expected = model(*given)
    copied = pickle.loads(pickle.dumps(model))
    assert copied.is_gradient_checkpointing
    assert_same(copied(*given), expected)


@pytest.mark.process
def test_imports_warn_of_nothing():
    code = "import tmapdiff.layers, tmapdiff.models, sys; sys.stdout.write('done')"
    # torch 2.6 removes an empty folder only at exit.
    warnings = ["-W", "error", "-W", "ignore:Implicitly cleaning up:ResourceWarning"]
    command = [sys.executable, *warnings, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done", "")


class TestConfig:
    def test_keeps_every_field_as_json_would(self, model):
        config = public(model)
        assert config == {
            **FIELDS,
            "kernel_sizes": [3, 1],
            "architecture": "conv",
            "conditioning": "concat",
            "gate": "shared",
            "num_layers": 4,
            "num_heads": 8,
            "joint_scales": False,
            "stylization": "both",
            "norm": "group",
            "dropout": 0.0,
        }
        assert type(config["kernel_sizes"]) is list

    def test_makes_a_model_of_the_same_fields(self, model):
        twin = MapDiffusionDecoder.from_config(model.config)
        assert public(twin) == public(model)
        assert {n: p.shape for n, p in twin.named_parameters()} == {
            n: p.shape for n, p in model.named_parameters()
        }

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("kernel_size", "Did you mean kernel_sizes?"), ("zzz", "Fields: num_clips, num_anchors")],
    )
    def test_refuses_unknown_fields(self, name, hint):
        text = (
            f"MapDiffusionDecoder: expected only known configuration fields, got {name!r}. {hint}"
        )
        with refuses(ConfigError, text):
            MapDiffusionDecoder.from_config({**FIELDS, name: 3})
        with refuses(ConfigError, text):
            MapDiffusionDecoder.from_config(FIELDS, **{name: 3})


class TestSave:
    @pytest.mark.parametrize("as_text", [False, True])
    def test_round_trip(self, model, tmp_path, as_text):
        folder = tmp_path / "some" / "where"
        model.train().save_pretrained(str(folder) if as_text else folder)
        assert names(folder) == FILES
        assert names(folder.parent) == {"where"}

        loaded = MapDiffusionDecoder.from_pretrained(str(folder) if as_text else folder)
        assert not loaded.training
        assert public(loaded) == public(model)
        assert list(loaded.state_dict()) == list(model.state_dict())
        for name, value in model.state_dict().items():
            assert_same(loaded.state_dict()[name], value, name)
        assert all(one.requires_grad for one in loaded.parameters())

        _, info = MapDiffusionDecoder.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        loaded.save_pretrained(tmp_path / "again")
        again = MapDiffusionDecoder.from_pretrained(tmp_path / "again")
        assert public(again) == public(model)

    def test_a_folder_keeps_its_other_files(self, model, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "config.json").write_text("old")
        model.save_pretrained(tmp_path)
        assert names(tmp_path) == FILES | {"notes.txt"}
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert public(MapDiffusionDecoder.from_pretrained(tmp_path)) == public(model)

    def test_refuses_a_file(self, model, tmp_path):
        file = tmp_path / "file"
        file.write_text("mine")
        with refuses(FileError, f"MapDiffusionDecoder: expected a folder to save in, got {file}."):
            model.save_pretrained(file)
        with refuses(FileError, f"cannot write {file / 'below'}: "):
            model.save_pretrained(file / "below")
        assert file.read_text() == "mine"
        assert names(tmp_path) == {"file"}

    @pytest.mark.parametrize(
        "error", [OSError(28, "No space left on device"), SafetensorError("two\nlines")]
    )
    def test_a_failure_leaves_nothing(self, model, tmp_path, monkeypatch, error):
        def fail(self: ModelMixin, folder: str, **_: object) -> None:
            Path(folder).mkdir()
            (Path(folder) / "config.json").write_text("half")
            raise error

        monkeypatch.setattr(ModelMixin, "save_pretrained", fail)
        old = tmp_path / "old"
        old.mkdir()
        (old / "config.json").write_text("whole")
        reason = "No space left on device." if isinstance(error, OSError) else "two."
        for folder in (tmp_path / "new", old):
            with refuses(FileError, f"cannot write {folder}: {reason}"):
                model.save_pretrained(folder)
        assert names(tmp_path) == {"old"}
        assert (old / "config.json").read_text() == "whole"

    @pytest.mark.parametrize("before", WAYS)
    @pytest.mark.parametrize("now", WAYS)
    def test_what_was_saved_last_is_loaded(self, model, tmp_path, before, now):
        first = randomize_(MapDiffusionDecoder(**FIELDS, dropout=0.5), seed=1)
        mine = {"vocabulary.json", "diffusion_pytorch_model.txt", "my-model.safetensors"}
        for name in mine:
            (tmp_path / name).write_text("[]")
        first.save_pretrained(tmp_path, **before)
        model.save_pretrained(tmp_path, **now)
        model.save_pretrained(tmp_path / "alone", **now)
        assert names(tmp_path) - {"alone"} == names(tmp_path / "alone") | mine
        variant = {"variant": now["variant"]} if "variant" in now else {}
        loaded = MapDiffusionDecoder.from_pretrained(tmp_path, **variant)
        assert public(loaded) == public(model)
        for name, tensor in model.state_dict().items():
            assert_same(loaded.state_dict()[name], tensor, name)

    def test_variants_of_one_model_share_a_folder(self, model, tmp_path):
        load = MapDiffusionDecoder.from_pretrained
        model.save_pretrained(tmp_path)
        for way in ({"max_shard_size": "2KB"}, {}):
            model.half().save_pretrained(tmp_path, variant="fp16", **way)
            assert load(tmp_path).dtype == torch.float32
            half = load(tmp_path, variant="fp16", torch_dtype=torch.float16)
            for name, tensor in model.state_dict().items():
                assert_same(half.state_dict()[name], tensor, name)
            model.float()
        assert names(tmp_path) == FILES | {"diffusion_pytorch_model.fp16.safetensors"}

    @pytest.mark.parametrize("option", [{"safe_serialization": False}, {"use_flashpack": True}])
    def test_weights_that_would_not_be_loaded_are_not_saved(self, model, tmp_path, option):
        with refuses(ArgumentError, ", as only safetensors can be loaded, got "):
            model.save_pretrained(tmp_path / "new", **option)
        assert not (tmp_path / "new").exists()

    def test_other_processes_than_the_main_one_write_nothing(self, model, tmp_path):
        model.save_pretrained(tmp_path / "new", is_main_process=False)
        assert not (tmp_path / "new").exists()

    def test_the_current_folder_and_its_parent_are_folders_too(self, model, tmp_path, monkeypatch):
        below = tmp_path / "here" / "below"
        below.mkdir(parents=True)
        monkeypatch.chdir(below)
        for place, folder in ((".", below), ("..", below.parent)):
            for _ in range(2):
                model.save_pretrained(place)
                assert names(folder) - {"below"} == FILES
        assert names(tmp_path) == {"here"}

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_refuses_a_folder_without_rights(self, model, tmp_path):
        tmp_path.chmod(0o500)
        with refuses(FileError, "Permission denied."):
            model.save_pretrained(tmp_path / "new")


class TestLoad:
    def test_reads_a_subfolder(self, model, tmp_path):
        model.save_pretrained(tmp_path / "decoder")
        loaded = MapDiffusionDecoder.from_pretrained(tmp_path, subfolder="decoder")
        assert public(loaded) == public(model)

    def test_a_field_of_the_call_wins(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = MapDiffusionDecoder.from_pretrained(tmp_path, dropout=0.5)
        assert loaded.config["dropout"] == 0.5
        with refuses(ConfigError, "got 'droput'. Did you mean dropout?"):
            MapDiffusionDecoder.from_pretrained(tmp_path, droput=0.5)

    def test_a_loaded_model_does_not_change_with_its_file(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = MapDiffusionDecoder.from_pretrained(tmp_path)
        weights = tmp_path / "diffusion_pytorch_model.safetensors"
        with weights.open("r+b") as file:
            file.write(bytes(weights.stat().st_size))
        for own, read in zip(model.parameters(), loaded.parameters(), strict=True):
            assert_same(read.detach(), own.detach())

    def test_refuses_a_model_of_another_class(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        text = f"MultimodalEncoder: cannot load {tmp_path}: it is a MapDiffusionDecoder."
        with refuses(CheckpointError, text):
            MultimodalEncoder.from_pretrained(tmp_path)

    def test_refuses_a_folder_that_does_not_exist(self, tmp_path):
        place = tmp_path / "nowhere"
        with refuses(CheckpointError, f"MapDiffusionDecoder: cannot load {place}: "):
            MapDiffusionDecoder.from_pretrained(place)

    def test_errors_are_also_value_errors(self, tmp_path):
        with pytest.raises(ValueError, match="cannot load") as caught:
            MapDiffusionDecoder.from_pretrained(tmp_path)
        assert isinstance(caught.value, TmapdiffError)
        assert caught.value.__cause__ is not None


class TestDeclaredWeights:
    @pytest.mark.parametrize(("field", "value"), [("channels", 10**6), ("kernel_sizes", [99] * 99)])
    def test_a_configuration_of_more_than_the_files_hold(self, model, tmp_path, field, value):
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
        with refuses(
            CheckpointError,
            "its configuration declares",
            "bytes of weights, in",
            "but the files next to it hold far less.",
        ):
            MapDiffusionDecoder.from_pretrained(tmp_path)

    def test_a_configuration_that_is_too_long(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        with (tmp_path / "config.json").open("a") as file:
            file.write(" " * (5 << 20))
        with refuses(CheckpointError, "its config.json has more than 4194304 bytes."):
            MapDiffusionDecoder.from_pretrained(tmp_path)

    def test_weights_in_half_precision_are_fine(self, model, tmp_path):
        model.half().save_pretrained(tmp_path)
        MapDiffusionDecoder.from_pretrained(tmp_path)

    def test_other_threads_are_not_counted(self, tmp_path):
        def build() -> None:
            thread = threading.Thread(target=lambda: torch.nn.Linear(5000, 5000))
            thread.start()
            thread.join()

        check_declared_weights("place", tmp_path, build)
        with refuses(CheckpointError, "place: its configuration declares at least 100,000,000"):
            check_declared_weights("place", tmp_path, lambda: torch.nn.Linear(5000, 5000))

    def test_more_weights_than_can_be_counted(self, tmp_path):
        for build in (lambda: torch.nn.LSTM(8, 10**12), lambda: torch.nn.Linear(10**20, 3)):
            with refuses(CheckpointError, "place: its configuration declares more weights than ca"):
                check_declared_weights("place", tmp_path, build)
