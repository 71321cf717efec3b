"""Few-shot images: real digits written as PNG files, and every kind of input that a folder may hold."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoModelForImageClassification, ViTImageProcessor

from vera.checks.verify import compare, repeat
from vera.config import build
from vera.errors import ConfigError, DataError, RecordError, TrainingError
from vera.io import hub
from vera.models.image import Pixels
from vera.records.record import Record
from vera.records.store import Store
from vera.run import check_sources, execute, prepare
from vera.tasks import image_cache, image_rows, images
from vera.tasks.image_rows import from_folder, synthetic
from vera.train.loop import Loop
from vera.trained.export import export

CLASSES = 3
SHAPES = {"task.classes": CLASSES, "task.train_per_class": 4}


DIGITS = load_digits()


def digit(row: int) -> Image.Image:
    return Image.fromarray((DIGITS.images[row] * 15.9).astype(np.uint8)).resize((20, 30))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def rows_of(label: int, start: int, count: int) -> list[int]:
    return np.flatnonzero(DIGITS.target == label)[start : start + count].tolist()


def write_folder(folder, start, count):
    for label in range(CLASSES):
        (folder / f"digit_{label}").mkdir(parents=True)
        for index, row in enumerate(rows_of(label, start, count)):
            digit(row).save(folder / f"digit_{label}" / f"{index:03d}.png")
    return folder


@pytest.fixture
def folders(tmp_path):
    """data/train and data/test with six and five real digits for each of three classes."""
    write_folder(tmp_path / "data" / "train", 0, 6)
    write_folder(tmp_path / "data" / "test", 50, 5)
    return tmp_path / "data"


def table(start, count, image="img", label="fine_label", **more):
    rows = [(label, row) for label in range(CLASSES) for row in rows_of(label, start, count)]
    names = datasets.ClassLabel(names=["zero", "one", "two"])
    return datasets.Dataset.from_dict(
        {
            image: [{"bytes": encoded(digit(row)), "path": None} for _, row in rows],
            label: [label for label, _ in rows],
            **more,
        },
        features=datasets.Features({image: datasets.Image(decode=False), label: names}),
    )


@pytest.fixture
def load(compose, tmp_path):
    """load("cifar100", "task.data_dir=...", seed=1) -> backbone and data, on the tiny ViT."""

    def make(name, *overrides, seed=0, **keys):
        settings = [f"{key}={value}" for key, value in {**SHAPES, "task.synthetic": "false", **keys}.items()]
        folder = f"cache_dir={tmp_path / 'images'}"
        run = compose("model=vit_base", f"task={name}", "method=head", folder, *settings, *overrides)
        task, loader = build(run.task, "task"), build(run.model, "model")
        backbone = loader.load(task.outputs, run.cache_dir)
        return backbone, task.load(backbone, seed)

    return make


@pytest.fixture
def decoded(monkeypatch):
    """How many images each call decoded, cache misses alone."""
    counts = []
    real = image_cache._decode

    def spy(rows, wanted, *others):
        counts.append((rows.where, len(wanted)))
        return real(rows, wanted, *others)

    monkeypatch.setattr(image_cache, "_decode", spy)
    return counts


def test_class_folders_give_the_pixels_of_the_models_own_processor(folders, load):
    backbone, data = load("cifar100", f"task.data_dir={folders}")
    assert (len(data.train), len(data.evaluation)) == (CLASSES * 4, CLASSES * 5)
    batch = data.on_device(data.collate([data.evaluation[row] for row in range(len(data.evaluation))]))
    assert batch["labels"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    paths = [folders / "test" / f"digit_{label}" / f"{index:03d}.png" for label in range(CLASSES) for index in range(5)]
    expected = backbone.preprocess([Image.open(path) for path in paths])
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=1e-6)
    assert data.source == "local folder" and str(folders) not in json.dumps(data.notes)


def test_the_choice_follows_the_seed_and_is_recorded_as_rows(folders, load):
    _, first = load("cifar100", f"task.data_dir={folders}", seed=0)
    _, again = load("cifar100", f"task.data_dir={folders}", seed=0)
    _, other = load("cifar100", f"task.data_dir={folders}", seed=1)
    rows = first.notes["few_shot_rows"]
    assert rows == again.notes["few_shot_rows"] != other.notes["few_shot_rows"] and len(set(rows)) == CLASSES * 4
    assert [row // 6 for row in rows] == [0] * 4 + [1] * 4 + [2] * 4  # the files of a class follow each other
    assert first.fingerprint == other.fingerprint
    pixels, label = first.train[5]
    row = rows[5]
    path = folders / "train" / f"digit_{row // 6}" / f"{row % 6:03d}.png"
    assert label == row // 6
    backbone, _ = load("cifar100", f"task.data_dir={folders}")
    assert np.array_equal(pixels.numpy(), backbone.preprocess.resize(Image.open(path)))


def test_a_second_seed_decodes_no_evaluation_image(folders, load, decoded):
    load("cifar100", f"task.data_dir={folders}", seed=0)
    assert decoded == [("train", CLASSES * 4), ("test", CLASSES * 5)]
    load("cifar100", f"task.data_dir={folders}", seed=1)
    assert decoded[2:] == [("train", CLASSES * 4)]
    load("cifar100", f"task.data_dir={folders}", seed=0)
    load("cifar100", f"task.data_dir={folders}", "model=vit_large", seed=1)
    assert len(decoded) == 3


def test_what_remains_is_evaluated_where_there_is_no_test_set(folders, load, decoded):
    for seed in (0, 1):
        _, data = load("resisc45", f"task.data_dir={folders / 'train'}", seed=seed)
        few = set(data.notes["few_shot_rows"])
        assert len(data.train) == len(few) == CLASSES * 4
        assert sorted([*few, *data.evaluation.rows.tolist()]) == list(range(CLASSES * 6))
    assert decoded == [("train", CLASSES * 6)]


def test_images_that_are_trained_on_and_scored_are_counted_and_warned_of(folders, load, compose, warned):
    """By their pixels: another file format of the same image counts."""
    copied = [folders / "train" / "digit_0" / f"{index:03d}.png" for index in range(6)]
    for index, path in enumerate(copied):
        Image.open(path).save(folders / "test" / "digit_1" / f"again {index}.bmp")
    _, data = load("cifar100", f"task.data_dir={folders}")
    drawn = sum(row < 6 for row in data.notes["few_shot_rows"])
    assert drawn == 4 and data.notes["also_in_train"] == {"evaluation": 4} and "truncated" not in data.notes
    assert warned() == ["task=cifar100: 4 of 21 evaluation rows have the pixels of a training row"]
    shapes = [f"{key}={value}" for key, value in {**SHAPES, "task.synthetic": "false", "task.validation": 0.25}.items()]
    *_, data = prepare(compose("model=vit_base", "task=cifar100", "method=head", *shapes, f"task.data_dir={folders}"))
    held = sum(row < 4 for row in data.notes["validation"]["rows"])  # of the four, as copies of which the test rows are counted
    assert data.notes["also_in_train"] == {"test": 4 - held} and held > 0


def test_one_image_twice_in_the_pool_is_counted_where_one_of_them_is_drawn(folders, load):
    for label in range(CLASSES):
        shutil.copy(folders / "train" / f"digit_{label}" / "000.png", folders / "train" / f"digit_{label}" / "000b.png")
    _, data = load("resisc45", f"task.data_dir={folders / 'train'}")
    once = [len({0, 1} & {row - 7 * label for row in data.notes["few_shot_rows"]}) for label in range(CLASSES)]
    assert data.notes.get("also_in_train", {"evaluation": 0})["evaluation"] == once.count(1)
    assert 1 in once


def test_changed_images_are_decoded_again(folders, load, decoded):
    _, before = load("cifar100", f"task.data_dir={folders}")
    digit(3).save(folders / "test" / "digit_1" / "002.png")
    images._read.cache_clear()  # another process
    _, after = load("cifar100", f"task.data_dir={folders}")
    assert decoded[2:] == [("test", CLASSES * 5)] and before.fingerprint != after.fingerprint


def test_an_edit_that_keeps_size_and_time_is_decoded_again(folders, load, tmp_path):
    """As where an archive gives every file one time."""

    def replace_by(path, content):
        before = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        images._read.cache_clear()  # another process

    one = folders / "test" / "digit_1" / "002.png"
    contents = [encoded(digit(row)) for row in (3, 4)]
    contents = [content.ljust(max(map(len, contents)), b"\0") for content in contents]
    tables = [tmp_path / "p" / f"{split}-00000-of-00001.parquet" for split in ("train", "test")]
    tables[0].parent.mkdir()
    for path in tables:
        table(0, 6).to_parquet(path)
    other = tmp_path / "other.parquet"
    table(50, 6).to_parquet(other)
    for folder, path, pair in (
        (folders, one, contents),
        (tables[0].parent, tables[1], [tables[1].read_bytes(), other.read_bytes()]),
    ):
        found = []
        for content in pair:
            replace_by(path, content)
            found.append(load("cifar100", f"task.data_dir={folder}")[1])
        assert found[0].fingerprint != found[1].fingerprint
        assert not np.array_equal(found[0].evaluation.pixels, found[1].evaluation.pixels)


@pytest.mark.parametrize("layout", ["flat", "folders"])
def test_parquet_files(layout, load, tmp_path):
    for split, (start, count) in {"train": (0, 6), "test": (50, 5)}.items():
        path = tmp_path / "p" / ("data/" + split + "-00000-of-00001.parquet" if layout == "flat" else split + "/0000.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        table(start, count).to_parquet(path)
    _, data = load("cifar100", f"task.data_dir={tmp_path / 'p'}")
    assert (len(data.train), len(data.evaluation)) == (CLASSES * 4, CLASSES * 5)
    assert data.evaluation[6][1] == 1 and data.notes["classes"] == ["zero", "one", "two"]


def test_classes_without_names_are_not_noted(load, tmp_path):
    for split, start in (("train", 0), ("test", 50)):
        table(start, 6).cast_column("fine_label", datasets.Value("int64")).to_parquet(tmp_path / f"{split}.parquet")
    assert "classes" not in load("cifar100", f"task.data_dir={tmp_path}")[1].notes


def test_plain_parquet_without_the_hubs_metadata(load, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, (start, count) in {"train": (0, 6), "test": (50, 5)}.items():
        made = table(start, count)
        plain = {"img": [value["bytes"] for value in made["img"]], "fine_label": made["fine_label"][:]}
        pq.write_table(pa.table(plain), tmp_path / f"{split}.parquet")
    _, data = load("cifar100", f"task.data_dir={tmp_path}")
    assert len(data.evaluation) == CLASSES * 5 and "classes" not in data.notes


def test_the_hub(load, monkeypatch):
    asked = {}

    def load_dataset(repository, subset, revision):
        asked.update(repository=repository, subset=subset, revision=revision)
        return datasets.DatasetDict(train=table(0, 6), test=table(50, 5))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "commit", lambda *_: ("0" * 40, True))
    _, data = load("cifar100")
    assert asked == {"repository": "uoft-cs/cifar100", "subset": None, "revision": "0" * 40}
    assert (data.source, data.commit, len(data.evaluation)) == ("uoft-cs/cifar100", "0" * 40, CLASSES * 5)
    with pytest.raises(DataError, match=r"has no split 'validation'; it has train, test"):
        load("food101", "task.image_column=img", "task.label_column=fine_label")


def test_worker_processes_give_the_same_bytes_and_draw_from_no_seeded_generator(load, monkeypatch, tmp_path):
    backbone, _ = load("cifar100", **{"task.synthetic": "true"})
    rows = synthetic(40, 1, "test")
    monkeypatch.setattr(image_cache, "FEW", 0)
    state = torch.get_rng_state()
    one, two = (image_cache.prepare(rows, None, backbone.preprocess, tmp_path / str(n), n) for n in (0, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.pixels.shape == (40, 3, 16, 16) and np.array_equal(one.pixels, two.pixels)
    assert one.fingerprint == two.fingerprint
    for row in range(40):
        image = Image.open(io.BytesIO(rows.encoded(row)))
        assert abs(one.pixels[row].mean() - np.asarray(image).mean()) < 2


ODD = {
    "grey": Image.new("L", (9, 5), 120),
    "grey with alpha": Image.new("LA", (9, 5), (120, 30)),
    "colour with alpha": Image.new("RGBA", (9, 5), (120, 120, 120, 0)),
    "palette": Image.new("RGB", (9, 5), (120, 120, 120)).quantize(4),
    "16 bits": Image.fromarray(np.full((5, 9), 120 * 256 + 7, np.uint16)),
    "black and white": Image.new("1", (9, 5), 1),
    "one pixel": Image.new("RGB", (1, 1), (120, 120, 120)),
    "three pixels": Image.new("RGB", (1, 3), (120, 120, 120)),
    "very wide": Image.new("RGB", (3000, 2), (120, 120, 120)),
}


@pytest.mark.parametrize("kind", ODD)
def test_every_mode_and_size_becomes_the_models_input(kind, load):
    backbone, _ = load("cifar100", **{"task.synthetic": "true"})
    stored = Image.open(io.BytesIO(encoded(ODD[kind])))
    pixels = backbone.preprocess.resize(stored)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (255 if kind == "black and white" else 120)).max() <= 1
    both = backbone.preprocess.normalise(torch.from_numpy(pixels[None]))
    torch.testing.assert_close(both, backbone.preprocess([stored]), rtol=0, atol=1e-6)


def test_16_bits_of_grey_in_a_portable_map(load):
    backbone, _ = load("cifar100", **{"task.synthetic": "true"})
    stored = Image.open(io.BytesIO(encoded(ODD["16 bits"], "PPM")))
    assert stored.mode == "I" and (backbone.preprocess.resize(stored) == 120).all()


def test_cmyk_and_turned_photographs(folders, load):
    Image.new("CMYK", (9, 5), (0, 255, 255, 0)).save(folders / "test" / "digit_0" / "000.png", "JPEG")  # named wrongly, too
    turned = Image.new("RGB", (8, 16), "white")
    turned.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 3
    turned.save(folders / "test" / "digit_0" / "001.png", "JPEG", exif=exif)
    _, data = load("cifar100", f"task.data_dir={folders}")
    red, _ = data.evaluation[0]
    assert red[0].min() > 240 and red[1:].max() < 15
    upright, _ = data.evaluation[1]
    assert upright[:, 0].min() > 240 and upright[:, -1].max() < 15


def test_unreadable_images_are_counted_and_named_and_nothing_is_kept(folders, load):
    broken = {
        "000.png": encoded(digit(1))[:-40],
        "001.png": b"",
        "002.png": b"<html>not found</html>",
        "003.png": encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900],
    }
    for name, content in broken.items():
        (folders / "test" / "digit_1" / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        load("cifar100", f"task.data_dir={folders}")
    text = str(error.value)
    assert text.startswith("4 of 15 images of test cannot be read: test row 5 (") and "\n" not in text
    assert all(f"digit_1/{name}" in text for name in broken) and "_io" not in text
    for name in broken:
        digit(3).save(folders / "test" / "digit_1" / name)
    images._read.cache_clear()  # another process
    assert len(load("cifar100", f"task.data_dir={folders}")[1].evaluation) == CLASSES * 5


def test_more_unreadable_images_than_a_line_holds(folders, load):
    for path in (folders / "test").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"^15 of 15 images .*; and 10 more$"):
        load("cifar100", f"task.data_dir={folders}")


def test_an_empty_cell_is_an_unreadable_image(load, monkeypatch):
    made = table(50, 5)
    broken = datasets.Dataset.from_dict({**made[:], "img": [None, *made["img"][1:]]}, features=made.features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=table(0, 6), test=broken))
    monkeypatch.setattr(hub, "commit", lambda *_: ("1" * 40, True))
    with pytest.raises(DataError, match=r"1 of 15 images of uoft-cs/cifar100 test cannot be read: .* row 0: the cell is empty"):
        load("cifar100")


@pytest.mark.parametrize(
    ("train", "evaluated"), [("[train,validation]", "[validation]"), ("[train,train]", "[test]"), ("[train]", "[./train]")]
)
def test_no_image_is_trained_on_and_scored_or_counts_twice(train, evaluated, compose):
    def task(*overrides):
        return build(compose("model=vit_base", *overrides).task, "task")

    with pytest.raises(ConfigError, match=r"(train|validation) is named twice in train_splits and eval_splits"):
        task("task=food101", f"task.train_splits={train}", f"task.eval_splits={evaluated}")
    assert task("task=cifar100", "task.train_splits=[train,validation]").splits == ["train", "validation", "test"]


def test_images_that_are_all_drawn_leave_none_to_score_on(folders, load):
    changed = {"task.train_per_class": 6, "task.eval_splits": "[]"}
    with pytest.raises(DataError, match=r"^task.train_per_class=6 draws all 18 images, which leaves none to score on"):
        load("cifar100", f"task.data_dir={folders / 'train'}", **changed)
    assert (
        len(load("cifar100", f"task.data_dir={folders / 'train'}", **{**changed, "task.train_per_class": 5})[1].evaluation) == 3
    )


def test_a_class_with_too_few_images_is_named(folders, load):
    (folders / "train" / "digit_1" / "000.png").unlink()
    with pytest.raises(DataError, match=r"class 1 \(digit_1\) has 5 examples, task.train_per_class=6 needs more"):
        load("cifar100", f"task.data_dir={folders}", **{"task.train_per_class": 6})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": "label"}, r"test has no column 'fine_label'; it has img, label: choose one with task.label_column="),
        ({"image": "image"}, r"test has no column 'img'; it has image, fine_label: choose one with task.image_column="),
    ],
)
def test_a_column_with_another_name_is_one_clear_line(columns, message, load, monkeypatch):
    odd = datasets.DatasetDict(train=table(0, 6), test=table(50, 5, **columns))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: odd)
    monkeypatch.setattr(hub, "commit", lambda *_: ("2" * 40, True))
    with pytest.raises(DataError, match=message) as error:
        load("cifar100")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [3, -1, None, "zero"])
def test_a_label_that_is_no_class_is_named_by_row(value, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = [0, 1, value] if not isinstance(value, str) else ["zero", "one", "two"]
    pq.write_table(pa.table({"image": [encoded(digit(0))] * 3, "label": labels}), tmp_path / "train.parquet")
    row = 0 if isinstance(value, str) else 2
    with pytest.raises(DataError, match=rf"train row {row}: label is {value!r}, not a class from 0 to 2"):
        from_folder(tmp_path, ["train"], "image", "label", 3, tmp_path / "cache")


def test_as_many_classes_as_have_names(tmp_path):
    """Where the last of them has no row."""
    made = table(0, 6)
    made.filter(lambda row: row["fine_label"] < 2).to_parquet(tmp_path / "train.parquet")
    for classes in (2, 4):
        with pytest.raises(DataError, match=rf"^train: fine_label has 3 named classes, expected {classes} \(task\.classes\)"):
            from_folder(tmp_path, ["train"], "img", "fine_label", classes, tmp_path / "cache")
    assert len(from_folder(tmp_path, ["train"], "img", "fine_label", 3, tmp_path / "cache")["train"]) == 12


def test_a_column_without_images_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [1.5, 2.5], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train: column 'image' holds no images"):
        from_folder(tmp_path, ["train"], "image", "label", 2, tmp_path / "cache")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"cannot be read as parquet") as error:
        from_folder(tmp_path, ["train"], "image", "label", 2, tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_folders_of_another_layout_are_refused(folders, load, tmp_path):
    with pytest.raises(DataError, match=r"is not a folder"):
        load("cifar100", f"task.data_dir={tmp_path / 'none'}")
    with pytest.raises(DataError, match=r"has 3 class folders, expected 45"):
        load("resisc45", f"task.data_dir={folders / 'train'}", **{"task.classes": 45})
    with pytest.raises(DataError, match=r"neither parquet files nor a folder 'validation'"):
        load("food101", f"task.data_dir={folders}")
    with pytest.raises(DataError, match=r"holds no folder 'test' to evaluate on"):
        load("cifar100", f"task.data_dir={folders / 'train'}")
    (folders / "test" / "digit_1").rename(folders / "test" / "digit_x")
    with pytest.raises(DataError, match=r"train and test do not name the same classes: 'digit_1' differs"):
        load("cifar100", f"task.data_dir={folders}")
    (folders / "test" / "digit_x").rename(folders / "test" / "digit_1")
    write_folder(folders / "validation", 60, 2)
    both = ["task.train_splits=[train,validation]", f"task.data_dir={folders}"]
    assert len(load("cifar100", *both)[1].train) == CLASSES * 4
    (folders / "validation" / "digit_0").rename(folders / "validation" / "digit_9")
    images._read.cache_clear()  # another process
    with pytest.raises(DataError, match=r"train and validation do not name the same classes: 'digit_0' differs"):
        load("cifar100", *both)
    (tmp_path / "p").mkdir()
    table(0, 6).to_parquet(tmp_path / "p" / "train.parquet")
    with pytest.raises(DataError, match=r"holds no parquet file of the split 'test'"):
        load("cifar100", f"task.data_dir={tmp_path / 'p'}")


def test_a_full_disk_is_said_before_it_is_full(folders, load, monkeypatch):
    free = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"test needs 0.0 GB below task.cache_dir, where 0.0 GB are free"):
        load("cifar100", f"task.data_dir={folders}")


def test_two_halves_of_splits_count_through(tmp_path):
    first, second = synthetic(2, 2, "a"), synthetic(2, 1, "b")
    both = image_rows.joined([first, second])
    assert both.labels.tolist() == [0, 0, 1, 1, 0, 1] and both.encoded(4) == second.encoded(0)


def test_a_bad_image_is_one_line_on_the_command_line_and_leaves_no_record(folders, train, tmp_path):
    (folders / "test" / "digit_2" / "004.png").write_bytes(b"")
    keys = [f"task.data_dir={folders}", "task.classes=3", "task.train_per_class=4", "task.synthetic=false"]
    failed = train("model=vit_base", "task=cifar100", "method=vera", *keys)
    lines = [line for line in failed.stderr.splitlines() if not line.startswith("decoding ")]
    assert failed.returncode == 1 and len(lines) == 1, failed.stderr
    assert lines[0].startswith("error: vit_base--cifar100--vera--") and "1 of 15 images of test cannot be read" in lines[0]
    assert not list((tmp_path / "results" / "runs").glob("*.json"))


def test_a_record_holds_the_rows_and_no_path_and_the_cell_no_machine(folders, compose, tmp_path):
    settings = ["model=vit_base", "task=cifar100", "task.classes=3", "task.train_per_class=4", "task.synthetic=false"]
    run = compose(*settings, f"task.data_dir={folders}", "task.workers=1", f"cache_dir={tmp_path / 'images'}")
    record = execute(run)
    assert str(tmp_path) not in record.to_json() and len(record.provenance.notes["few_shot_rows"]) == 12
    assert compose(*settings, f"task.data_dir={tmp_path}", "task.workers=0").cell_id == run.cell_id
    assert (record.provenance.train_rows, record.provenance.eval_rows) == (12, 15)


FEW = ["model=vit_base", "task=cifar100", "task.classes=3", "task.train_per_class=4", "task.synthetic=false", "method=head"]


def test_names_of_class_folders_go_into_the_record_and_leave_with_the_model(folders, compose, tmp_path):
    keys = [
        "model=vit_base",
        "task=cifar100",
        "task.classes=3",
        "task.train_per_class=4",
        "task.synthetic=false",
        "method=vera",
    ]
    run = compose(*keys, f"task.data_dir={folders}", f"cache_dir={tmp_path / 'images'}", "train.save=true")
    record = execute(run)
    path = Store(run.results_dir).path(record.name)
    place = [f"cache_dir={tmp_path / 'images'}"]

    def left(form):
        out = tmp_path / form
        shutil.rmtree(out, ignore_errors=True)
        export(path, out, form, work=Path(run.work_dir), overrides=place)
        return out, [line for line in (out / "README.md").read_text().splitlines() if line.startswith("| labels |")]

    merged, row = left("merged")
    model = AutoModelForImageClassification.from_pretrained(merged)
    assert model.config.id2label == {0: "digit_0", 1: "digit_1", 2: "digit_2"} and model.config.label2id["digit_1"] == 1
    assert row == left("lora")[1] == ["| labels | 0 digit_0, 1 digit_1, 2 digit_2 |"]

    for label in range(CLASSES):  # the same images, called otherwise
        for split in ("train", "test"):
            (folders / split / f"digit_{label}").rename(folders / split / f"{label}|")
    images._read.cache_clear()  # another process
    again = repeat(record, [*place, f"task.data_dir={folders}"])
    found = compare(record, again)
    assert not found.differing() and found.conditions == [("classes", "digit_0, digit_1, digit_2", "0|, 1|, 2|")]
    path.write_text(again.model_copy(update={"weights": record.weights}).to_json())
    assert left("lora")[1] == [r"| labels | 0 0\|, 1 1\|, 2 2\| |"]
    older = json.loads(record.to_json())
    del older["provenance"]["notes"]["classes"]
    older = Record.model_validate(older)
    for pair in ((older, again), (again, older)):
        assert not compare(*pair).differing() and not compare(*pair).conditions
    path.write_text(older.to_json())
    assert left("merged")[1] == []


def test_training_splits_with_their_classes_in_another_order_are_refused(load, tmp_path):
    for split, start, names in (("train", 0, "zero one two"), ("more", 10, "two one zero"), ("test", 50, "zero one two")):
        made = table(start, 6)
        made.cast_column("fine_label", datasets.ClassLabel(names=names.split())).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match=r"train and more name the same classes in another order; give them in one order"):
        load("cifar100", f"task.data_dir={tmp_path}", "task.train_splits=[train,more]")
    for old, new in (("train", "train-00000-of-00002"), ("more", "train-00001-of-00002")):
        (tmp_path / f"{old}.parquet").rename(tmp_path / f"{new}.parquet")
    with pytest.raises(DataError, match=r"train-00000-of-00002.parquet and train-00001-.* in another order; give"):
        load("cifar100", f"task.data_dir={tmp_path}")


def test_other_training_images_with_the_same_labels_are_other_rows(folders, compose, tmp_path):
    """The task's fingerprint, one for all seeds, leaves out what a seed draws."""
    write_folder(tmp_path / "other" / "train", 10, 6)
    shutil.copytree(folders / "test", tmp_path / "other" / "test")

    def run(folder, seed=0, *more):
        return compose(*FEW, f"task.data_dir={folder}", f"cache_dir={tmp_path / 'cache'}", f"seed={seed}", *more)

    record, second = execute(run(folders)), execute(run(folders, 1))
    moved = shutil.copytree(folders, tmp_path / "moved")
    other = tmp_path / "other"
    assert run(other).cell_id == run(folders).cell_id
    for seed, made in ((0, record), (1, second)):
        assert execute(run(folders, seed)) == execute(run(moved, seed)) == made
        for _ in range(2):  # read, and remembered
            with pytest.raises(
                RecordError, match=r"made from other rows: local folder, fingerprint \w+, and task.data_dir=\S+other"
            ):
                execute(run(other, seed))
    older = json.loads(record.to_json())
    del older["provenance"]["notes"]["few_shot_images"]
    check_sources(run(other), type(record).model_validate(older))

    interrupted = run(folders, 0, "train.max_steps=2", "train.checkpoint_seconds=0")
    Loop(interrupted, *prepare(interrupted), tmp_path / "work").fit()
    with pytest.raises(TrainingError, match=r"state of another run \(its few_shot_images differs\)"):
        resumed = run(other, 0, "train.max_steps=2")
        Loop(resumed, *prepare(resumed), tmp_path / "work").fit()
    *parts, data = prepare(interrupted)
    silent = replace(data, notes={"few_shot_rows": data.notes["few_shot_rows"]})  # as a state from before this was noted
    Loop(interrupted, *parts, silent, tmp_path / "older").fit()
    again = Loop(interrupted, *prepare(interrupted), tmp_path / "older")
    again.fit()
    assert again.spent["restarts"] == 1


