"""Train a moment localizer on Charades-STA, evaluate it and save a pipeline: a script to copy.

    python examples/train_charades.py
    python examples/train_charades.py --root path/to/charades --preset nano_tuned

Without --root, it uses a small synthetic data set of scripted activities, without a download. With
--root, it reads charades_sta_{train,test}.txt and Charades_v1_{train,test}.csv from that folder.
`tmapdiff train` does the same with more options.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tmapdiff import spin_briefly

spin_briefly()  # before torch is imported

import torch

from tmapdiff import PRESETS, MomentLocalizationPipeline, Trainer, Vocabulary
from tmapdiff.data import write_submission
from tmapdiff.evaluation import draw_queries, evaluate, evaluate_prior, fit_moment_prior
from tmapdiff.recipes import SYNTHETIC_EPOCHS, LocalizationData, is_main_process


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of Charades-STA (default: synthetic data)")
    parser.add_argument("--features", default="timeline", help="an HDF5 file, or a folder")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="size of the model")
    parser.add_argument("--epochs", type=int, help="passes over the data (default: the preset's)")
    parser.add_argument("--limit", type=int, help="queries to train and test on (default: all)")
    parser.add_argument("--output", type=Path, default=Path("runs/charades"), help="a new folder")
    args = parser.parse_args(arguments)

    # 1. data: queries with their moments, and features of the videos
    if args.root is None:
        data = LocalizationData.make_up()
    else:
        data = LocalizationData.load(args.root, features=[args.features])
    data = data.with_features_only().limit(args.limit)
    vocabulary = Vocabulary.from_sentences(item.query for item in data.train)

    # 2. model: a preset is a named size with training settings
    preset = PRESETS[args.preset]
    torch.manual_seed(0)
    model = preset.build(vocabulary_size=len(vocabulary), clip_channels=data.store.feature_dim)
    train_set = data.make_train_set(model.grid, vocabulary)
    test_set = data.make_test_set(model.grid, vocabulary)

    # 3. training
    epochs = args.epochs or (preset.training.epochs if args.root else SYNTHETIC_EPOCHS)
    trainer = Trainer(model, train_set, replace(preset.training, epochs=epochs), args.output)
    trainer.train()
    model = trainer.ema_model.eval()

    # 4. evaluation, compared with the best constant answer
    evaluation = evaluate(model, test_set, accelerator=trainer.accelerator)
    prior = evaluate_prior(model.grid, fit_moment_prior(model.grid, train_set), test_set)
    if not is_main_process():  # with `accelerate launch`
        return
    print(data)
    for name, value in evaluation.metrics.items():
        print(f"{name:<9} {value:6.2f}, of the best constant answer {prior[name]:6.2f}")

    # 5. results
    rate, durations = data.store.seconds_per_feature, [item.duration for item in data.train]
    fps = None if rate is None else 1 / rate
    pipeline = MomentLocalizationPipeline(model, vocabulary, fps=fps, durations=durations)
    pipeline.save_pretrained(args.output / "pipeline")
    write_submission(evaluation.predictions, args.output / "predictions.jsonl")
    draw_queries(model, test_set, range(min(4, len(test_set)))).savefig(args.output / "maps.png")
    print(f"written to {args.output}: pipeline, predictions.jsonl, maps.png")


if __name__ == "__main__":
    main()
