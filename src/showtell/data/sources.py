"""The data sources named in ``conf/data/*.yaml``; each returns `CaptionData`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from showtell.data.flickr8k import read_flickr8k
from showtell.data.table import read_table
from showtell.errors import UserError
from showtell.types import CaptionData


def flickr8k(*, root: str, split_seed: int, skip_rejected: bool) -> CaptionData:
    """Read Flickr8k in any of its layouts (also Karpathy's JSON of Flickr30k and COCO).

    Args:
        root: the folder of the data set; subfolders are searched.
        split_seed: seed for drawing the splits by image if the data set has none.
        skip_rejected: skip faulty items instead of raising an error.

    Raises:
        UserError: nothing to read, or faulty items without ``skip_rejected``.
    """
    data = read_flickr8k(Path(root).expanduser(), split_seed=split_seed)
    return _checked(data, skip_rejected, doctor=f"showtell doctor data.root={root}")


def table(*, file: str, images: str | None, split_seed: int, skip_rejected: bool) -> CaptionData:
    """Read a folder of images captioned by a CSV or JSON Lines file ``image,caption[,split]``.

    Args:
        file: the table.
        images: the folder that image paths are relative to; None or empty for the table's.
        split_seed: seed for drawing the splits by image if the table has none.
        skip_rejected: skip faulty items instead of raising an error.

    Raises:
        UserError: nothing to read, or faulty items without ``skip_rejected``.
    """
    path = Path(file).expanduser()
    folder = Path(images).expanduser() if images else path.parent
    data = read_table(path, folder, split_seed=split_seed)
    where = [f"data.file={file}", *([f"data.images={images}"] if images else [])]
    doctor = shlex.join(["showtell", "doctor", "data=table", *where])
    return _checked(data, skip_rejected, doctor=doctor)


def _checked(data: CaptionData, skip_rejected: bool, *, doctor: str) -> CaptionData:
    """Raise an error for faulty items or note how many are skipped; harmless ones are ignored."""
    faults = [rejection for rejection in data.rejected if not rejection.harmless]
    if not faults:
        return data
    if skip_rejected:
        note = f"faulty items skipped: {len(faults)}"
        return replace(data, notes=(*data.notes, note))
    first = faults[0]
    count = f"{len(faults)} items" if len(faults) > 1 else "1 item"
    raise UserError(
        f"{count} of {data.name} cannot be used, the first at {first.where}: "
        f"{first.item or 'the line'}: {first.reason}; mend it, see the whole list with "
        f"`{doctor}`, or go on without with `data.skip_rejected=true`"
    )
