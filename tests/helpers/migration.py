"""Small files as users of MS-2D-TAN, lighthouse and VSLNet have them."""

import copy
import csv
import json
from pathlib import Path

import h5py
import numpy as np
import torch
from helpers.datasets import query_line, write_lines, write_store
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parents[1] / "models" / "data"

# The fields of MS-2D-TAN's experiment files, with the sizes of the recordings in DATA.
EXPERIMENT = {
    "WORKERS": 16,
    "MODEL_DIR": "./checkpoints",
    "RESULT_DIR": "./results",
    "LOG_DIR": "./log",
    "DATASET": {
        "NAME": "charades",
        "DATA_DIR": "data/Charades-STA",
        "VIS_INPUT_TYPE": "i3d",
        "TXT_INPUT_TYPE": "glove",
        "NO_VAL": True,
        "NO_TEST": False,
        "INPUT_NUM_CLIPS": 16,
        "OUTPUT_NUM_CLIPS": [16, 8, 4],
        "NUM_ANCHORS": [4, 4, 4],
        "TIME_UNIT": 0.64,
        "SLIDING_WINDOW": True,
    },
    "CUDNN": {"DETERMINISTIC": False, "BENCHMARK": True},
    "OPTIM": {"NAME": "Adam", "PARAMS": {"LR": 0.0001}},
    "TRAIN": {"BATCH_SIZE": 32, "MAX_EPOCH": 100, "CONTINUE": False},
    "LOSS": {
        "NAME": "bce_rescale_loss",
        "PARAMS": {"MIN_IOU": 0.5, "MAX_IOU": 1.0, "BIAS": 0.0, "TEMPERATURE": 1.0},
    },
    "TEST": {"BATCH_SIZE": 16, "RECALL": [1, 5], "TIOU": [0.5, 0.7], "NMS_THRESH": 0.45},
    "MODEL": {
        "NAME": "MultiScale_TAN",
        "PARAMS": {"NUM_SCALES": 3},
        "CHECKPOINT": "release/epoch0039.pkl",
        "CLIP_MODULE": {
            "NAME": "ClipAvgPool",
            "PARAMS": {"INPUT_SIZE": 5, "HIDDEN_SIZE": 8, "KERNEL_SIZE": 1, "STRIDE": 1},
        },
        "PROP_MODULE": {
            "NAME": "MultiScalePropConvTanhBN",
            "PARAMS": {"HIDDEN_SIZE": 8, "NUM_LAYERS": [4, 2, 2]},
        },
        "FUSION_MODULE": {
            "NAME": "MulNormFusion",
            "PARAMS": {
                "HIDDEN_SIZE": 8,
                "VIS_INPUT_SIZE": 8,
                "TXT_INPUT_SIZE": 6,
                "TXT_HIDDEN_SIZE": 8,
                "TXT_ENCODER": {"NAME": "LSTM", "NUM_LAYERS": 2, "BIDIRECTIONAL": True},
            },
        },
        "MAP_MODULE": {
            "NAME": "MapGatedConv",
            "PARAMS": {
                "INPUT_SIZE": 8,
                "HIDDEN_SIZES": [8, 8],
                "KERNEL_SIZES": [5, 3],
                "STRIDES": [1, 1],
                "PADDINGS": [2, 1],
                "DILATIONS": [1, 1],
            },
        },
        "PRED_MODULE": {"NAME": "ProposalHead", "PARAMS": {"INPUT_SIZE": 8}},
    },
}


def changed(changes: dict[str, object]) -> dict:
    """EXPERIMENT with other fields, by dotted name; without those that are None."""
    content = copy.deepcopy(EXPERIMENT)
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return content


def recording(name: str) -> dict[str, Tensor]:
    """Weights, inputs and outputs of the public MS-2D-TAN; see tests/models/data/README.md."""
    return load_file(DATA / f"{name}.safetensors")