@pytest.mark.parametrize(("size", "workers"), [((10, 12), 0), ((9, 10), 1)])
def test_images_that_the_processor_leaves_in_unlike_sizes_are_named(size, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "FEW", 0)
    whole = synthetic(2, 20, "train")  # 10 x 12 each
    odd = {"bytes": encoded(Image.new("RGB", size)), "path": None}
    encoded_images = [*whole.data[:]["image"][:36], odd, *whole.data[:]["image"][37:]]
    rows = image_rows.Rows(image_rows._dataset(encoded_images), whole.labels, None, "train", "odd")
    pixels = Pixels(ViTImageProcessor(do_resize=False), 3)
    with pytest.raises(
        DataError, match=rf"^train row 36 becomes 3 x {size[1]} x {size[0]} uint8, where 3 x 10 x 12 uint8 is"
    ) as error:
        image_cache.prepare(rows, None, pixels, tmp_path, workers)
    assert "do_resize" in str(error.value) and not list(tmp_path.rglob("pixels.u8"))
    kept = image_cache.prepare(rows, np.arange(36), pixels, tmp_path, workers)
    assert kept.pixels.shape == (36, 3, 10, 12)


def test_pixels_of_more_than_8_bits_are_refused(tmp_path):
    pixels = Pixels(ViTImageProcessor(size={"height": 4, "width": 4}), 3)
    pixels.resize = lambda image: np.zeros((3, 4, 4), np.float32)
    with pytest.raises(DataError, match=r"train row 0 becomes 3 x 4 x 4 float32, where 3 x 4 x 4 uint8 is expected"):
        image_cache.prepare(synthetic(2, 1, "train"), None, pixels, tmp_path, 0)


def test_recipes_hold_the_values_of_table_11(compose):
    for model, method, task, lr, head_lr in (
        ("vit_base", "head", "resisc45", 0.0, 4e-2),
        ("vit_base", "full", "food101", 4e-5, 4e-2),
        ("vit_base", "vera", "resisc45", 7e-2, 5e-3),
        ("vit_large", "full", "flowers102", 4e-5, 8e-3),
        ("vit_large", "lora", "resisc45", 4e-3, 4e-4),
        ("vit_large", "vera", "cifar100", 4e-2, 2e-3),
    ):
        run = compose(f"model={model}", f"method={method}", f"task={task}", scale=False)
        assert (run.train.lr, run.train.head_lr, run.train.epochs) == (lr, head_lr, 10)
        assert run.train.weight_decay == run.train.head_weight_decay == 0.01 and run.train.schedule == "linear"
        assert run.method.get("rank") == {"lora": 8, "vera": 256}.get(method)
