"""What was done to a store's images before they were encoded, and has to be done to all that are encoded into it."""

from __future__ import annotations

from ..data.preprocessing import Preprocessing
from ..data.sources import ImageSource
from ..storage.location import Location, LocationLike, location_of
from ..store.group_file import read_metadata
from ..store.metadata import StoreMetadata


def stored_preprocessing(store_path: LocationLike) -> Preprocessing:
    """Read it from the store at `store_path`, which may be damaged; raises `StoreError` if its metadata are.

    Raises `DataError` if there are options that are not known here.
    """
    path = location_of(store_path)
    return preprocessing_of(read_metadata(path), path)


def preprocessing_of(metadata: StoreMetadata, path: Location) -> Preprocessing:
    """Read it from the metadata of the store at `path`; raises `DataError` as `stored_preprocessing`."""
    return Preprocessing.from_dict(metadata.source.preprocessing, str(path))


def check_preprocessing(images: ImageSource, metadata: StoreMetadata, path: Location) -> None:
    """Raise `DataError` if other things are done to `images` than to those of the store at `path`."""
    preprocessing_of(metadata, path).check_same(images.preprocessing, f"{path} was made with")
