import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from support.spec import tomllib

CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENGLISH = (CHECKOUT / "README.md").read_text(encoding="utf-8")
CHINESE = (CHECKOUT / "README.zh-CN.md").read_text(encoding="utf-8")
TO_CHINESE, TO_ENGLISH = SWITCHES = "[中文](README.zh-CN.md)", "[English](README.md)"

HAN = re.compile("[\u4e00-\u9fff]")
CHINESE_CHARACTER = re.compile(f"{HAN.pattern}|[\u3000-\u303f\uff00-\uffef]")
FIGURE_OR_VERDICT = re.compile(r"\d+(?:[.,]\d+)*|[†%]|accepted|rejected|undetermined")

# Names have no translation: a cell that lists packages stays as it is.
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
]
NAMES = {re.match(r"[\w-]+", line)[0] for line in REQUIREMENTS}


@dataclass(frozen=True)
class Block:
    """A heading, a paragraph, a row of a table, a code block or a comment.

    `kept` is what a translation must leave alone, of a row by cell; `prose` is what it must translate.
    """

    section: str
    text: str
    kept: tuple[object, ...]
    prose: tuple[str, ...] = ()

    def __str__(self):
        return f"{self.section}: {self.text.rstrip()}"


@cache
def blocks(text):
    found, section = [], ""
    for node in SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(text)).walk(include_self=False):
        kind = (node.type, node.tag, node.parent.type)
        source = "\n".join(text.splitlines()[slice(*node.map)]) if node.map else ""
        if node.type == "heading":
            section = source
        if node.type in {"heading", "paragraph", "tr"} and source not in SWITCHES:
            inlines = [cell.children[0] for cell in node.children] if node.type == "tr" else node.children
            kept = (kind, *map(kept_words, inlines))
            found.append(Block(section, source, kept, tuple(line for inline in inlines for line in prose(inline))))
        elif node.type in {"fence", "code_block", "html_block"}:
            found.append(Block(section, source, (kind, node.info, *node.content.splitlines())))
    return found


def kept_words(inline):
    """Code, figures, verdicts, link targets and emphasis in any order, since sentences are built differently."""
    words = []
    for node in inline.walk():
        if node.type in {"code_inline", "html_inline"}:
            words.append(f"`{node.content}`")
        elif node.type == "text":
            words += FIGURE_OR_VERDICT.findall(node.content)
        elif node.type == "link":
            words.append(f"({node.attrs['href']})")
        elif node.type in {"em", "strong"}:
            words.append(f"<{node.tag}>")
    return tuple(sorted(words))


def prose(inline):
    """Lines, each a sentence or more, without code and file names."""
    pieces = []
    for node in inline.walk():
        is_file_name = node.parent.type == "link" and node.parent.attrs["href"] == node.content
        if node.type == "softbreak":
            pieces.append("\n")
        elif node.type == "text" and not is_file_name:
            pieces.append(node.content)
    return "".join(pieces).split("\n")


def differences(english, chinese):
    """What only one of the texts has, in the order of the English one."""
    ours, theirs = blocks(english), blocks(chinese)
    matcher = SequenceMatcher(None, [block.kept for block in ours], [block.kept for block in theirs], autojunk=False)
    changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
    return [told(ours[first:last], theirs[start:end]) for _, first, last, start, end in changes]


def told(ours, theirs):
    lines = [f"README.md       {block}" for block in ours] + [f"README.zh-CN.md {block}" for block in theirs]
    if len(ours) == len(theirs) == 1:
        left, right = flat(ours[0].kept), flat(theirs[0].kept)
        lines.append(f"only in README.md: {surplus(left, right)}; only in README.zh-CN.md: {surplus(right, left)}")
    return "\n".join(lines)


def flat(kept):
    return [word for part in kept for word in ([part] if isinstance(part, str) else part)]


def surplus(words, others):
    left = list(words)
    for word in others:
        if word in left:
            left.remove(word)
    return ", ".join(left) or "nothing"


def untranslated(chinese):
    found = [(block, line) for block in blocks(chinese) for line in block.prose]
    return [
        f"{block.section}: {line}" for block, line in found if re.search(r"[^\W\d_]", line) and not is_chinese(line)
    ]


def is_chinese(line):
    return bool(HAN.search(line)) or set(line.split(", ")) <= NAMES


# --- the two files


def test_the_chinese_readme_has_the_structure_code_and_figures_of_the_english_one():
    found = differences(ENGLISH, CHINESE)

    assert not found, "\n\n".join(["README.md and README.zh-CN.md differ", *found])


def test_nothing_is_left_untranslated():
    found = untranslated(CHINESE)

    assert not found, "\n".join(["README.zh-CN.md has lines or cells without Chinese", *found])


