"""Images decoded and resized by worker processes, once, and kept on disk as 8-bit pixels."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from vera.errors import DataError
from vera.io.cache import make_folder
from vera.models.image import Pixels
from vera.records import screen
from vera.tasks.image_rows import Rows

log = logging.getLogger(__name__)

FORMAT = 4  # raised when the bytes below change their meaning, or may have been wrong
BATCH = 32
FEW = 256  # images that are not worth starting processes for
NAMED = 5
ABOUT, PIXELS, PRINTS = "about.json", "pixels.u8", "prints.u64"


@dataclass(frozen=True)
class Prepared:
    """pixels: uint8 [N, channels, H, W], mapped from disk. prints: uint64 [N], a hash of each image's pixels.
    fingerprint: SHA-256, 16 digits, of the encoded images in order.
    broken_exif: images whose EXIF block cannot be read, so that a rotation it may ask for is not done."""

    pixels: np.ndarray
    prints: np.ndarray
    fingerprint: str
    broken_exif: int


def prepare(rows: Rows, chosen: np.ndarray | None, pixels: Pixels, cache_dir: Path, workers: int | None) -> Prepared:
    """The chosen rows (None: all) at the size of the model, from the cache when they are there.

    Processes that want the same images wait for the first one. Raises DataError that counts and names the images that cannot
    be read, or says how much disk space is missing.
    """
    wanted = np.arange(len(rows)) if chosen is None else chosen
    key = json.dumps([FORMAT, rows.identity, pixels.key, None if chosen is None else chosen.tolist()])
    folder = Path(cache_dir) / "images" / hashlib.sha256(key.encode()).hexdigest()[:16]
    make_folder(folder, ABOUT, lambda scratch: _decode(rows, wanted, pixels, scratch, workers))
    about = json.loads((folder / ABOUT).read_text())
    pixels_on_disk = np.memmap(folder / PIXELS, np.uint8, "r", shape=tuple(about["shape"]))
    return Prepared(pixels_on_disk, np.fromfile(folder / PRINTS, np.uint64), about["fingerprint"], about["broken_exif"])


def _decode(rows: Rows, wanted: np.ndarray, pixels: Pixels, folder: Path, workers: int | None) -> None:
    workers = _workers(len(wanted), workers)
    log.info("decoding %s images of %s (once; %d processes)", f"{len(wanted):,}", rows.where, max(1, workers))
    # A generator of its own: otherwise the loader would draw from the one that the run has seeded.
    loader = DataLoader(
        _Decoder(rows, wanted, pixels),
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    digest, bad, shape, broken_exif = hashlib.sha256(), [], None, 0
    with (folder / PIXELS).open("wb") as file, (folder / PRINTS).open("wb") as prints:
        for index, batch in enumerate(loader):
            screen.doing("decoding images", index * BATCH, len(wanted))
            for position, image in enumerate(batch, start=index * BATCH):
                if isinstance(image, str):
                    bad.append(image)
                    continue
                array, of_bytes, of_pixels, exif = image
                broken_exif += not exif
                if shape is None:
                    shape = array.shape
                    _check_space(folder, len(wanted) * array.size, rows.where)
                if array.shape != shape or array.dtype != np.uint8:
                    raise DataError(
                        f"{rows.name(int(wanted[position]))} becomes {_size(array.shape)} {array.dtype}, where {_size(shape)} "
                        "uint8 is expected, as of the first image: the model's image processor has to give every image one "
                        "size in 8 bits (do_resize with height and width, or do_center_crop, in its preprocessor_config.json)"
                    )
                digest.update(of_bytes)
                file.write(array.tobytes())
                prints.write(of_pixels)
    if bad:
        named = "; ".join(bad[:NAMED]) + (f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else "")
        raise DataError(f"{len(bad)} of {len(wanted)} images of {rows.where} cannot be read: {named}")
    if broken_exif:
        log.warning("%s: the EXIF blocks of %d images cannot be read; these are taken as they lie", rows.where, broken_exif)
    about = {"shape": [len(wanted), *shape], "fingerprint": digest.hexdigest()[:16], "broken_exif": broken_exif}
    (folder / ABOUT).write_text(json.dumps(about) + "\n")


class _Decoder(Dataset):
    """Row by row: (8-bit pixels [channels, H, W], SHA-256 of the encoded bytes, 8 bytes of BLAKE2b of the pixels, whether its
    EXIF block could be read), or what is wrong with it as a string."""

    def __init__(self, rows: Rows, wanted: np.ndarray, pixels: Pixels):
        self.rows, self.wanted, self.pixels = rows, wanted, pixels

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> tuple[np.ndarray, bytes, bytes, bool] | str:
        row = int(self.wanted[index])
        try:
            encoded = self.rows.encoded(row)
            image, exif = opened(encoded)
            pixels = self.pixels.resize(image)
            of_pixels = hashlib.blake2b(pixels.tobytes(), digest_size=8).digest()
            return pixels, hashlib.sha256(encoded).digest(), of_pixels, exif
        except Exception as error:  # a decoder may raise anything on a broken file
            reason = str(error).split(" <_io")[0] or type(error).__name__
            return f"{self.rows.name(row)}: {reason}"


def opened(encoded: bytes) -> tuple[Image.Image, bool]:
    """An image, turned as its EXIF block asks, and whether that block could be read. Raises what PIL raises."""
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        image = Image.open(io.BytesIO(encoded))
        image.load()
        try:
            if image.getexif().get(ExifTags.Base.Orientation) is not None:
                image = ImageOps.exif_transpose(image)
        except Exception:  # of a block that is cut off or no EXIF at all: the pixels are whole
            return image, False
    return image, not any("EXIF" in str(complaint.message) for complaint in complaints)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _workers(images: int, asked: int | None) -> int:
    if images < FEW:
        return 0
    return min(8, os.cpu_count() or 1) if asked is None else asked


def _check_space(folder: Path, needed: int, where: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{where} needs {needed / 1e9:.1f} GB below task.cache_dir, where {free / 1e9:.1f} GB are free")
