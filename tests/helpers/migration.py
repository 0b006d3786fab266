"""Small files as users of MS-2D-TAN, lighthouse and VSLNet have them."""

import copy
from pathlib import Path

import torch
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
