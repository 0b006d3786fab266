"""Small files that declare more than a machine has, and the reading of them.

    python -m helpers.fuzzing.bombs

prints for each how it was refused, and how much memory the process took meanwhile.
"""

import functools
import io
import json
import os
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from helpers.fuzzing.worker import peak_memory
from helpers.videos import evenly, write_video

import tmapdiff
from tmapdiff.corpus import _read_table
from tmapdiff.data import load_glove

ZEROS = bytes(2**24)
LIMIT = 2**27  # bytes, that an item may take
MANY = 9  # times ZEROS: more than that
BOMBS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {}


def _bomb(read: Callable[[Path], object]):
    def register(make: Callable[[Path], object]) -> Callable[[Path], object]:
        BOMBS[make.__name__] = (make, read)
        return make

    return register


def _read_all(folder: Path) -> None:
    place = folder / "A.hdf5"
    store = tmapdiff.open_feature_store(place if place.exists() else folder)
    store["A"]


@_bomb(_read_all)
def npy_header_of_1e12_elements(folder: Path) -> None:
    with (folder / "A.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 1000)}
        np.lib.format.write_array_header_2_0(file, header)


@_bomb(_read_all)
def npy_file_with_a_hole(folder: Path) -> None:
    npy_header_of_1e12_elements(folder)
    with (folder / "A.npy").open("r+b") as file:
        file.truncate(4 * 10**12)  # takes no space on the disk


@_bomb(_read_all)
def npz_of_zeros(folder: Path) -> None:
    array = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(ZEROS) // 4 * MANY, 1)}
    np.lib.format.write_array_header_2_0(array, header)
    _write_npz(folder, array.getvalue())


@_bomb(_read_all)
def npz_with_a_large_header(folder: Path) -> None:
    """numpy reads a header of the size that it declares before it looks at it."""
    size = (len(ZEROS) * MANY).to_bytes(4, "little")
    _write_npz(folder, np.lib.format.MAGIC_PREFIX + b"\x02\x00" + size)


def _write_npz(folder: Path, begin: bytes) -> None:
    with (
        zipfile.ZipFile(folder / "A.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("features.npy", "w") as member,
    ):
        member.write(begin)
        for _ in range(MANY):
            member.write(ZEROS)


@_bomb(_read_all)
def pt_of_one_number(folder: Path) -> None:
    torch.save(torch.zeros(1).expand(10**6, 10**6), folder / "A.pt")


@_bomb(_read_all)
def hdf5_dataset_of_1e12(folder: Path) -> None:
    with h5py.File(folder / "A.hdf5", "w") as file:
        file.create_dataset("A", (10**6, 10**6), "f4", chunks=(64, 64))


@_bomb(_read_all)
def hdf5_chunk_of_4e9(folder: Path) -> None:
    with h5py.File(folder / "A.hdf5", "w") as file:
        # Never written: it would take what it declares here.
        file.create_dataset("A", (4, 4), "f4", chunks=(31_000, 31_000), maxshape=(None, None))


@_bomb(_read_all)
def hdf5_chunk_that_unpacks_to_more(folder: Path) -> None:
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(ZEROS) for _ in range(MANY)) + packer.flush()
    with h5py.File(folder / "A.hdf5", "w") as file:
        # Not smaller: HDF5 1.14.2 would not write so much for one.
        dataset = file.create_dataset("A", (64, 64), "f4", chunks=(64, 64), compression="gzip")
        dataset.id.write_direct_chunk((0, 0), packed)


# Files of a gigabyte that begin as they should; a hole takes no space on the disk.
_HOLES: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    "jsonl_line": ("lines.jsonl", b'{"qid": 1, "query": "', tmapdiff.load_moment_jsonl),
    "json": ("train.json", b'{"v": ', tmapdiff.load_activitynet_captions),
    "csv": (
        "Charades_v1_train.csv",
        b"id,actions,length\n",
        lambda path: tmapdiff.load_charades_sta(path.parent, "train"),
    ),
    "glove_line": ("glove.txt", b"the 0.1 0.2", load_glove),
    "vocabulary": ("vocabulary.json", b"{", tmapdiff.Vocabulary.load),
    "text_encoder_tokenizer": (
        "tokenizer.json",
        b'{"version": "1.0"',
        lambda path: tmapdiff.models.TransformersTextEncoder(path.parent),
    ),
}


def _make_hole(folder: Path, file: str, begin: bytes) -> None:
    with (folder / file).open("wb") as hole:
        hole.write(begin)
        hole.truncate(10**9)


for _name, (_file, _begin, _read) in _HOLES.items():
    BOMBS[f"{_name}_of_a_gigabyte"] = (
        functools.partial(_make_hole, file=_file, begin=_begin),
        lambda folder, read=_read, file=_file: read(folder / file),  # type: ignore[misc]
    )


