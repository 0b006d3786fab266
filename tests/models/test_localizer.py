import copy
import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from helpers.assertions import assert_close, assert_same, assert_zero, refuses
from helpers.contracts import draw, randomize_
from helpers.fields import DECODER, ENCODER
from helpers.host_sync import host_syncs, no_host_sync, on_a_device
from helpers.oracles import OracleDecoder, sampled_by_calls
from safetensors.torch import load_file, save_file
from torch import Tensor

from tmapdiff.errors import ArgumentError, CheckpointError, ConfigError, ShapeError
from tmapdiff.losses import OBJECTIVES
from tmapdiff.maps import (
    IoUMapBuilder,
    MultiScaleMapSampler,
    rank_by_expected_hits,
    rank_moments,
    temporal_iou,
)
from tmapdiff.models import DenoisingStep, MapDiffusionDecoder, MomentLocalizer, MultimodalEncoder
from tmapdiff.schedulers import MapScheduler

CELLS = 8 * 4 + 4 * 4
WEIGHTS = "diffusion_pytorch_model.safetensors"


def make(**fields: Any) -> MomentLocalizer:
    return MomentLocalizer(**{"encoder_config": ENCODER, "decoder_config": DECODER, **fields})


def ready(**fields: Any) -> MomentLocalizer:
    return randomize_(make(**fields)).eval()


def queries(batch: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "features": draw(batch, 8, 6, seed=seed),
        "words": torch.randint(1, 12, (batch, 5), generator=generator),
        "num_words": torch.randint(1, 6, (batch,), generator=generator),
        "clip_seconds": 1 + torch.rand(batch, generator=generator),
    }


def annotated(batch: int, seed: int = 0) -> dict[str, Tensor]:
    inputs = queries(batch, seed)
    clips = torch.tensor([[0, 1], [2, 6], [4, 8], [1, 4], [5, 7], [0, 4], [3, 4], [2, 4]])
    return {**inputs, "moments": clips[:batch] * inputs["clip_seconds"][:, None]}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def public(model: MomentLocalizer) -> dict[str, object]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


class TestConstruction:
    def test_fields_reach_the_parts(self):
        model = make(
            scheduler_config={"signal_scale": 0.3}, objective="bce-full", num_inference_steps=3
        )
        assert model.scheduler.config["signal_scale"] == 0.3
        assert model.objective.name == "bce-full"
        assert len(model.scheduler.timesteps) == 3
        assert model.encoder.config["vocabulary_size"] == 12
        assert model.decoder.config["kernel_sizes"] == [3, 3]

    def test_refuses(self):
        def encoder(**fields):
            return {"encoder_config": {**ENCODER, **fields}}

        def decoder(**fields):
            return {"decoder_config": {**DECODER, **fields}}

        for fields, text in (
            (encoder(num_anchors=3), "encoder and decoder with the same grid, got MapGrid("),
            (decoder(feature_channels=4), "to be the encoder's channels, 8, got 4."),
            (encoder(chanels=8), f"MultimodalEncoder: {UNKNOWN} 'chanels'. Did you mean channels?"),
            (decoder(kernel_size=3), f"MapDiffusionDecoder: {UNKNOWN} 'kernel_size'. Did you mean"),
            ({"scheduler_config": {"signal": 3}}, f"MapScheduler: {UNKNOWN} 'signal'."),
            (
                {"ranking": "vote"},
                "ranking to be one of nms, expected-hits, nms-then-",
            ),
            ({"objective": "mse"}, f"objective to be one of {', '.join(OBJECTIVES)}, got 'mse'"),
        ):
            with refuses(ConfigError, text):
                make(**fields)
        for name, value, text in (
            ("nms_threshold", 1.5, "expected nms_threshold in [0, 1], got 1.5."),
            ("num_inference_steps", 0, "num_inference_steps to be an integer"),
            ("num_inference_steps", 1001, "num_inference_steps in [1, 1000]"),
            ("timestep_power", -1.0, "expected timestep_power in [0, inf), got -1"),
            ("num_samples", 0, "expected num_samples to be an integer >= 1"),
        ):
            with refuses(ArgumentError, f"MomentLocalizer: {text}" if "expected" in text else text):
                make(**{name: value})

    def test_deepcopy_pickle_and_repr(self):
        model = ready()
        expected = model.localize(**queries(2), generator=seeded(0)).dense
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_same(twin.localize(**queries(2), generator=seeded(0)).dense, expected)
        assert "(encoder): MultimodalEncoder(" in repr(model)

    def test_builds_on_meta(self):
        with torch.device("meta"):
            empty = make()
        assert list(empty.state_dict()) == list(make().state_dict())
        assert all(one.is_meta for one in empty.state_dict().values())