def test_the_english_readme_is_english():
    found = [line for line in ENGLISH.replace(TO_CHINESE, "", 1).splitlines() if CHINESE_CHARACTER.search(line)]

    assert not found


@pytest.mark.parametrize(("text", "switch"), [(ENGLISH, TO_CHINESE), (CHINESE, TO_ENGLISH)])
def test_each_language_leads_to_the_other_below_the_title(text, switch):
    title, blank, line, *_ = text.splitlines()

    assert title.startswith("# ")
    assert (blank, line) == ("", switch)


# --- their bad twins


def changed(old, new):
    """The Chinese file with one thing wrong; `old` is a pattern that must be there."""
    text, count = re.subn(old, new, CHINESE, count=1, flags=re.M)
    assert count == 1
    return text


TWINS = {
    "a row is missing": (r"^\| `no-data` .*\n", "", r"^README\.md       ## 三种结论: \| `no-data` \|[^\n]*$"),
    "a row is there twice": (
        r"^\| `no-data` .*\n",
        r"\g<0>\g<0>",
        r"^README\.zh-CN\.md ## 三种结论: \| `no-data` \|[^\n]*$",
    ),
    "cells are swapped": (
        r"^(\| `--chip` )(.*)(\| `--chip.*\|)$",
        r"\1\3\2|",
        r"^README\.md       ## 选项: \| `--chip` \|",
    ),
    "a figure": (r"33\.4 \|$", "33.5 |", r"only in README\.md: 33\.4; only in README\.zh-CN\.md: 33\.5$"),
    "a sign": (r"^(\| `stage_tensors`) †", r"\1", r"only in README\.md: †; only in README\.zh-CN\.md: nothing$"),
    "a verdict": (
        r"判为 rejected",
        "判为 undetermined",
        r"only in README\.md: rejected; only in README\.zh-CN\.md: undetermined$",
    ),
    "an option": (r"`--om` ", "`--onnx` ", r"only in README\.md: `--om`; only in README\.zh-CN\.md: `--onnx`$"),
    "a link": (
        r"\(LICENSE\)",
        "(LICENCE)",
        r"only in README\.md: \(LICENSE\); only in README\.zh-CN\.md: \(LICENCE\)$",
    ),
    "emphasis": (r"\*\*accepted\*\*", "accepted", r"only in README\.md: <strong>; "),
    "a command": (
        r"^make test$",
        "make tests",
        r"only in README\.md: make test; only in README\.zh-CN\.md: make tests$",
    ),
    "the language of a block": (r"^```toml$", "```text", r"only in README\.md: toml; only in README\.zh-CN\.md: text$"),
    "a comment": (
        r"^<!-- needs: T4 -->$",
        "<!-- needs: T5 -->",
        r"^README\.md       ## 在 T4 上运行: <!-- needs: T4 -->\n",
    ),
    "the level of a heading": (
        r"^### (?=豁免)",
        "## ",
        r"^README\.md       ### 豁免: ### 豁免\nREADME\.zh-CN\.md ## 豁免: ## 豁免\n",
    ),
    "a section in the middle": (
        r"(?s)^### 豁免.*?(?=^## )",
        "",
        r"^README\.md       ### 豁免: ### 豁免\nREADME\.md       ### 豁免: 若",
    ),
    "the last section": (r"(?s)^## 许可证.*\Z", "", r"^README\.md       ## 许可证: ## 许可证\n"),
}


@pytest.mark.parametrize(("old", "new", "message"), TWINS.values(), ids=TWINS)
def test_a_difference_is_found_and_told_with_its_section(old, new, message):
    # Against itself, so that a difference of the two files fails the one test that is about them.
    (found,) = differences(CHINESE, changed(old, new))

    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (r"^## 三种结论$", "## The three verdicts", "## The three verdicts: The three verdicts"),
        (r"^整体结论.*$", "The worst clause decides.", "## 三种结论: The worst clause decides."),
        (r"^- 退出码.*$", "- Only 0 is an acceptance.", "## 在 CI 中使用: Only 0 is an acceptance."),
        (r"(?<=^\| `pycocotools` \| ).*(?= \|$)", "The norm for AP", "## 软件包: The norm for AP"),
        (r"(?<=^\| `cuda` \| )\S+", "onnxruntime, too", "## 软件包: onnxruntime, too"),
    ],
)
def test_what_is_left_in_english_is_found(old, new, told):
    assert untranslated(changed(old, new)) == [told]


def test_a_text_without_blocks_equals_no_other():
    assert differences(ENGLISH, "")
    assert differences("", CHINESE)
