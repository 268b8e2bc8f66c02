"""Labels from `dataset.json`, as StyleGAN and EDM write it beside images: `{"labels": [["00000/img.png", 3], ...]}`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..errors import DataError
from ..texts.classes import ClassTexts
from .splits import labels_by_folder

DATASET_JSON = "dataset.json"  # its name, at the top of a folder or an archive
LARGEST_DATASET_JSON = 2**29  # bytes that are read of it; of a million images, it has some 40 million


def labels_from(content: bytes, names: Sequence[str], where: str) -> ClassTexts | None:
    """Read the label of each of the images `names`; "" if it has none there.

    None if the file is something else by that name, without a list of names and labels. Labels that are no numbers or
    words, such as lists of camera positions, are no classes: then all are "". Raises `DataError` that names the file
    `where` if it is no JSON, or if some of its list are names and labels and others are not.
    """
    try:
        document = json.loads(content)
        if not isinstance(document, dict) or "labels" not in document:
            return None
        pairs = document["labels"] or ()
        if pairs and not (isinstance(pairs, list) and any(isinstance(pair, list) for pair in pairs)):
            return None
        labels = {str(name): label for name, label in pairs}
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where} cannot be read as names and labels ({error}); mend or remove it") from None
    return ClassTexts.of(label_text(labels.get(name)) for name in names)


def label_text(label: object) -> str:
    """Write a class from JSON as text; "" if it is no number or word.

    >>> label_text(3), label_text("cat"), label_text([0.1, 0.2]), label_text(None)
    ('3', 'cat', '', '')
    """
    is_class = isinstance(label, str | int) and not isinstance(label, bool)
    return str(label) if is_class else ""


def class_name(label: Any, names: Sequence[str]) -> str:
    """Write a class by its name, if `label` is the number of one of `names`; Hugging Face writes -1 for none.

    >>> class_name(1, ["cat", "dog"]), class_name(-1, ["cat", "dog"]), class_name(3, []), class_name("cat", [])
    ('dog', '', '3', 'cat')
    """
    label = label.tolist() if hasattr(label, "tolist") else label  # a number of NumPy's or torch's
    if not names or not isinstance(label, int) or isinstance(label, bool):
        return label_text(label)
    return str(names[label]) if 0 <= label < len(names) else "" if label == -1 else label_text(label)


def labels_of(names: Sequence[str], content: bytes | None, where: str) -> tuple[ClassTexts, bool]:
    """Find the class of each of the images `names`: in `dataset.json`, if its `content` is given, or by folder.

    Also says whether it is by folder.
    """
    stated = None if content is None else labels_from(content, names, where)
    return (labels_by_folder(names), True) if stated is None else (stated, False)