class TestFromParts:
    def test_keeps_weights_and_fields(self):
        encoder = randomize_(MultimodalEncoder(**ENCODER), seed=1)
        decoder = randomize_(MapDiffusionDecoder(**DECODER), seed=2)
        scheduler = MapScheduler(signal_scale=0.2)
        model = MomentLocalizer.from_parts(
            encoder, decoder, scheduler, objective="bce-full", num_inference_steps=2
        )
        assert model.encoder is encoder
        assert model.decoder is decoder
        assert model.scheduler is scheduler
        assert len(scheduler.timesteps) == 2
        assert model.config["objective"] == "bce-full"
        assert model.config["scheduler_config"]["signal_scale"] == 0.2
        twin = MomentLocalizer.from_config(model.config)
        assert public(twin) == public(model)
        assert list(twin.state_dict()) == list(model.state_dict())

    def test_a_scheduler_that_is_set_later_is_used_and_saved(self, tmp_path):
        given = {**queries(2), "num_inference_steps": 4}
        model = randomize_(make()).eval()
        before = model.localize(**given, generator=seeded(0)).dense
        model.scheduler = MapScheduler.from_config(model.scheduler.config, solver="unipc")
        after = model.localize(**given, generator=seeded(0)).dense
        assert not torch.equal(before, after)
        model.save_pretrained(tmp_path)
        loaded = MomentLocalizer.from_pretrained(tmp_path)
        assert loaded.scheduler.config.solver == "unipc"
        assert_same(loaded.localize(**given, generator=seeded(0)).dense, after)
        assert_same(copy.deepcopy(model).localize(**given, generator=seeded(0)).dense, after)

    def test_other_schedulers_are_refused(self):
        model = make()
        text = "MomentLocalizer: expected a MapScheduler, got DDIMScheduler. MapScheduler also has"
        with refuses(ArgumentError, text):
            model.scheduler = DDIMScheduler()
        assert isinstance(model.scheduler, MapScheduler)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    ready().save_pretrained(folder)
    return folder


def edit_weights(changes: dict[str, Tensor | None]) -> Callable[[Path], None]:
    """Change weights, and remove those that are None."""

    def edit(folder: Path) -> None:
        weights = {**load_file(folder / WEIGHTS), **changes}
        left = {name: one for name, one in weights.items() if one is not None}
        save_file(left, folder / WEIGHTS, metadata={"format": "pt"})

    return edit