def write_checkpoint(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the weights of a recording as torch 1.4 did."""
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    torch.save(weights, path, _use_new_zipfile_serialization=False)


# What docs/migration.md reads

QUERIES = ("person opens a door.", "a person sits down.", "person turns a light on.", "they eat.")
DURATIONS = {"AAAAA": 30.0, "BBBBB": 24.5}
MOMENTS = ((2.0, 9.5), (12.0, 20.5))


def make_files_of_others(folder: Path) -> None:
    """Make MS-2D-TAN/, lighthouse/, VSLNet/ and glove.6B.300d.txt, each as its users have it."""
    random = np.random.default_rng(0)
    tensors = recording("ms2dtan-conv")
    width, word_width = tensors["features"].shape[2], tensors["words"].shape[2]
    words = sorted({word for query in QUERIES for word in query.rstrip(".").split()})
    vectors = random.standard_normal((len(words), word_width)).round(3)
    (folder / "glove.6B.300d.txt").write_text(
        "".join(f"{w} {' '.join(map(str, v))}\n" for w, v in zip(words, vectors, strict=True))
    )
    rows = [
        (video, start, end, query)
        for video, (start, end) in zip(DURATIONS, MOMENTS, strict=True)
        for query in QUERIES
    ]
    text = "".join(f"{video} {start} {end}##{query}\n" for video, start, end, query in rows)

    root = folder / "MS-2D-TAN"
    data = root / "data" / "Charades-STA"
    for place in (data, root / "experiments" / "charades", root / "release_checkpoints"):
        place.mkdir(parents=True)
    experiment = changed(
        {
            "TRAIN.MAX_EPOCH": 1,
            "TRAIN.BATCH_SIZE": 4,
            "MODEL.CHECKPOINT": "release_checkpoints/epoch0039-0.5664-0.8825.pkl",
            "MODEL.CLIP_MODULE.PARAMS.INPUT_SIZE": width,
            "MODEL.FUSION_MODULE.PARAMS.TXT_INPUT_SIZE": word_width,
            "DATASET.VIS_INPUT_TYPE": "charades_i3d_rgb_25fps",
        }
    )
    # JSON is yaml.
    name = "MS-2D-TAN-G-I3D.yaml"
    (root / "experiments" / "charades" / name).write_text(json.dumps(experiment, indent=2))
    write_checkpoint(root / experiment["MODEL"]["CHECKPOINT"], tensors)
    with h5py.File(data / "charades_i3d_rgb_25fps.hdf5", "w") as file:
        for video, duration in DURATIONS.items():
            file[video] = random.standard_normal((round(duration / 0.64), width))
    for split in ("train", "test"):
        (data / f"charades_sta_{split}.txt").write_text(text)
        with (data / f"Charades_v1_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "actions", "length"])
            writer.writerows([video, "", duration] for video, duration in DURATIONS.items())

    root = folder / "lighthouse"
    place = root / "data" / "charades"
    place.mkdir(parents=True)
    lines = [
        query_line(qid, video, [[start, end]], query, DURATIONS[video])
        for qid, (video, start, end, query) in enumerate(rows, start=12404)
    ]
    write_lines(place / "charades_test_release.jsonl", lines)
    (root / "features" / "charades").mkdir(parents=True)
    for name, channels in (("clip", 4), ("slowfast", 6)):
        # One is a feature longer, as it happens.
        counts = {video: int(one) + (name == "clip") for video, one in DURATIONS.items()}
        arrays = {v: random.standard_normal((n, channels)) for v, n in counts.items()}
        halves = {video: array.astype(np.float16) for video, array in arrays.items()}
        write_store(root / "features" / "charades" / name, "npz", halves)

    root = folder / "VSLNet" / "data"
    place = root / "dataset" / "charades"
    place.mkdir(parents=True)
    lengths = {video: {"duration": duration} for video, duration in DURATIONS.items()}
    (place / "charades.json").write_text(json.dumps(lengths))
    for split in ("train", "test"):
        (place / f"charades_sta_{split}.txt").write_text(text)
    (root / "features" / "charades").mkdir(parents=True)
    counts = {video: int(2 * duration) for video, duration in DURATIONS.items()}
    arrays = {v: random.standard_normal((n, 8)).astype(np.float32) for v, n in counts.items()}
    place = write_store(root / "features" / "charades" / "new", "npy", arrays)
    (place / "feature_shapes.json").write_text(json.dumps(counts))
