"""What the README files of the project say that can be checked: commands, blocks of code, short code in the text."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDERS = ("mbrl", "worldmodel", "policies", "configs", "tests", "runs/reference")
PROGRAMS = ("mbrl", "make", "pip", "python", "torchrun", "pytest")  # whose calls are checked
OTHERS = (
    "source",
    "cd",
    "git",
    "tensorboard",
    "export",
    "mkdir",
    "printf",
)  # of other projects; their calls are not checked
INLINE = "inline"  # the language of a Snippet that is no block
SHELLS = ("bash", "sh", "shell", "console")
_FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.M | re.S)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class Snippet(NamedTuple):
    """A piece of a README: the file, the line at which it begins, its language where it is a block, and its text."""

    readme: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.readme.relative_to(ROOT)}:{self.line}: {self.text.splitlines()[0]}"


def readmes() -> list[Path]:
    """Every page of Markdown in the project's folders, and the first page; run folders are a user's."""
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")]
    return sorted([ROOT / "README.md", *(ROOT / "runs").glob("README.md"), *below])


def blocks(readme: Path) -> Iterator[Snippet]:
    """The fenced blocks."""
    text = readme.read_text()
    for found in _FENCE.finditer(text):
        yield Snippet(readme, text.count("\n", 0, found.start()) + 2, found[1], found[2])


def spans(readme: Path) -> Iterator[Snippet]:
    """The code within the text, once each."""
    text = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), readme.read_text())
    seen = set()
    for found in _SPAN.finditer(text):
        if found[1] not in seen:
            seen.add(found[1])
            yield Snippet(readme, text.count("\n", 0, found.start()) + 1, INLINE, found[1])


def links(readme: Path) -> Iterator[Snippet]:
    """The targets of links and pictures that are files of the project, and headings in them."""
    text = readme.read_text()
    for found in _LINK.finditer(text):
        if not found[1].startswith(("http://", "https://", "mailto:")):
            yield Snippet(readme, text.count("\n", 0, found.start()) + 1, INLINE, found[1])


def leads_somewhere(link: Snippet) -> bool:
    """Whether the file of a link exists, and the heading in it where the link names one."""
    file, _, anchor = link.text.partition("#")
    target = link.readme.parent / file if file else link.readme
    if not anchor:
        return target.exists()
    headings = re.findall(r"^#+ (.*)", _FENCE.sub("", target.read_text()), re.M)
    return anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(readme: Path) -> Iterator[Snippet]:
    """The lines of blocks of commands, and the commands in the text.

    A block without a language holds commands where a line of it calls one of PROGRAMS; else it is a tree or an output.
    """
    for block in blocks(readme):
        if block.language in SHELLS or (not block.language and _holds_calls(block)):
            yield from (line for line in _joined(block) if block.language in SHELLS or _calls(line.text))
    yield from (span for span in spans(readme) if _calls(span.text) and " " in span.text)


def trees(readme: Path) -> Iterator[Snippet]:
    """The blocks without a language and without commands: a file or folder a line, with what is in it."""
    return (block for block in blocks(readme) if not block.language and not _holds_calls(block))


def _holds_calls(block: Snippet) -> bool:
    return any(_calls(line.text) for line in _joined(block))


def _calls(text: str) -> bool:
    return text.startswith(PROGRAMS) and text.split()[0] in PROGRAMS


def _joined(block: Snippet) -> Iterator[Snippet]:
    """The commands of a block, without prompts and comments; lines that end with a backslash go on in the next."""
    begun = ""
    for number, line in enumerate(block.text.splitlines()):
        text = begun + re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ")
        begun = text[:-1] if text.endswith("\\") else ""
        if text and not begun:
            yield block._replace(line=block.line + number, text=text)