def edit_config(
    encoder: dict[str, Any] | None = None, decoder: dict[str, Any] | None = None, **fields: Any
) -> Callable[[Path], None]:
    """Change fields of the parts and of the whole, and remove those that are GONE."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config.update(fields)
        for name, changes in (("encoder_config", encoder), ("decoder_config", decoder)):
            part = {**config[name], **(changes or {})}
            config[name] = {field: value for field, value in part.items() if value is not GONE}
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return edit


GONE = object()
HEAD = "decoder.decoders.0.head.weight"
STATISTIC = "encoder.map_features.scales.0.0.1.running_var"
EXTRA = {f"extra.{index}": torch.ones(1) for index in range(5)}
LARGER = {"encoder": {"channels": 16}, "decoder": {"feature_channels": 16}}
SHAPES = f"{HEAD} (1, 8, 3, 3) instead of (1, 8, 1, 1) (1 in all)."
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing weight": (edit_weights({HEAD: None}), f": it has no weights: {HEAD} (1 in all)."),
    "missing statistic": (edit_weights({STATISTIC: None}), f"has no weights: {STATISTIC} (1 in "),
    "extra weights": (edit_weights(EXTRA), "unknown weights: extra.0, extra.1, extra.2 (5 in all)"),
    "weight of another shape": (
        edit_weights({HEAD: torch.ones(1, 8, 3, 3)}),
        f": it has weights of another shape: {SHAPES}",
    ),
    "weights cut in half": (truncate(WEIGHTS, 0.5), WEIGHTS),
    "weights empty": (truncate(WEIGHTS, 0), WEIGHTS),
    "weights gone": (lambda folder: (folder / WEIGHTS).unlink(), "no file named"),
    "config cut in half": (truncate("config.json", 0.5), "config.json"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "list"),
    "config gone": (lambda folder: (folder / "config.json").unlink(), "config"),
    "folder gone": (shutil.rmtree, "model"),
    "folder a file": (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), "model"),
    "another class": (edit_config(_class_name="UNet2DModel"), ": it is a UNet2DModel."),
    "config of a larger model": (edit_config(**LARGER), ": it has weights of another shape: "),
}
UNKNOWN = "expected only known configuration fields, got"
WRONG_FIELDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown field": (edit_config(nms=0.4), f"MomentLocalizer: {UNKNOWN} 'nms'."),
    "unknown nested field": (
        edit_config(decoder={"gates": "shared"}),
        f"{UNKNOWN} 'gates'. Did you mean gate?",
    ),
    "missing nested field": (
        edit_config(encoder={"vocabulary_size": GONE}),
        "MultimodalEncoder: expected the configuration field vocabulary_size, got none.",
    ),
    "impossible nested value": (
        edit_config(decoder={"gate": "x"}),
        "gate to be one of shared, channel, got 'x'.",
    ),
    "parts of two grids": (
        edit_config(encoder={"num_anchors": 3}),
        "expected encoder and decoder with the same grid",
    ),
    "a part that nobody registered": (
        edit_config(decoder={"part": "os.system"}),
        "expected a registered part, got 'os.system'.",
    ),
}


class TestCheckpoints:
    def test_round_trip_is_exact(self, saved):
        model, loaded = ready(), MomentLocalizer.from_pretrained(saved)
        assert public(loaded) == public(model)
        assert not loaded.training
        inputs = queries(3)
        for steps in (1, 4):
            expected, result = (
                one.localize(**inputs, num_inference_steps=steps, generator=seeded(1))
                for one in (model, loaded)
            )
            assert_same(result.dense, expected.dense)
            assert_same(result.ranked.moments, expected.ranked.moments)
            assert_same(result.ranked.scores, expected.ranked.scores)
        assert_same(
            loaded.loss(**annotated(3), generator=seeded(2)).detach(),
            model.loss(**annotated(3), generator=seeded(2)).detach(),
        )

    def test_round_trip_keeps_all_fields(self, tmp_path):
        model = make(
            encoder_config={**ENCODER, "train_words": False},
            scheduler_config={"signal_scale": 0.3, "timestep_spacing": "leading"},
            objective="bce-rescaled",
            nms_threshold=0.3,
            num_inference_steps=7,
            deterministic=True,
        )
        model.save_pretrained(tmp_path)
        loaded = MomentLocalizer.from_pretrained(tmp_path)
        assert public(loaded) == public(model)
        assert not loaded.is_generative
        assert_same(loaded.scheduler.timesteps, model.scheduler.timesteps)
        assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
            n: p.requires_grad for n, p in model.named_parameters()
        }

    @pytest.mark.parametrize("damage", [*DAMAGES, *WRONG_FIELDS])
    def test_refuses_damaged_checkpoints(self, saved, tmp_path, damage):
        folder = tmp_path / "model"
        shutil.copytree(saved, folder)
        edit, text = {**DAMAGES, **WRONG_FIELDS}[damage]
        kind, texts = ConfigError, [text]
        if damage in DAMAGES:
            kind, texts = CheckpointError, [text, f"MomentLocalizer: cannot load {folder}: "]
        edit(folder)
        with refuses(kind, *texts):
            MomentLocalizer.from_pretrained(folder)


class TestLoss:
    def test_is_one_finite_number_with_gradients_for_all(self):
        model = ready().train()
        loss = model.loss(**annotated(3), generator=seeded(0))
        assert loss.shape == ()
        assert bool(loss.isfinite())
        loss.backward()
        gradients = {name: one.grad for name, one in model.named_parameters()}
        assert [n for n, g in gradients.items() if g is None or not bool((g != 0).any())] == []

    def test_values_are_checked_where_they_are_free(self):
        model, batch = ready(), annotated(3)
        given = {n: batch[n] for n in ("features", "words", "moments", "clip_seconds")}
        model.check_values(**given)
        with refuses(ArgumentError, "expected word indices in 0 to 11, the vocabulary"):
            model.check_values(**{**given, "words": given["words"] + 12})
        with refuses(ArgumentError, "IoUMapBuilder: expected 0 <= start < end"):
            model.check_values(**{**given, "moments": given["moments"].flip(1)})
        checked = model.loss(**batch, generator=seeded(0))
        with model.without_checks():
            assert_same(model.loss(**batch, generator=seeded(0)), checked)
            model.loss(**{**batch, "moments": given["moments"].flip(1)})
        with refuses(ArgumentError, "IoUMapBuilder: expected 0 <= start < end"):
            model.loss(**{**batch, "moments": given["moments"].flip(1)})

    @pytest.mark.compile
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
    def test_is_one_graph_for_the_compiler_but_for_the_words(self, monkeypatch):
        # torch's compiler skips the LSTM with its packed sequence.
        one_scale = {"num_scales": 1}
        model = ready(
            encoder_config={**ENCODER, **one_scale},
            decoder_config={**DECODER, **one_scale, "kernel_sizes": [3]},
        )
        inputs = annotated(4)
        sentence = model.encoder.text_encoder(inputs["words"], inputs["num_words"]).detach()
        monkeypatch.setattr(model.encoder.text_encoder, "forward", lambda *_: sentence)
        torch.manual_seed(0)
        expected = model.loss(**inputs)
        torch._dynamo.reset()
        compiled = torch.compile(model.loss, backend="eager", fullgraph=True)
        with model.without_checks():
            torch.manual_seed(0)
            assert_close(compiled(**inputs), expected)

    @pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
    @pytest.mark.parametrize("counted", [False, True])
    def test_waits_for_no_device_without_checks(self, counted):
        scheduler = MapScheduler()
        with on_a_device() as put, torch.device("cuda"):
            model, batch = make(), put(annotated(2))
            model.scheduler = scheduler
            # It reads lengths, which have no values here (see its own test).
            model.encoder.text_encoder.forward = lambda words, _: words.new_ones(len(words), 8) / 3
            if counted:
                batch["num_clips"] = put(torch.tensor([8, 6]))
            with model.without_checks():
                with host_syncs() as found:
                    model.loss(**batch)
                assert found == ["copy from cpu to cuda"]  # the noise schedule, which is cached
                with no_host_sync():
                    assert model.loss(**batch).device.type == "cuda"

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_generator_decides(self, objective):
        model = ready(objective=objective)
        with torch.no_grad():
            first, again, other = (
                model.loss(**annotated(3), generator=seeded(seed)) for seed in (1, 1, 2)
            )
        assert_same(first, again)
        assert float(first) != float(other)

    def test_equals_its_parts(self):
        model, inputs = ready(), annotated(3)
        target = IoUMapBuilder(model.grid).packed(inputs["moments"], inputs["clip_seconds"])
        generator = seeded(5)
        noise = torch.randn(3, CELLS, generator=generator)
        timesteps = (torch.rand(3, generator=generator) * 1000).long()
        alpha = model.scheduler.alphas_cumprod[timesteps][:, None].float()
        noisy = alpha.sqrt() * (2 * target - 1) * 0.1 + (1 - alpha).sqrt() * noise
        scaled = noisy / (alpha * 0.01 + 1 - alpha).sqrt()
        features = model.encoder(inputs["features"], inputs["words"], inputs["num_words"])
        scores = model.decoder(scaled, timesteps, features)
        mask = model.grid.packed_mask()
        expected = (scores - target)[:, mask].square().mean()
        assert_close(model.loss(**inputs, generator=seeded(5)), expected)

    def test_a_generator_a_query_makes_batching_of_whole_videos_irrelevant(self):
        model, inputs, clips = ready(), annotated(3), torch.tensor([8, 14, 11])
        inputs["features"] = draw(3, 14, 6)

        def loss(rows: list[int]) -> Tensor:
            """Sum over valid cells."""
            longest = max(8, int(clips[rows].max()) + 1 & ~1)  # even, for two scales
            own = {name: one[rows] for name, one in inputs.items()}
            own["features"] = own["features"][:, :longest]
            generators = [seeded(row) for row in rows]
            mean = model.loss(**own, num_clips=clips[rows], generator=generators)
            return mean * model.count_cells(own["features"], clips[rows])

        with torch.no_grad():
            assert_close(loss([0, 1, 2]), loss([0]) + loss([1]) + loss([2]))

    def test_several_moments(self):
        model, inputs = ready(), annotated(3)
        moments = torch.stack([inputs["moments"], torch.full((3, 2), torch.nan)], dim=1)
        counted = {**inputs, "moments": moments, "num_moments": torch.ones(3, dtype=torch.int64)}
        with torch.no_grad():
            assert_same(
                model.loss(**counted, generator=seeded(1)),
                model.loss(**inputs, generator=seeded(1)),
            )

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_is_finite_under_autocast(self, objective):
        model = ready(objective=objective).train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(**annotated(4), generator=seeded(0))
        assert loss.dtype == torch.float32
        loss.backward()
        for name, one in model.named_parameters():
            assert bool(one.grad.isfinite().all()), name
        with torch.no_grad():
            exact = model.loss(**annotated(4), generator=seeded(0))
        assert_close(loss.detach(), exact, torch.bfloat16)

    def test_of_nothing_is_zero(self):
        assert float(ready().loss(**annotated(0)).detach()) == 0

    def test_refuses(self):
        model, inputs = ready(), annotated(2)
        for changes, kind, text in (
            ({"moments": draw(2, 3)}, ShapeError, "expected moments of shape (B, M, 2)"),
            (
                {"moments": torch.tensor([[0.0, 1.0], [3.0, 2.0]])},
                ArgumentError,
                "got start 3, end 2 in row 1 of moments.",
            ),
            ({"clip_seconds": torch.ones(3)}, ShapeError, "expected clip_seconds of shape (B)"),
            ({"num_words": torch.tensor([1, 0])}, ArgumentError, "got 0 in row 1."),
            ({"features": draw(2, 7, 6)}, ShapeError, "expected features of shape (B, 8, 6)"),
        ):
            with refuses(kind, text):
                model.loss(**{**inputs, **changes})


class TestSampleMaps:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    @pytest.mark.parametrize(("steps", "eta"), [(1, 0.0), (3, 0.0), (7, 1.0)])
    def test_an_oracle_gives_the_truth(self, objective, steps, eta):
        model, inputs = ready(objective=objective), annotated(4)
        iou = IoUMapBuilder(model.grid).packed(inputs["moments"], inputs["clip_seconds"])
        target = model.objective.target(iou)
        scores = target.logit(eps=1e-7) if objective.startswith("bce") else target
        # Scores of invalid cells are not read.
        scores = scores.masked_fill(~model.grid.packed_mask(), torch.nan)
        model.decoder = OracleDecoder(model.grid, scores)
        features = [draw(4, 8, 8, 4), draw(4, 8, 4, 4)]
        maps = model.sample_maps(features, num_inference_steps=steps, eta=eta, generator=seeded(0))
        assert float((maps - target).abs().max()) < 1e-6
        assert model.decoder.timesteps == model.scheduler.begin(steps).timesteps

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_encoder_in_half_precision(self, deterministic):
        model, inputs = ready(deterministic=deterministic), queries(2)
        exact = model.localize(**inputs, generator=seeded(0)).maps
        model.encoder.bfloat16()  # a frozen one, as training allows
        assert_close(model.localize(**inputs, generator=seeded(0)).maps, exact, torch.bfloat16)

    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_a_generator_a_sample_makes_batching_irrelevant(self, eta):
        model, inputs = ready(), queries(3)
        del inputs["clip_seconds"]
        with torch.no_grad():
            features = model.encoder(**inputs)
        options = {"num_inference_steps": 4, "eta": eta}
        together = model.sample_maps(
            features, generator=[seeded(seed) for seed in (5, 6, 7)], **options
        )
        for row, seed in enumerate((5, 6, 7)):
            one = [maps[row : row + 1] for maps in features]
            for generator in ([seeded(seed)], seeded(seed)):
                alone = model.sample_maps(one, generator=generator, **options)
                assert_close(together[row : row + 1], alone)
        swapped = model.sample_maps(
            [maps[[2, 0, 1]] for maps in features],
            generator=[seeded(seed) for seed in (7, 5, 6)],
            **options,
        )
        assert_close(swapped, together[[2, 0, 1]])
        other = model.sample_maps(features, generator=[seeded(s) for s in (5, 6, 8)], **options)
        assert float((other[2] - together[2]).abs().max()) > 1e-3

    @pytest.mark.parametrize("steps", [1, 2, 5])
    @pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "unipc"])
    def test_every_solver_samples(self, solver, steps):
        model = ready(scheduler_config={"solver": solver})
        features, noise = [draw(2, 8, 8, 4), draw(2, 8, 4, 4)], draw(2, CELLS)
        options = {"num_inference_steps": steps, "noise": noise}
        maps = model.sample_maps(features, **options)
        assert_close(maps, sampled_by_calls(model, features, noise, steps))
        plain = ready().sample_maps(features, **options)
        same = torch.allclose(maps, plain, rtol=0, atol=1e-6)
        assert same == (solver == "ddim" or steps < 3)

        # An interrupted run leaves no state behind.
        def stop(step: DenoisingStep) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            model.sample_maps([one[:1] for one in features], callback=stop)
        assert_same(model.sample_maps(features, **options), maps)

    @pytest.mark.parametrize("num_clips", [None, torch.tensor([8, 5])])
    def test_noise_does_not_depend_on_the_default_dtype(self, num_clips, request):
        model, features = ready(), [draw(2, 8, 8, 4), draw(2, 8, 4, 4)]
        inputs, losses = annotated(2), []
        request.addfinalizer(partial(torch.set_default_dtype, torch.get_default_dtype()))
        maps = []
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            sources = [seeded(5), seeded(6)]
            maps.append(model.sample_maps(features, num_clips=num_clips, generator=sources))
            losses.append(model.loss(**inputs, num_clips=num_clips, generator=seeded(5)))
        assert_same(*maps)
        assert_same(*losses)

    def test_noise_replaces_the_generator(self):
        model = ready()
        features = [draw(2, 8, 8, 4), draw(2, 8, 4, 4)]
        noise = torch.randn(2, CELLS, generator=seeded(3))
        before = noise.clone()
        maps = model.sample_maps(features, noise=noise)
        assert_same(noise, before)
        assert_same(maps, model.sample_maps(features, generator=seeded(3)))
        assert_same(maps, model.sample_maps(features, noise=noise, generator=seeded(4)))
        for wrong in (noise[:1], noise[:, 1:], noise[0]):
            text = f"sample_maps: expected noise of shape (2, {CELLS}), got {tuple(wrong.shape)}."
            with refuses(ShapeError, text):
                model.sample_maps(features, noise=wrong)

    def test_calls_back_after_each_step(self):
        model = ready()
        features = [draw(2, 8, 8, 4), draw(2, 8, 4, 4)]
        seen: list[DenoisingStep] = []
        maps = model.sample_maps(features, num_inference_steps=6, callback=seen.append)
        assert [step.index for step in seen] == list(range(6))
        timesteps = [step.timestep for step in seen]
        assert timesteps[0] == 999
        assert timesteps == sorted(set(timesteps), reverse=True)
        invalid = ~model.grid.packed_mask()
        for step in seen:
            assert step.clean.shape == step.noisy.shape == (2, CELLS)
            assert 0 <= float(step.clean.min()) <= float(step.clean.max()) <= 1 + 1e-6
            assert not bool(step.clean[:, invalid].any() | step.noisy[:, invalid].any())
        assert not maps.requires_grad
        for last in (seen[-1].clean, seen[-1].noisy):
            assert_close(last, maps)

    @pytest.mark.parametrize("solver", ["ddim", "unipc"])
    def test_noisy_maps_of_a_step_are_what_the_next_starts_from(self, solver):
        model = ready(scheduler_config={"solver": solver})
        features = [draw(2, 8, 8, 4), draw(2, 8, 4, 4)]
        steps: list[DenoisingStep] = []
        model.sample_maps(features, num_inference_steps=4, callback=steps.append)
        valid = model.grid.packed_mask()
        for before, step in pairwise(steps):
            noisy = model.scheduler.to_signal(before.noisy)
            scores = model.predict_scores(noisy, torch.full((2,), step.timestep), features)
            believed = model.objective.activation(scores).clamp(0, 1)
            assert_close(believed[:, valid], step.clean[:, valid])

    def test_takes_the_configured_steps(self):
        model = ready(num_inference_steps=3)
        features = [draw(1, 8, 8, 4), draw(1, 8, 4, 4)]
        steps: list[int] = []
        for number, expected in ((None, 3), (2, 2), (None, 3)):
            steps.clear()
            model.sample_maps(
                features,
                num_inference_steps=number,
                callback=lambda step: steps.append(step.timestep),
            )
            assert len(steps) == expected

    def test_refuses(self):
        model, maps = ready(), [draw(1, 8, 8, 4), draw(1, 8, 4, 4)]
        for name, value, range_ in (
            ("num_inference_steps", 0, "to be an integer >= 1"),
            ("num_inference_steps", 1001, "in [1, 1000]"),
            ("eta", 1.5, "in [0, 1]"),
        ):
            with refuses(ArgumentError, f"expected {name} {range_}, got {value}."):
                model.sample_maps(maps, **{name: value})
        model = ready(scheduler_config={"solver": "unipc"})
        with refuses(ArgumentError, "eta = 0 and no variance_noise with solver unipc, got eta = 1"):
            model.sample_maps(maps, eta=1)


class TestLocalize:
    @pytest.mark.parametrize("batch", [0, 1, 3])
    def test_moments_lie_inside_the_video_best_first(self, batch):
        inputs = queries(batch)
        found = ready().localize(**inputs, top_n=4, generator=seeded(0))
        ranked = found.ranked
        assert ranked.moments.shape == (batch, 4, 2)
        assert ranked.scores.shape == ranked.valid.shape == (batch, 4)
        assert bool(ranked.valid.all())
        start, end = ranked.moments.unbind(-1)
        assert bool((start >= 0).all())
        assert bool((end > start).all())
        assert bool((end <= 8 * inputs["clip_seconds"][:, None] + 1e-5).all())
        assert bool((ranked.scores.diff() <= 0).all())
        assert found.dense.shape == (batch, 8, 8)
        assert found.mask.shape == (8, 8)
        assert bool((found.dense[:, ~found.mask] == -torch.inf).all())
        assert bool(found.dense[:, found.mask].isfinite().all())

    def test_is_sampling_and_merging(self):
        model, inputs = ready(), queries(2)
        found = model.localize(**inputs, generator=seeded(0), num_inference_steps=2, eta=0.5)
        with torch.no_grad():
            features = model.encoder(inputs["features"], inputs["words"], inputs["num_words"])
        maps = model.sample_maps(features, generator=seeded(0), num_inference_steps=2, eta=0.5)
        dense, mask = model.sampler.merge(model.grid.unpack(maps))
        assert_same(found.dense, dense)
        assert_same(found.mask, mask)
        assert_same(found.maps, maps)

    @pytest.mark.parametrize("ranking", ["nms", "expected-hits"])
    @pytest.mark.parametrize("num_clips", [None, torch.tensor([8, 5, 3])])
    def test_dense_maps_are_made_on_request_only(self, monkeypatch, ranking, num_clips):
        merge, made = MultiScaleMapSampler.merge, []

        def counted(*args: Any) -> tuple[Tensor, Tensor]:
            made.append(args)
            return merge(*args)

        monkeypatch.setattr(MultiScaleMapSampler, "merge", counted)
        inputs = {**queries(3), "num_clips": num_clips}
        found = ready().localize(**inputs, ranking=ranking, generator=seeded(0))
        assert not made
        assert found.dense is found.dense
        assert len(made) == 1
        if ranking == "nms":
            expected = rank_moments(found.dense, found.mask, inputs["clip_seconds"])
            assert_same(found.ranked.moments, expected.moments)
            assert_same(found.ranked.scores, expected.scores)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_works_in_other_dtypes(self, dtype):
        inputs = queries(2)
        model = ready().to(dtype)
        cast = {**inputs, "features": inputs["features"].to(dtype)}
        exact = {**inputs, "features": cast["features"].float()}
        expected = (
            copy.deepcopy(model)
            .float()
            .localize(**exact, num_inference_steps=1, generator=seeded(0))
        )
        found = model.localize(**cast, num_inference_steps=1, generator=seeded(0))
        row = torch.float32 if dtype == torch.float64 else dtype
        assert_close(found.dense[:, found.mask], expected.dense[:, found.mask], row)
        loss = model.loss(**{**annotated(2), "features": cast["features"]}, generator=seeded(0))
        assert bool(loss.isfinite())
        found = model.localize(**inputs, generator=seeded(0))  # features as they are
        assert bool(found.ranked.scores.isfinite().all())

    def test_works_under_autocast(self):
        inputs, model = queries(2), ready()
        expected = model.localize(**inputs, num_inference_steps=1, generator=seeded(0))
        with torch.autocast("cpu", torch.bfloat16):
            found = model.localize(**inputs, num_inference_steps=1, generator=seeded(0))
        assert_close(found.dense[:, found.mask], expected.dense[:, found.mask], torch.bfloat16)

    @pytest.mark.parametrize(
        ("options", "kind", "text"),
        [
            ({"top_n": 0}, ArgumentError, "top_n to be an integer >= 1, got 0."),
            ({"clip_seconds": torch.ones(3)}, ShapeError, "clip_seconds of shape (B) with B = 2"),
            ({"features": torch.ones(2, 9, 6)}, ShapeError, "features of shape (B, 8, 6)"),
        ],
    )
    def test_refuses(self, options, kind, text):
        with refuses(kind, text):
            ready().localize(**{**queries(2), **options})


@pytest.fixture(scope="module")
def overfitted() -> tuple[MomentLocalizer, list[float]]:
    """Overfit a model to 8 samples."""
    torch.manual_seed(0)
    wide = {**ENCODER, "channels": 16}
    model = make(
        encoder_config=wide,
        decoder_config={**DECODER, "feature_channels": 16, "channels": 16, "time_channels": 16},
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    inputs, generator = annotated(8), seeded(0)
    losses = []
    for _ in range(150):
        loss = model.loss(**inputs, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


@pytest.mark.train
class TestOverfitting:
    @pytest.mark.parametrize("steps", [1, 5])
    def test_finds_the_moments(self, overfitted, steps):
        model, _ = overfitted
        inputs = annotated(8)
        moments = inputs.pop("moments")
        for seed in range(3):
            found = model.localize(**inputs, num_inference_steps=steps, generator=seeded(seed))
            iou = temporal_iou(found.ranked.moments[:, 0], moments)
            assert float(iou.min()) > 0.5, f"seed {seed}"

    def test_the_query_decides(self, overfitted):
        model, _ = overfitted
        inputs = annotated(8)
        moments = inputs.pop("moments")
        swapped = {name: value.flip(0) for name, value in inputs.items()}
        found = model.localize(**swapped, generator=seeded(0))
        iou = temporal_iou(found.ranked.moments[:, 0], moments.flip(0))
        assert float(iou.min()) > 0.5
        assert float(temporal_iou(found.ranked.moments[:, 0], moments).mean()) < 0.5


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_density_of_timesteps_is_a_power(power):
    model = make(timestep_power=power)
    drawn = model._timesteps_of(torch.rand(60_000, generator=seeded(0)))
    assert drawn.dtype == torch.int64
    assert 0 <= int(drawn.min()) <= int(drawn.max()) == 999
    for bound in (100, 400, 700, 950):
        share = float((drawn < bound).double().mean())
        assert share == pytest.approx((bound / 1000) ** (power + 1), abs=0.01)


class TestSamples:
    """Several samples of one query."""

    def maps(self, model: MomentLocalizer, batch: int = 3) -> list[Tensor]:
        inputs = queries(batch)
        return model.encoder(inputs["features"], inputs["words"], inputs["num_words"])

    def test_first_samples_do_not_depend_on_how_many_follow(self):
        model = ready()
        maps = self.maps(model)
        for several, eta in ((True, 0.0), (False, 1.0)):
            few, many = (
                model.draw_samples(
                    maps,
                    count,
                    generator=[seeded(row) for row in range(3)] if several else seeded(0),
                    eta=eta,
                )
                for count in (2, 5)
            )
            assert many.shape == (3, 5, CELLS)
            assert_same(few, many[:, :2])
            assert float((many[:, 0] - many[:, 1]).abs().max()) > 1e-3

    def test_each_sample_is_one_of_its_query(self):
        model = ready()
        maps = self.maps(model)
        found = model.draw_samples(maps, 4, generator=[seeded(row) for row in range(3)])
        for row in range(3):
            generator = seeded(row)
            for sample in range(4):
                alone = model.sample_maps([one[row : row + 1] for one in maps], generator=generator)
                assert_close(found[row, sample], alone[0])

    @pytest.mark.parametrize("as_default", [False, True])
    def test_localize_ranks_their_mean(self, as_default):
        model = ready(num_samples=3) if as_default else ready()
        inputs = queries(2)
        given = {} if as_default else {"num_samples": 3}
        found = model.localize(**inputs, **given, generator=[seeded(7), seeded(8)])
        maps = self.maps(model, 2)
        samples = model.draw_samples(maps, 3, generator=[seeded(7), seeded(8)])
        dense, mask = model.sampler.merge(model.grid.unpack(samples.mean(1)))
        assert_close(found.dense[:, mask], dense[:, mask])

    def test_videos_of_other_lengths(self):
        model, inputs = ready(), queries(2)
        inputs["features"] = draw(2, 16, 6)
        num_clips = torch.tensor([16, 6])
        words = {name: inputs[name] for name in ("features", "words", "num_words")}
        maps = model.encoder(**words, num_clips=num_clips)
        generators = [seeded(0), seeded(1)]
        samples = model.draw_samples(maps, 3, num_clips=num_clips, generator=generators)
        mask = model.grid.resized(16).packed_mask(num_clips=num_clips)
        assert_zero(samples[1], ~mask[1].expand(3, -1))
        assert float(samples[1][:, mask[1]].max()) > 0

    def test_refuses(self):
        model, inputs = ready(), queries(2)
        with refuses(ArgumentError, "MomentLocalizer: expected num_samples to be an integer >= 1"):
            model.localize(**inputs, num_samples=0)
        with refuses(ArgumentError, "expected generator to be a list of 2, got 1."):
            model.localize(**inputs, num_samples=2, generator=[seeded(0)])
        text = "expected one sample, as the model is deterministic, got num_samples = 3."
        with refuses(ArgumentError, text):
            make(deterministic=True, num_samples=3)
        with refuses(ArgumentError, text):
            ready(deterministic=True).localize(**inputs, num_samples=3)

    def test_callback_sees_every_step_of_every_sample(self):
        seen: list[tuple[int, tuple[int, ...]]] = []
        ready().localize(
            **queries(2),
            num_samples=3,
            num_inference_steps=2,
            callback=lambda step: seen.append((step.index, tuple(step.clean.shape))),
        )
        assert seen == [(index, (2, CELLS)) for _ in range(3) for index in range(2)]


class TestRanking:
    @pytest.mark.parametrize("objective", ["mse-full", "bce-rescaled"])
    def test_by_expected_hits(self, objective):
        model = ready(objective=objective, ranking="expected-hits")
        inputs = queries(3)
        durations = inputs["clip_seconds"] * torch.tensor([8, 3.5, 6.25])
        num_clips = torch.tensor([8, 4, 7])
        found = model.localize(
            **inputs, durations=durations, num_clips=num_clips, generator=seeded(0), top_n=4
        )
        expected = rank_by_expected_hits(
            found.dense,
            found.mask,
            inputs["clip_seconds"],
            target=model.objective.target,
            durations=durations,
            top_n=4,
        )
        ends = found.ranked.moments[..., 1]
        assert bool((ends <= durations[:, None]).all())
        assert bool((ends == durations[:, None]).any())
        assert_same(found.ranked.moments, expected.moments)
        assert_same(found.confidence, expected.scores[:, 0])

    def test_the_call_decides(self):
        plain, other = ready(), ready(ranking="expected-hits")
        inputs = queries(3)
        for model in (plain, other):
            for ranking in ("nms", "expected-hits"):
                found = model.localize(**inputs, ranking=ranking, generator=seeded(0))
                own = (plain if ranking == "nms" else other).localize(**inputs, generator=seeded(0))
                assert_same(found.ranked.moments, own.ranked.moments)

    def test_the_highest_cell_and_then_expected_hits(self):
        model = ready(objective="mse-rescaled")
        read = {"maps": torch.rand(3, CELLS), "clip_seconds": torch.ones(3), "top_n": 4}
        first = model.read_moments(**read, ranking="nms")
        for temperature, thresholds in ((None, None), (3.0, None), (None, (0.5,))):
            options = {"temperature": temperature, "hit_thresholds": thresholds}
            found = model.read_moments(**read, ranking="nms-then-expected-hits", **options)
            expected = rank_by_expected_hits(
                first.dense,
                first.mask,
                target=model.objective.target,
                top_n=4,
                highest_first=True,
                temperature=temperature or 1.0,
                thresholds=thresholds or (0.5, 0.7),
            )
            assert_same(found.ranked.moments, expected.moments)
        assert_same(found.ranked.moments[:, 0], first.ranked.moments[:, 0])

    def test_threshold_of_the_call(self):
        inputs = queries(3)
        found = ready().localize(**inputs, nms_threshold=0.2, generator=seeded(0))
        expected = ready(nms_threshold=0.2).localize(**inputs, generator=seeded(0))
        assert_same(found.ranked.moments, expected.ranked.moments)


class TestDeterministicTwin:
    """The same network as a plain regressor."""

    def twins(self) -> tuple[MomentLocalizer, MomentLocalizer]:
        diffusion, twin = ready(), ready(deterministic=True)
        assert list(diffusion.state_dict()) == list(twin.state_dict())
        assert diffusion.num_parameters() == twin.num_parameters()
        return diffusion, twin

    def test_sees_an_empty_map_at_the_last_timestep(self):
        diffusion, twin = self.twins()
        inputs = queries(3)
        del inputs["clip_seconds"]
        maps = diffusion.encoder(**inputs)
        empty, last = torch.zeros(3, twin.grid.num_cells), torch.full((3,), 999)
        expected = diffusion.predict_scores(empty, last, maps) * twin.grid.packed_mask()
        assert_close(twin.predict_maps(**inputs), expected.detach())
        assert not twin.is_generative
        assert diffusion.is_generative

    def test_draws_nothing(self):
        _, twin = self.twins()
        batch = annotated(4)
        before = torch.get_rng_state()
        losses = [twin.loss(**batch).item() for _ in range(2)]
        moments = twin.localize(**queries(4)).ranked.moments
        assert torch.equal(before, torch.get_rng_state())
        assert losses[0] == losses[1]
        assert_same(moments, twin.localize(**queries(4), generator=seeded(3)).ranked.moments)

    def test_learns_what_it_predicts(self):
        _, twin = self.twins()
        batch = annotated(4)
        given = {name: batch[name] for name in ("features", "words", "num_words")}
        target = twin.build_iou_maps.packed(batch["moments"], batch["clip_seconds"])
        mask = twin.grid.packed_mask()
        error = (twin.predict_maps(**given) - target)[:, mask].square().mean()
        torch.testing.assert_close(twin.loss(**batch).detach(), error)

    def test_takes_one_step(self):
        _, twin = self.twins()
        inputs = queries(2)
        assert_same(
            twin.localize(**inputs, num_inference_steps=1).dense, twin.localize(**inputs).dense
        )
        text = "expected one step, as the model is deterministic, got num_inference_st"
        with refuses(ArgumentError, text):
            twin.localize(**inputs, num_inference_steps=5)
        for name, value in (("eta", 0.5), ("callback", print)):
            with refuses(ArgumentError, f"expected no {name}, as the model is deterministic, got"):
                twin.localize(**inputs, **{name: value})


class TestVideosOfOtherLengths:
    def test_noise_of_a_query_does_not_see_the_rest(self):
        model, inputs = ready(), queries(3)
        inputs["features"] = draw(3, 16, 6)
        num_clips = torch.tensor([16, 9, 4])
        noise = draw(3, model.grid.resized(16).num_cells)
        words = {name: inputs[name] for name in ("features", "words", "num_words")}
        maps = model.encoder(**words, num_clips=num_clips)
        together = model.sample_maps(maps, num_clips=num_clips, noise=noise)
        mask = model.grid.resized(16).packed_mask(num_clips=num_clips)
        assert_zero(together, ~mask)
        for row in range(3):
            one = slice(row, row + 1)
            found = model.sample_maps(
                [part[one] for part in maps], num_clips=num_clips[one], noise=noise[one]
            )
            assert_close(together[one], found)

    def test_moments_end_with_the_video(self):
        model, inputs = ready(), queries(2)
        inputs["features"] = draw(2, 12, 6)
        inputs["clip_seconds"] = torch.ones(2)
        found = model.localize(
            **inputs,
            num_clips=torch.tensor([12, 5]),
            durations=torch.tensor([11.5, 4.25]),
            top_n=20,
        )
        ends = found.ranked.moments[..., 1]
        assert bool((ends <= torch.tensor([[11.5], [4.25]])).all())
        assert float(ends[0].max()) > 8
        assert found.dense.shape == (2, 12, 12)

    def test_loss_counts_cells_inside_the_videos(self):
        model, batch = ready(deterministic=True), annotated(2)
        batch["moments"] = torch.tensor([[0.0, 2.0], [1.0, 3.0]])
        batch["clip_seconds"] = torch.ones(2)
        num_clips = torch.tensor([8, 4])
        given = {name: batch[name] for name in ("features", "words", "num_words")}
        predicted = model.predict_maps(**given, num_clips=num_clips)
        target = model.build_iou_maps.packed(batch["moments"], batch["clip_seconds"])
        mask = model.grid.packed_mask(num_clips=num_clips)
        expected = (predicted - target)[mask].square().mean()
        found = model.loss(**batch, num_clips=num_clips)
        torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_generators_are_one_a_sample(count):
    model, inputs = ready(), queries(3)
    text = f"MomentLocalizer.sample_maps: expected generator to be a list of 3, got {count}."
    with refuses(ShapeError, text):
        model.localize(**inputs, generator=[seeded(i) for i in range(count)])
    several = tuple(seeded(i) for i in range(3))
    assert len(model.localize(**inputs, generator=several).ranked) == 3
    assert len(model.localize(**queries(0), generator=[]).ranked) == 0


def test_losses_with_a_generator_a_query_do_not_depend_on_the_batch():
    model = ready().eval()
    inputs = annotated(4)

    def loss(rows):
        parts = {name: value[rows] for name, value in inputs.items()}
        return model.loss(**parts, generator=[seeded(row) for row in range(4)[rows]])

    together = loss(slice(0, 4))
    apart = torch.stack([loss(slice(0, 1)), loss(slice(1, 4))])
    assert_close((apart * torch.tensor([1, 3])).sum() / 4, together)
    assert not torch.equal(loss(slice(0, 4)), model.loss(**inputs, generator=seeded(0)))
    with refuses(ShapeError, "MomentLocalizer.loss: expected generator to be a list of 4, got 1."):
        model.loss(**inputs, generator=[seeded(0)])
