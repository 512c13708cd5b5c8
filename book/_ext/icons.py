"""Only the icons that a book shows: the theme brings two thousand, as a script of 1.5 MB and as a font."""

import re
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

# An icon of the script: a name, its size, other names, its place in the font, and its outline.
ICON = re.compile(
    r'(?:"([\w-]+)"|([\w$]+)):\[\d+,\d+,\[([^\]]*)\],"([0-9a-f]+)",(?:"[^"]*"|\[[^\]]*\])\],?', re.ASCII
)
NAME = re.compile(r"\bfa-([a-z0-9-]+)")
PRIVATE = re.compile(r"[\ue000-\uf8ff]")  # the characters of such a font
NAMED = re.compile(r"[^{}]*\.fa-[\w-]+:before[^{}]*\{[^{}]*\}|\.fa-[^{}]*\{--fa:[^{}]*\}")
WOFF2 = re.compile(r'url\([^)]*\.woff2\) format\("woff2"\),')


def keep_shown(site: Path) -> None:
    """Reduce script and fonts of Font Awesome to the icons that the pages and the style of a built book name.

    Parameters
    ----------
    site : Path
        The top of the built pages. Without the theme's script nothing is done.
    """
    static = site / "_static"
    script = static / "scripts/fontawesome.js"
    if not script.is_file():
        return
    others = [file for file in static.rglob("*.js") if file != script and "mathjax" not in file.parts]
    names = {
        name for file in [*site.rglob("*.html"), *others] for name in NAME.findall(file.read_text("utf8"))
    }
    codes = set()

    def kept(icon: re.Match[str]) -> str:
        also = set(re.findall(r'"([\w-]+)"', icon[3]))
        if not names & {icon[1] or icon[2], *also}:
            return ""
        codes.add(int(icon[4], 16))
        return icon[0]

    script.write_text(ICON.sub(kept, script.read_text("utf8")), "utf8")
    script.with_suffix(".js.map").unlink(missing_ok=True)
    for sheet in (static / "styles").glob("*.css"):
        text = sheet.read_text("utf8")
        used = NAMED.sub("", text)
        codes |= {ord(sign) for sign in PRIVATE.findall(used)}
        codes |= {int(code, 16) for code in re.findall(r'"\\([ef][0-9a-f]{3})"', used)}
        sheet.write_text(WOFF2.sub("", text), "utf8")
    for font in (static / "vendor/fontawesome/webfonts").glob("*.ttf"):
        font.with_suffix(".woff2").unlink(missing_ok=True)
        reduce(font, codes)


def reduce(font: Path, codes: set[int]) -> None:
    """Keep the given characters of a font, and no others."""
    options = Options(layout_features=[], glyph_names=False, notdef_outline=True)
    with TTFont(font) as whole:
        part = Subsetter(options)
        part.populate(unicodes=codes)
        part.subset(whole)
        whole.save(font)
