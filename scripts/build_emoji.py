"""Build the emoji data set that ships with Diptych: drawings in ten styles, their English names and keywords.

    python -m venv /path/to/venv && /path/to/venv/bin/pip install resvg-py==0.5.0 Pillow==13.0.0
    /path/to/venv/bin/python scripts/build_emoji.py WORK_FOLDER

Downloads the packages below with ``npm pack`` into WORK_FOLDER (or uses those that lie there), checks their digests, renders
every emoji at 64 x 64 on white, and writes gzipped WebDataset shards, licences, attributions and a manifest to
src/diptych/assets/emoji. Two runs give the same bytes. Only freely licensed art is used; see ATTRIBUTION.md, which it writes.
Not part of the package: needs Node.js's npm, resvg-py and Pillow.
"""

from __future__ import annotations

import concurrent.futures
import functools
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import resvg_py
from PIL import Image, ImageChops, ImageFilter

SIDE = 64
QUALITY = 72
HELD_OUT_PERCENT = 8
OUTPUT = Path(__file__).resolve().parent.parent / "src" / "diptych" / "assets" / "emoji"
GROUPS = ("smileys", "people", "component", "animals", "food", "travel", "activities", "objects", "symbols", "flags")


class Package(NamedTuple):
    """One package of the npm registry, and what is said of it in ATTRIBUTION.md."""

    name: str
    version: str
    sha256: str
    style: str
    credit: str
    licence: str

    @property
    def file(self) -> str:
        """The name that npm gives the archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


STYLES = [
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "noto",
        "Noto Emoji by Google (github.com/googlefonts/noto-emoji)",
        "Apache-2.0",
    ),
    Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "noto-v1",
        "Noto Emoji, first design, by Google",
        "Apache-2.0",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "twemoji",
        "Twemoji by Twitter, Inc. and contributors",
        "CC-BY-4.0",
    ),
    Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "fluent",
        "Fluent Emoji (colour) by Microsoft",
        "MIT",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "fluent-flat",
        "Fluent Emoji (flat) by Microsoft",
        "MIT",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "emojitwo",
        "EmojiTwo, from Emoji One 2, by its contributors",
        "CC-BY-4.0",
    ),
    Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
        "fluent-line",
        "Fluent Emoji (high contrast) by Microsoft",
        "MIT",
    ),
    Package(
        "@iconify-json/emojione-monotone",
        "1.2.1",
        "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e",
        "emojitwo-line",
        "EmojiTwo (monotone), from Emoji One 2, by its contributors",
        "CC-BY-4.0",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "twemoji-outlined",
        "Twemoji by Twitter, Inc. and contributors, with black lines drawn by this script",
        "CC-BY-4.0",
    ),
]
UNSEEN = Package(
    "@iconify-json/openmoji",
    "1.2.29",
    "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    "openmoji",
    "OpenMoji by HfG Schwäbisch Gmünd (openmoji.org)",
    "CC-BY-SA-4.0",
)
NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "names",
    "Emojibase by Miles Johnson: names and keywords, from Unicode CLDR",
    "MIT",
)


class Emoji(NamedTuple):
    """One emoji, whatever the style: its code points, its slug in the icon sets, its captions (name first), its group."""

    code: str
    slug: str
    captions: tuple[str, ...]
    group: str

    @property
    def held_out(self) -> bool:
        """Whether no training style may show it: decided by a hash of the code points, so it never changes."""
        return int(hashlib.sha256(self.code.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def unpacked(package: Package, work: Path) -> dict[str, Any]:
    """The JSON files of a package, by name; downloads it if it is not there. Stops if its digest is another."""
    archive = work / package.file
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], cwd=work, check=True)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != package.sha256:
        sys.exit(f"{archive}: not the archive that this script was written for (SHA-256 differs)")
    wanted = ("icons.json", "chars.json", "info.json", "en/data.json")
    with tarfile.open(archive) as tar:
        names = {name: f"package/{name}" for name in wanted if f"package/{name}" in tar.getnames()}
        return {name: json.load(tar.extractfile(member)) for name, member in names.items()}  # type: ignore[arg-type]


def all_emoji(names: list[dict[str, Any]], slugs: dict[str, str]) -> list[Emoji]:
    """Every emoji that has a slug, without the letters that flags are spelt with; in the order of code points."""
    found = []
    for row in names:
        code = "-".join(part for part in row["hexcode"].lower().split("-") if part != "fe0f")
        if code in slugs and "group" in row:
            found.append(Emoji(code, slugs[code], captions(row["label"], row.get("tags", [])), GROUPS[row["group"]]))
    return sorted(found)


def captions(label: str, tags: list[str]) -> tuple[str, ...]:
    """The name, then ways to say it with its keywords; all lower case, no two alike."""
    name = label.lower()
    words = [tag.lower() for tag in tags if tag.lower() not in name]
    ways = [name, f"{name}: {', '.join(words[:3])}" if words else name, f"an emoji of {name.removeprefix('flag: ')}"]
    ways += [" ".join(words[:2])] if len(words) > 1 else []
    return tuple(dict.fromkeys(ways))


def svg_of(icons: dict[str, Any], slug: str) -> str | None:
    """The drawing of a slug as a whole SVG text, following the set's aliases."""
    alias = icons.get("aliases", {}).get(slug)
    if alias is not None and set(alias) == {"parent"}:
        slug = alias["parent"]
    icon = icons["icons"].get(slug)
    if icon is None:
        return None
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{box}">{icon["body"]}</svg>'
    )


