"""Folders and tar files against ``torchvision.datasets.ImageFolder``; what is passed over."""

from __future__ import annotations

import gzip
import io
import os
import resource
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from mt_convert.data import DataSpec, batches, open_data
from mt_convert.data.class_map import head_faults
from mt_convert.data.image_files import Files, list_split
from mt_convert.data.image_listing import FolderFiles, Listing
from mt_convert.errors import DataError
from mt_convert.system.progress import notice

NAMES = ("0", "1", "2", "10", "a", "B", "é", "a-b", "a b", "x.png", "train", "split")
ENDS = (".png", ".JPG", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".gif", ".txt", "")


def tree(root: Path, names: list[str]) -> None:
    """Files of these names, empty."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def packed(folder: Path, path: Path, around: str = ".") -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=around)
    return path


def as_torchvision_reads(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    whole = ImageFolder(str(folder))
    return whole.classes, [(os.path.relpath(path, folder), at) for path, at in whole.samples]


def as_we_read(path: Path) -> tuple[list[str], list[tuple[str, int]]]:
    listing = Listing(path, "split")
    return listing.classes, list(zip(listing.names, listing.labels, strict=True))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    st.sets(
        st.tuples(
            st.lists(st.sampled_from(NAMES), min_size=0, max_size=3),
            st.sampled_from(("1", "2", "10", "a", "A")),
            st.sampled_from(ENDS),
        ).map(lambda parts: "/".join((*parts[0], f"f{parts[1]}{parts[2]}"))),
        min_size=1,
        max_size=12,
    )
)
def test_any_folder_and_its_tar_file_read_as_torchvision_reads_the_folder(names: set[str]) -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "split"
        tree(folder, sorted(names))
        tar = packed(folder, Path(temporary) / "packed.tar")
        try:
            expected = as_torchvision_reads(folder)
        except FileNotFoundError:  # no class folders, or an empty one
            for path in (folder, tar):
                with pytest.raises(DataError, match="does not hold images in class folders"):
                    Listing(path, "split")
            return
        assert as_we_read(folder) == as_we_read(tar) == expected


ZOO = {
    "numbers": ["0/a.png", "1/a.png", "2/a.png", "10/a.png"],
    "numbered files": [f"a/{i}.png" for i in (1, 2, 10)],
    "folders below a class": ["cat/2019/a.png", "cat/2020/a.png", "dog/a.png"],
    "capitals": ["Zebra/a.png", "ant/a.png", "Ant/a.png"],
    "other suffixes": ["a/a.webp", "a/b.tiff", "a/c.TIF", "b/d.pgm", "b/e.gif", "b/f.npy"],
    "a folder that ends as an image": ["a/b.png/c.png", "b/c.png"],
    "files beside the classes": ["a/a.png", "b/b.png", "c.png", "labels.csv"],
    "hidden files": ["a/.png", "a/.hidden.png", ".b/a.png"],
    "order of folders and files": ["a/b/a.png", "a/b-c/a.png", "a/z.png", "a/a.png"],
    "accents": ["é/a.png", "e/a.png", "z/a.png"],
}


@pytest.mark.parametrize("names", ZOO.values(), ids=ZOO.keys())
def test_a_zoo_of_folders_reads_as_in_torchvision(names: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "split"
    tree(folder, names)
    expected = as_torchvision_reads(folder)
    assert as_we_read(folder) == expected
    for around in (".", "split", "./split"):
        assert as_we_read(packed(folder, tmp_path / "split.tar", around)) == expected


def test_links_are_followed_in_folders_and_tar_files(tmp_path: Path) -> None:
    folder = tmp_path / "split"
    tree(folder, ["a/1.png"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.png").write_bytes(b"2")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "3.png").symlink_to("1.png")
    (folder / "a" / "4.png").symlink_to("gone.png")
    assert as_we_read(folder) == as_torchvision_reads(folder)
    (folder / "b").unlink()
    (folder / "a" / "1.png").write_bytes(b"one")
    os.link(folder / "a" / "1.png", folder / "a" / "5.png")
    listing = Listing(packed(folder, tmp_path / "s.tar"), "split")
    assert listing.names == [f"a/{i}.png" for i in (1, 3, 4, 5)]
    assert [listing.files.open(f"a/{i}.png").read() for i in (1, 3, 5)] == [b"one"] * 3
    with pytest.raises(OSError, match=r"link to gone\.png"):
        listing.files.open("a/4.png")


def test_a_link_that_leads_back_is_named(tmp_path: Path) -> None:
    tree(tmp_path, ["a/b/1.png"])
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match=r"up  is a link to .*remove the link"):
        FolderFiles(tmp_path)


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path: Path) -> None:
    tree(tmp_path, ["a/1.png"])
    os.mkfifo(tmp_path / "a" / "2.png")
    with pytest.raises(OSError, match="no regular file"):
        FolderFiles(tmp_path).open("a/2.png")


def test_of_two_members_of_one_name_the_last_counts_and_none_leads_outside(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, content in (("a/1.png", b"old"), ("../b/1.png", b"out"), ("a/1.png", b"new")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    listing = Listing(tmp_path / "s.tar", "split")
    assert listing.names == ["a/1.png"]
    assert listing.files.open("a/1.png").read() == b"new"


def test_what_is_passed_over_is_counted_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notice.cache_clear()
    tree(tmp_path, ["a/1.png", "a/2.gif", "a/3.gif", "a/4.heic", "a/noend", "read.me"])
    listing, _ = Listing(tmp_path, "split"), Listing(tmp_path, "split")
    assert sum(listing.skipped.values()) == 5
    said = capsys.readouterr().err
    assert said.count("5 of 6 files are not read") == 1
    for words in ("2 .gif", "1 .heic", "1 no suffix", "1 outside class folders", ".webp"):
        assert words in said


def test_empty_classes_are_listed_all_at_once(tmp_path: Path) -> None:
    tree(tmp_path, ["a/1.png", "b/2.gif"])
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError) as caught:
        Listing(tmp_path, "split")
    assert [item.where for item in caught.value.faults] == ["b", "c"]
    assert "holds no images (1 .gif)" in str(caught.value)
    tree(tmp_path / "flat", ["1.png"])
    with pytest.raises(DataError, match="put the images into one for each class"):
        Listing(tmp_path / "flat", "split")


def test_names_that_are_no_text_can_be_printed(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    Path(os.fsdecode(folder) + "/1.png").write_bytes(b"")
    listing = Listing(tmp_path, "split")
    assert listing.name(0).encode() == b"caf\\xe9/1.png"
    assert len(listing.digest()) == 64


def test_the_digest_sees_names_sizes_and_times_and_content_where_asked(tmp_path: Path) -> None:
    tree(tmp_path / "split", ["a/1.png", "b/2.png"])
    image = tmp_path / "split" / "a" / "1.png"
    os.utime(image, ns=(5, 5))

    def digests() -> tuple[str, str]:
        listing = Listing(tmp_path / "split", "split")
        return listing.digest(), listing.digest(content=True)

    plain, content = digests()
    assert (plain, content) == digests()
    os.utime(image, ns=(5, 6))
    assert digests()[0] != plain
    assert digests()[1] == content
    image.write_bytes(b"x")
    os.utime(image, ns=(5, 5))
    assert digests()[0] != plain  # the size
    assert digests()[1] != content


# Pixels


def formats(pixels: np.ndarray) -> dict[str, Image.Image]:
    """One picture in every mode that image files come in."""
    rgb = Image.fromarray(pixels)
    return {
        "rgb.png": rgb,
        "rgb.webp": rgb,
        "rgb.tiff": rgb,
        "rgb.bmp": rgb,
        "rgb.ppm": rgb,
        "rgb.jpg": rgb,
        "palette.png": rgb.quantize(16),
        "alpha.png": rgb.convert("RGBA"),
        "alpha_palette.png": rgb.convert("RGBA").quantize(16),
        "grey.png": rgb.convert("L"),
        "grey_alpha.png": rgb.convert("LA"),
        "bits.png": rgb.convert("1"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "cmyk.tiff": rgb.convert("CMYK"),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_torchvision_in_every_mode(channels: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        for name, image in formats(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).items():
            image.save(tmp_path / split / "a" / name)
    spec = DataSpec(
        "",
        root=str(tmp_path),
        test_split="test",
        image_size=8,
        channels=channels,
        classes=1,
        calibration_images=2,
    )
    (ours, _), *_ = batches(open_data(spec).test, 20)
    theirs = ImageFolder(str(tmp_path / "test"))
    assert len(ours) == len(theirs) == 14
    for mine, (image, _) in zip(ours, theirs, strict=True):
        expected = pil_to_tensor(image if channels == 3 else image.convert("L"))
        if channels == 3 or image.mode == "L":
            assert torch.equal(mine, expected / 255)


def test_16_bits_are_scaled_and_32_bits_refused(tmp_path: Path) -> None:
    levels = np.array([[0, 255, 256, 65535], [1000, 32768, 5, 128 * 256]], dtype=np.uint16)
    levels = np.tile(levels, (2, 1))
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(levels).save(tmp_path / split / "a" / "1.png")
        Image.fromarray(levels).save(tmp_path / split / "a" / "2.tiff")
        header = b"P5\n4 4\n65535\n"
        (tmp_path / split / "a" / "3.pgm").write_bytes(header + levels.astype(">u2").tobytes())
    spec = DataSpec("", root=str(tmp_path), test_split="test", image_size=4, channels=1, classes=1)
    files = Files(spec, "test")
    for index in range(3):
        assert np.array_equal(np.asarray(files.load(index)[0]), (levels >> 8).astype(np.uint8))
    for number, image in enumerate((levels.astype(np.int32), levels.astype(np.float32))):
        Image.fromarray(image).save(tmp_path / "test" / "a" / f"0_{number}.tiff")
    for number in range(2):
        with pytest.raises(DataError, match=rf"0_{number}\.tiff .*32 bits, mode [IF]: store it"):
            Files(spec, "test").load(number)


def test_a_hint_for_an_oblong_image_leads_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 6), (i, 0, 0)).save(tmp_path / split / "a" / f"{i}.png")
    changes = {"image_size": 8, "calibration_images": 2, "validation_share": 0.0}
    with pytest.raises(DataError, match=r"is 8x6, the spec says 8x8.*set resize: true") as caught:
        open_data(DataSpec("", root=str(tmp_path), test_split="test", classes=1, **changes))
    assert "image_size:" not in str(caught.value)
    spec = DataSpec("", root=str(tmp_path), test_split="test", classes=1, resize=True, **changes)
    assert next(batches(open_data(spec).test, 4))[0].shape == (4, 3, 8, 8)


def test_one_folder_for_both_splits_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, ["a/1.png"])
    for name in ("torch/folder", "torch/image_folder"):
        with pytest.raises(DataError, match="would be trained on"):
            open_data(DataSpec(name, root=str(tmp_path)))


def claiming(path: Path, kind: str, size: int = 10**12) -> Path:
    """A tar file of a few bytes, one member of which claims a terabyte."""
    member = tarfile.TarInfo("a/x.png")
    member.size = size
    if kind == "sparse":
        member.size = 0
        sparse = {"map": "0,0", "size": str(size), "name": "a/x.png"}
        member.pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
    if kind == "header":
        member.type = tarfile.GNUTYPE_LONGNAME
    packed = member.tobuf(tarfile.PAX_FORMAT) + b"\0" * 1024
    path.write_bytes(gzip.compress(packed) if kind == "packed" else packed)
    return path


@pytest.mark.parametrize("kind", ["plain", "sparse", "packed", "header"])
def test_a_member_that_claims_a_terabyte_is_refused_and_takes_no_memory(
    kind: str, tmp_path: Path
) -> None:
    claiming(tmp_path / "train.tar", kind)
    spec = DataSpec("", root=str(tmp_path), classes=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="cannot open image files"):
        list_split(spec, "train")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_pipes_in_place_of_archives_and_maps_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.tar")
    with pytest.raises(DataError, match="it is no file"):
        list_split(DataSpec("", root=str(tmp_path), classes=2), "train")
    spec = DataSpec("digits", classes=10, class_map=str(tmp_path / "train.tar"))
    with pytest.raises(DataError, match="it is no file"):
        head_faults(spec, 10)
