"""A user's folder of images: what is found, converted and listed, and every way it can be wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision import transforms

from export.errors import DamagedError, UsageError
from pipeline.config.sections import Augment, Data
from pipeline.data import DataSet, TrainingBatches, open_data
from pipeline.data.images import FileImages

MakeFolder = Callable[..., Path]


def opened(root: Path, *, image_size: int | None = None, color: Literal["auto", "rgb", "gray"] = "auto", workers: int = 0) -> DataSet:
    options = Data(name="imagefolder", root=str(root), batch_size=2, image_size=image_size, color=color, workers=workers)
    return open_data(options, torch.device("cpu"))


def test_classes_are_the_sorted_folders(image_folder: MakeFolder) -> None:
    data = opened(image_folder(classes=("zebra", "ant", "Yak")))
    assert data.classes == ("Yak", "ant", "zebra")
    assert (data.channels, data.height, data.width) == (3, 4, 6)
    assert data.train.num_samples == data.test.num_samples == 9
    assert data.notes == ("18 images of 0.0 MiB, kept as bytes on cpu",)


def test_val_serves_where_there_is_no_test(image_folder: MakeFolder) -> None:
    root = image_folder()
    (root / "test").rename(root / "val")
    assert opened(root).test.num_samples == 6


def test_with_both_test_is_used_and_val_is_said_to_be_left_out(image_folder: MakeFolder) -> None:
    root = image_folder()
    shutil.copytree(root / "test", root / "val")
    assert opened(root).notes[0] == "1 other files or folders left out: val"


def test_gray_among_colour_is_converted_counted_and_listed(image_folder: MakeFolder) -> None:
    root = image_folder(num=8)
    for i in range(7):
        Image.new("L", (6, 4), 77).save(root / f"train/dog/{i}.png")
    data = opened(root)
    shown = ", ".join(f"train/dog/{i}.png" for i in range(5))
    assert data.notes[0] == f"7 images in grayscale converted to colour: {shown} and 2 more"
    batches = torch.cat([images for images, _ in data.train.batches(4)])
    assert (batches[8:15] == 77).all()


def all_gray(root: Path) -> Path:
    for path in root.rglob("*.png"):
        Image.new("L", (6, 4), 9).save(path)
    return root


def test_all_gray_is_one_channel_unless_colour_is_asked_for(image_folder: MakeFolder) -> None:
    root = all_gray(image_folder())
    assert opened(root).channels == 1
    assert len(opened(root).notes) == 1
    assert opened(root, color="rgb").channels == 3
    assert opened(root, color="rgb").notes[0].startswith("12 images in grayscale converted to colour: train/cat/0.png")


def test_colour_is_made_gray_where_asked_for(image_folder: MakeFolder) -> None:
    data = opened(image_folder(), color="gray")
    assert data.channels == 1
    assert data.notes[0].startswith("12 images in colour converted to grayscale: train/cat/0.png")


def test_other_files_are_listed_and_hidden_ones_are_not(image_folder: MakeFolder) -> None:
    root = image_folder()
    for name in ("README", "train/list.txt", "train/cat/Thumbs.db", "train/cat/.DS_Store", "train/.hidden"):
        (root / name).write_text("")
    (root / "train/.git").mkdir()
    assert opened(root).notes[0] == "3 other files or folders left out: train/list.txt, train/cat/Thumbs.db, README"


def test_transparency_and_orientation_are_noted(image_folder: MakeFolder) -> None:
    root = image_folder()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (4, 6), (1, 2, 3, 0)).save(root / "train/cat/0.png", exif=exif)
    assert opened(root).notes[:2] == (
        "1 image with transparency read without it: train/cat/0.png",
        "1 image turned upright as their EXIF orientation says: train/cat/0.png",
    )


def test_sizes_that_differ_name_two_files_and_the_fix(image_folder: MakeFolder) -> None:
    root = image_folder()
    Image.new("RGB", (9, 8)).save(root / "train/dog/1.png")
    with pytest.raises(UsageError) as error:
        opened(root)
    one, other = f"{root}/train/cat/0.png is 6x4", f"{root}/train/dog/1.png is 9x8"
    assert str(error.value) == f"images must have one size, but {one} and {other}; set data.image_size to bring all to one"
    data = opened(root, image_size=5)
    assert (data.height, data.width) == (5, 5)


def test_a_single_layer_of_classes_is_refused_with_the_layout(image_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match=r"has no train folder; wanted: ROOT/train/CLASS/\*\.png and ROOT/test/CLASS"):
        opened(image_folder() / "train")


def test_a_missing_root_or_split_is_refused(image_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere; wanted: ROOT/train"):
        opened(tmp_path / "nowhere")
    root = image_folder()
    shutil.rmtree(root / "test")
    with pytest.raises(UsageError, match="has no test folder; wanted"):
        opened(root)


def test_images_right_in_a_split_are_refused(image_folder: MakeFolder) -> None:
    root = image_folder()
    shutil.rmtree(root / "test")
    (root / "test").mkdir()
    with pytest.raises(UsageError, match="test holds no class folders; wanted"):
        opened(root)


def test_classes_must_agree(image_folder: MakeFolder) -> None:
    root = image_folder()
    (root / "test/dog").rename(root / "test/wolf")
    with pytest.raises(UsageError, match="same class folders; only in train: dog; only in test: wolf"):
        opened(root)


def test_an_empty_class_is_named(image_folder: MakeFolder) -> None:
    root = image_folder()
    (root / "train/eel").mkdir()
    with pytest.raises(UsageError, match=r"class folder .*train/eel holds no images \(\.bmp"):
        opened(root)


def test_a_folder_inside_a_class_is_refused(image_folder: MakeFolder) -> None:
    root = image_folder()
    (root / "train/cat/more").mkdir()
    with pytest.raises(UsageError, match="train/cat/more is a folder inside a class"):
        opened(root)


def test_a_class_that_links_to_the_folder_above_it_ends_at_once(image_folder: MakeFolder) -> None:
    root = image_folder()
    (root / "train/loop").symlink_to(root / "train")
    with pytest.raises(UsageError, match="train/loop/cat is a folder inside a class"):
        opened(root)


def test_a_link_to_itself_and_a_dangling_one(image_folder: MakeFolder) -> None:
    root = image_folder()
    (root / "train/self").symlink_to(root / "train/self")
    assert opened(root).notes[0] == "1 other files or folders left out: train/self"
    (root / "train/cat/gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DamagedError, match=r"train/cat/gone\.png cannot be used: No such file"):
        opened(root)


def test_a_class_name_that_breaks_a_line_is_refused(image_folder: MakeFolder) -> None:
    root = image_folder()
    (root / "train/cat").rename(root / "train/c\nat")
    with pytest.raises(UsageError, match=r"c\\nat' holds unprintable characters; rename it"):
        opened(root)


def test_what_is_no_image_is_found_before_anything_is_decoded(image_folder: MakeFolder) -> None:
    root = image_folder()
    (root / "test/dog/2.png").write_bytes(b"")
    (root / "train/cat/1.png").write_bytes(b"hello")
    with pytest.raises(DamagedError) as error:
        opened(root)
    assert str(error.value).startswith(f"{root}/train/cat/1.png cannot be used: it is not an image in one of")
    assert str(error.value).endswith("(and 1 more such files)")


def test_a_truncated_image_is_named_while_decoding(image_folder: MakeFolder) -> None:
    root = image_folder(size=(60, 60))
    path = root / "train/dog/2.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DamagedError, match=r"train/dog/2.png cannot be used: .*truncated"):
        opened(root)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """ROOT/{train,val}/{n01440764,n01443537}/*.JPEG, as ImageNet has it: files of many sizes."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i, (height, width) in enumerate([(50, 40), (37, 61), (48, 48)]):
                smooth = generator.integers(0, 256, (4, 5, 3), np.uint8)
                Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{name}_{i}.JPEG")
    return tmp_path


def imagenet_like(root: Path) -> Data:
    augment = Augment(flip=True, resized_crop=(0.08, 1.0))
    return Data(name="imagefolder", root=str(root), image_size=28, resize=32, batch_size=2, workers=0, augment=augment, normalisation="imagenet")


def test_testing_takes_the_centre_of_the_resized_image_as_torchvision_does(photographs: Path) -> None:
    data = open_data(imagenet_like(photographs), torch.device("cpu"))
    theirs = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    paths = sorted((photographs / "val").rglob("*.JPEG"))
    expected = torch.stack([theirs(Image.open(path).convert("RGB")) for path in paths])
    assert data.classes == ("n01440764", "n01443537")
    assert torch.equal(torch.cat([images for images, _ in data.test.batches(4)]), expected)
    assert data.normalisation.mean == (0.485 * 255, 0.456 * 255, 0.406 * 255)


def test_each_epoch_sees_other_parts_and_a_resumed_one_the_same(photographs: Path) -> None:
    options = imagenet_like(photographs)
    data = open_data(options, torch.device("cpu"))
    assert isinstance(data.train.images, FileImages)
    batches = TrainingBatches(data.train, 2, options.augment, seed=4)
    whole, resumed, other = (list(batches.epoch(*when)) for when in ((3, 0), (3, 1), (4, 0)))
    for (a, one), (b, two) in zip(whole[1:], resumed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(one, two)
    seen = [image for epoch in (whole, other) for images, _ in epoch for image in images]
    assert all(image.shape == (3, 28, 28) for image in seen)
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_workers_cut_the_same_parts(photographs: Path) -> None:
    options = imagenet_like(photographs)
    alone, helped = (open_data(options.model_copy(update={"workers": workers}), torch.device("cpu")) for workers in (0, 1))
    for (a, _), (b, _) in zip(*(TrainingBatches(data.train, 2, options.augment, 0).epoch(0) for data in (alone, helped)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resize": 32}, "resize is for name: imagefolder, with the image_size that images are cut to; set both, or leave it out"),
        ({"name": "cifar10", "image_size": 28, "resize": 32}, "resize is for name: imagefolder"),
        ({"augment": Augment(resized_crop=(0.1, 1.0))}, "augment.resized_crop is for name: imagefolder"),
        ({"image_size": 33, "resize": 32}, "resize 32 is less than image_size 33, which is cut out of it"),
        ({"image_size": 28, "augment": Augment(resized_crop=(0.1, 1.0)), "residence": "device"}, "so residence: device is not possible; use auto"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_the_config(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Data.model_validate({"name": "imagefolder", **wrong})
    assert message in str(error.value)


def test_areas_that_fall_are_refused() -> None:
    with pytest.raises(ValidationError, match="takes the least share of the area, then the largest"):
        Augment(resized_crop=(0.5, 0.1))
