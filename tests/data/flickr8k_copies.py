"""Writes small copies of Flickr8k in each layout it is found in."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from PIL import Image

from showtell.types import Split

ORPHAN = "2258277193_586949ec62.jpg.1"
SPLIT_OF: dict[str, Split | None] = {
    **{f"{number}_train.jpg": "train" for number in range(8)},
    **{f"{number}_dev.jpg": "val" for number in range(2)},
    **{f"{number}_test.jpg": "test" for number in range(2)},
    "0_nowhere.jpg": None,
}
# What naive parsing breaks on: commas, quotes, a hash, a tab-free tail, double and final spaces.
CAPTIONS: dict[str, tuple[str, ...]] = {
    name: (
        f'A dog , a "cat" and {name.split(".")[0]} .',
        "Two children play  on the beach ",
        'The sign reads " Go #1 " .',
        "Café terrace at night",
        "a",
    )
    for name in SPLIT_OF
}
LIST_FILES: dict[Split, str] = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def write_photo(path: Path, number: int) -> None:
    """An 8x8 JPEG whose colour, and so whose content, depends on the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (number * 17 % 256, number * 53 % 256, 90)).save(path)


def write_photos(folder: Path, names: list[str] | None = None) -> None:
    for number, name in enumerate(SPLIT_OF):
        if names is None or name in names:
            write_photo(folder / name, number)


def token_lines() -> list[str]:
    captions = {**CAPTIONS, ORPHAN: ("people waiting for the subway",) * 5}
    return [
        f"{name}#{number}\t{caption}"
        for name, sentences in sorted(captions.items())
        for number, caption in enumerate(sentences)
    ]


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_lists(folder: Path, splits: tuple[Split, ...] = ("train", "val", "test")) -> None:
    for split in splits:
        names = [name for name, held in SPLIT_OF.items() if held == split]
        write_lines(folder / LIST_FILES[split], names)


def original_release(root: Path) -> None:
    write_photos(root / "Flicker8k_Dataset")
    write_lines(root / "Flickr8k_text" / "Flickr8k.token.txt", token_lines())
    lemmas = [line.lower() for line in token_lines()]
    write_lines(root / "Flickr8k_text" / "Flickr8k.lemma.txt", lemmas)
    write_lines(root / "Flickr8k_text" / "readme.txt", ["If you use this corpus, cite it."])
    annotations = ["0_dev.jpg\t1_dev.jpg#2\t1\t1\t1"]
    write_lines(root / "Flickr8k_text" / "ExpertAnnotations.txt", annotations)
    write_lists(root / "Flickr8k_text")
    # What unpacking on another system leaves behind.
    remains = root / "__MACOSX" / "Flicker8k_Dataset" / "._0_train.jpg"
    remains.parent.mkdir(parents=True)
    remains.write_bytes(b"\0\5\26\7")


def kaggle_shadabhussain(root: Path) -> None:
    write_photos(root / "Flickr_Data" / "Flickr_Data" / "Images")
    text = root / "Flickr_Data" / "Flickr_Data" / "Flickr_TextData"
    write_lines(text / "Flickr8k.token.txt", token_lines())
    write_lists(text)
    (root / "Flickr_Data" / "train_encoded_images.p").write_bytes(b"not to be opened")


def kaggle_adityajn105(root: Path) -> None:
    write_photos(root / "Images")
    with (root / "captions.txt").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "caption"])
        rows = [(name, caption) for name in CAPTIONS for caption in CAPTIONS[name]]
        writer.writerows(rows)


def karpathy(root: Path, *, folder: str = "", train: str = "train") -> None:
    write_photos(root / "imgs" / folder)
    images = [
        {
            "filename": name,
            "imgid": number,
            "split": train if split == "train" else split,
            "sentences": [{"raw": caption, "tokens": ["no"]} for caption in CAPTIONS[name]],
            **({"filepath": folder} if folder else {}),
        }
        for number, (name, split) in enumerate(SPLIT_OF.items())
        if split is not None
    ]
    document = {"images": images, "dataset": "flickr8k"}
    (root / "dataset_flickr8k.json").write_text(json.dumps(document), encoding="utf-8")


def without_test(root: Path) -> None:
    """Held-back test split: neither its images, nor its captions, nor its list are there."""
    kept = [name for name, split in SPLIT_OF.items() if split in ("train", "val")]
    write_photos(root / "Images", kept)
    lines = [line for line in token_lines() if line.split("#")[0] in (*kept, ORPHAN)]
    write_lines(root / "Flickr8k_text" / "Flickr8k.token.txt", lines)
    write_lists(root / "Flickr8k_text", ("train", "val"))
