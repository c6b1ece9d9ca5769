"""Build the table of synonyms that ships with Diptych, from WordNet 3.0 as Debian packages it.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb FOLDER
    python scripts/build_synonyms.py FOLDER/usr/share/wordnet [CAPTIONS.jsonl ...]

Words: those of the caption files that occur twice or more, and the most frequent whole words of CLIP's own vocabulary, which was
counted on web captions. For each, the lemmas of every sense of every part of speech, of the base form where the word is inflected
(WordNet's own rules, "morphy"), as NLTK's corpus gives them. Left out are the senses that WordNet itself calls an insult or an
obscenity, and lemmas that mostly mean one: a photo's caption must not become one. Writes wordnet_synonyms.txt.gz and, from the
data files' own first lines, WORDNET_LICENSE.txt into src/diptych/text. Two runs give the same bytes. Not part of the package.
"""

from __future__ import annotations

import collections
import gzip
import json
import re
import sys
from pathlib import Path

from diptych.text._synonyms import STOP_LIST, TABLE, cleaned
from diptych.text.bpe import vocabulary

PARTS = ("noun", "verb", "adj", "adv")
ENDINGS = {
    "noun": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
             ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
WORDS = 12_000  # whole words of CLIP's vocabulary that are tried, most frequent first
INSULTS = re.compile(r";u (06717170|06718862|07124340) |offensive|obscen|ethnic slur|vulgar|disparag|derogat")
"""Usage pointers to disparagement, ethnic slur and obscenity, or the gloss's own words for them."""
MOSTLY = 1 / 3  # share of such senses, in a part of speech, from which a lemma is left out altogether
LICENSE = TABLE.with_name("WORDNET_LICENSE.txt")


class Part:
    """One part of speech: lemma -> offsets of its senses, offset -> lemmas, inflected form -> irregular base forms."""

    def __init__(self, folder: Path, name: str) -> None:
        self.endings = ENDINGS[name]
        self.senses: dict[str, list[str]] = {}
        for line in _data_lines(folder / f"index.{name}"):
            fields = line.split()
            self.senses[fields[0]] = fields[-int(fields[2]) :]
        self.lemmas: dict[str, list[str]] = {}
        self.insults: set[str] = set()
        for line in _data_lines(folder / f"data.{name}"):
            fields = line.split()
            count = int(fields[3], 16)
            if INSULTS.search(line):
                self.insults.add(fields[0])
            # An adjective may say after its name where it stands: beautiful(ip)
            self.lemmas[fields[0]] = [re.sub(r"\(.*\)$", "", name) for name in fields[4 : 4 + 2 * count : 2]]
        self.irregular = {
            form: bases for form, *bases in (line.split() for line in _data_lines(folder / f"{name}.exc"))
        }

    def mostly_insults(self) -> set[str]:
        """The lemmas a third of whose senses, or more, are insults or obscenities."""
        shares = {lemma: len(self.insults & {*senses}) / len(senses) for lemma, senses in self.senses.items()}
        return {lemma for lemma, share in shares.items() if share >= MOSTLY}

    def bases(self, word: str) -> list[str]:
        """The lemmas that a word may be a form of, itself first."""
        if word in self.irregular:
            return self._known([word, *self.irregular[word]])
        shorter = [word[: -len(ending)] + base for ending, base in self.endings if word.endswith(ending)]
        return self._known([word, *shorter])

    def _known(self, forms: list[str]) -> list[str]:
        return [form for form in dict.fromkeys(forms) if form in self.senses]


def _data_lines(path: Path) -> list[str]:
    """The lines of a database file without its license, which is indented."""
    return [line for line in path.read_text(encoding="ascii").splitlines() if line and not line.startswith("  ")]


def synonyms_of(word: str, parts: list[Part], insults: set[str]) -> list[str]:
    """All lemmas of all senses of a word, sorted, without itself and without insults."""
    lemmas = {
        cleaned(lemma)
        for part in parts
        for base in part.bases(word)
        for sense in part.senses[base]
        if sense not in part.insults
        for lemma in part.lemmas[sense]
        if lemma.lower() not in insults
    }
    return sorted(lemmas - {"", word})


def caption_words(files: list[str]) -> list[str]:
    """Words of caption files that occur twice or more, by their number."""
    counts: collections.Counter[str] = collections.Counter()
    for file in files:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            for caption in json.loads(line)["captions"]:
                counts.update(re.findall("[a-z]{2,}", caption.lower()))
    return sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))


def vocabulary_words() -> list[str]:
    """The most frequent whole words of CLIP's vocabulary, most frequent first."""
    whole = (token.removesuffix("</w>") for token in vocabulary().ids if token.endswith("</w>"))
    return [word for word in whole if re.fullmatch("[a-z]{2,}", word)][:WORDS]


def license_text(folder: Path) -> str:
    """The license that stands, with line numbers, at the top of every file of the database."""
    lines = (folder / "data.noun").read_text(encoding="ascii").splitlines()
    license_lines = [re.sub(r"^ +\d+ ?", "", line).rstrip() for line in lines if line.startswith("  ")]
    return "\n".join(license_lines).strip() + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    parts = [Part(folder, name) for name in PARTS]
    insults = set().union(*(part.mostly_insults() for part in parts))
    words = dict.fromkeys([*caption_words(sys.argv[2:]), *vocabulary_words()])
    rows = []
    for word in sorted(set(words) - STOP_LIST):
        synonyms = synonyms_of(word, parts, insults)
        if synonyms:
            rows.append(f"{word}\t{','.join(synonyms)}")
    TABLE.write_bytes(gzip.compress("".join(row + "\n" for row in rows).encode("ascii"), 9, mtime=0))
    LICENSE.write_text(license_text(folder), encoding="ascii")
    print(f"{len(rows):,} of {len(words):,} words have synonyms; {TABLE.name}: {TABLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