def drawn(svg: str) -> Image.Image:
    """The drawing on white, four times as large as it will be, for clean edges."""
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=240, height=240)))).convert(
        "RGBA"
    )
    return Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("RGB")


def outlined(picture: Image.Image) -> Image.Image:
    """The same with a black line wherever two colours meet, as comics are drawn."""
    edges = functools.reduce(ImageChops.lighter, picture.filter(ImageFilter.FIND_EDGES).split())
    lines = edges.point(lambda value: 255 if value > 48 else 0).filter(ImageFilter.MaxFilter(7))
    result = picture.copy()
    result.paste((0, 0, 0), mask=lines)
    return result


def encoded(svg: str, with_outlines: bool) -> bytes:
    """A WebP of 64 x 64 pixels, the drawing inside a white margin of two."""
    large = outlined(drawn(svg)) if with_outlines else drawn(svg)
    whole = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    whole.paste(large.resize((SIDE - 4, SIDE - 4), Image.Resampling.BOX), (2, 2))
    buffer = io.BytesIO()
    whole.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def samples(package: Package, files: dict[str, Any], chosen: list[Emoji]) -> list[tuple[str, Emoji, str, bytes]]:
    """(key, emoji, style, picture) of every chosen emoji that the style draws, by its own name for it or the usual one."""
    own = {code.lower(): slug for code, slug in files.get("chars.json", {}).items()}
    icons = files["icons.json"]
    svgs = [(one, svg_of(icons, own.get(one.code, "")) or svg_of(icons, one.slug)) for one in chosen]
    found = [(one, svg) for one, svg in svgs if svg is not None]
    render = functools.partial(encoded, with_outlines=package.style.endswith("-outlined"))
    with concurrent.futures.ProcessPoolExecutor() as pool:
        pictures = list(pool.map(render, [svg for _, svg in found], chunksize=16))
    return [
        (f"{package.style}-{one.code}", one, package.style, data)
        for (one, _), data in zip(found, pictures, strict=True)
    ]


def write_shard(path: Path, rows: list[tuple[str, Emoji, str, bytes]]) -> dict[str, Any]:
    """Write a gzipped tar with fixed times and owners; return its line of the manifest."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, emoji, style, picture in rows:
            about = {"captions": emoji.captions, "name": emoji.captions[0], "codepoint": emoji.code}
            about |= {"style": style, "group": emoji.group}
            for ending, data in (("webp", picture), ("json", json.dumps(about, ensure_ascii=False).encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=9, mtime=0) as packed,
    ):
        packed.write(raw.getvalue())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": path.name, "samples": len(rows), "bytes": path.stat().st_size, "sha256": digest}


def main(work: Path) -> None:
    """Build everything."""
    work.mkdir(parents=True, exist_ok=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    sets = {package.style: unpacked(package, work) for package in [*STYLES, UNSEEN]}
    slugs: dict[str, str] = {}
    for style in ("twemoji", "fluent-flat", "openmoji", "noto"):  # the last one wins where they differ
        slugs |= {code.lower(): slug for code, slug in sets[style]["chars.json"].items()}
    emoji = all_emoji(unpacked(NAMES, work)["en/data.json"], slugs)
    seen, held_out = [one for one in emoji if not one.held_out], [one for one in emoji if one.held_out]

    lines = []
    for number, package in enumerate(STYLES):
        rows = samples(package, sets[package.style], seen)
        lines.append(
            {"split": "train", "style": package.style} | write_shard(OUTPUT / f"train-{number:06d}.tar.gz", rows)
        )
        print(lines[-1], flush=True)
    for split, package, chosen in (("unseen_style", UNSEEN, seen), ("held_out_names", STYLES[0], held_out)):
        rows = samples(package, sets[package.style], chosen)
        lines.append({"split": split, "style": package.style} | write_shard(OUTPUT / f"{split}-000000.tar.gz", rows))
        print(lines[-1], flush=True)
    sources = [
        {key: value for key, value in item._asdict().items() if key != "credit"} for item in [*STYLES, UNSEEN, NAMES]
    ]
    manifest = {"side": SIDE, "emoji": len(emoji), "shards": lines, "sources": sources}
    (OUTPUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (OUTPUT / "ATTRIBUTION.md").write_text(attribution(), encoding="utf-8")


def attribution() -> str:
    """Who drew what, under which licence, and what was changed."""
    rows = [
        f"| {item.style} | {item.credit} | {item.licence} | {item.name}@{item.version} |"
        for item in [*STYLES, UNSEEN, NAMES]
    ]
    return "\n".join(
        [
            "# Who drew these, and on what terms",
            "",
            "Each drawing was rendered from its set's SVG to 64 x 64 pixels on white and stored as WebP; those of the style",
            "twemoji-outlined were given black lines where colours meet. Nothing else was changed.",
            "The texts of the licences are in LICENSES/. The OpenMoji drawings (the shard unseen_style) and what is derived from",
            "them stay under CC BY-SA 4.0.",
            "",
            "| style | by | licence | taken from the npm package |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build_emoji.py WORK_FOLDER")
    main(Path(sys.argv[1]))