def _change_config(folder: Path, name: str, value: int) -> None:
    preset = tmapdiff.PRESETS["nano"]
    preset.build(vocabulary_size=9, clip_channels=6).save_pretrained(folder / "model")
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text())
    if name == "num_train_timesteps":
        config["scheduler_config"] = {name: value}
    for part in ("encoder_config", "decoder_config"):
        if name in config[part]:
            config[part][name] = value
    path.write_text(json.dumps(config))


for _name, _value in {
    "num_clips": 10**9,
    "num_scales": 10**12,
    "channels": 10**7,
    "num_text_layers": 10**9,
    "num_train_timesteps": 10**10,
}.items():
    BOMBS[f"config_of_{_value:.0e}_{_name}"] = (
        functools.partial(_change_config, name=_name, value=_value),
        lambda folder: tmapdiff.MomentLocalizer.from_pretrained(folder / "model"),
    )


@_bomb(lambda folder: tmapdiff.ms2dtan_config(folder / "experiment.yml"))
def yaml_of_a_billion_laughs(folder: Path) -> None:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i + 1}: &a{i + 1} {{x: *a{i}, y: *a{i}, z: *a{i}}}" for i in range(30)]
    (folder / "experiment.yml").write_text("\n".join(lines))


@_bomb(lambda folder: tmapdiff.probe_video(folder / "video"))
def video_of_30000_x_30000(folder: Path) -> None:
    _write_video(folder, "gif", "gif", "rgb8", rb"(GIF89a)....", (30_000).to_bytes(2, "little"))


@_bomb(lambda folder: tmapdiff.probe_video(folder / "video"))
def video_whose_pictures_are_larger_than_it_says(folder: Path) -> None:
    size = (12_000).to_bytes(2, "little")
    _write_video(folder, "webm", "libvpx", "yuv420p", rb"(\x9d\x01\x2a)....", size)


@_bomb(lambda folder: _read_table(folder / "queries.parquet", ["query"]))
def parquet_of_5e6_rows(folder: Path) -> None:
    _write_table(folder, pa.repeat(pa.scalar("a door"), 5 * 10**6))


@_bomb(lambda folder: _read_table(folder / "queries.parquet", ["query"]))
def parquet_with_a_text_of_many_zeros(folder: Path) -> None:
    _write_table(folder, pa.array(["0" * len(ZEROS) * MANY]))


for _name, _fields in {
    "words": {"vocab_size": 10**9},
    "layers": {"num_hidden_layers": 10**9, "hidden_size": 8, "num_attention_heads": 1},
}.items():
    BOMBS[f"text_encoder_of_1e9_{_name}"] = (
        lambda folder, fields=_fields: (folder / "config.json").write_text(  # type: ignore[misc]
            json.dumps({"model_type": "bert", "vocab_size": 4, **fields})
        ),
        tmapdiff.models.TransformersTextEncoder,
    )


def _write_table(folder: Path, queries: pa.Array) -> None:
    pq.write_table(pa.table({"query": queries}), folder / "queries.parquet", compression="zstd")


def _write_video(
    folder: Path, format: str, codec: str, pix_fmt: str, place: bytes, size: bytes
) -> None:
    images = [np.zeros((48, 64, 3), np.uint8)] * 3
    content, beat = io.BytesIO(), Fraction(1, 25)
    options = {"format": format, "codec": codec, "pix_fmt": pix_fmt, "time_base": beat}
    write_video(content, evenly(3, period=beat), images=images, **options)
    larger = re.compile(place, re.DOTALL)
    changed, count = larger.subn(lambda found: found[1] + 2 * size, content.getvalue())
    assert count
    (folder / "video").write_bytes(changed)


def main() -> None:
    """Read each bomb; print a line of JSON for each."""
    import tmapdiff.video.decoding

    os.environ["TMAPDIFF_MAX_ITEM_BYTES"] = str(LIMIT)
    with tempfile.TemporaryDirectory() as scratch:
        for name, (make, _) in BOMBS.items():
            folder = Path(scratch) / name
            folder.mkdir()
            make(folder)
        for name, (_, read) in BOMBS.items():
            before = peak_memory()
            try:
                read(Path(scratch) / name)
                kind, text = "none", ""
            except Exception as error:
                ours = isinstance(error, tmapdiff.TmapdiffError)
                kind, text = type(error).__name__ if ours else f"foreign {error!r}", str(error)
            taken = peak_memory() - before
            sys.stdout.write(json.dumps([name, kind, text, taken]) + "\n")


if __name__ == "__main__":
    main()
