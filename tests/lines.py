"""Lines of code by folder: `python tests/lines.py [ROOT]`. Blank lines, comments and docstrings are not counted."""

import ast
import io
import sys
import tokenize
from pathlib import Path

LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source):
    """How many lines of a module hold code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def by_folder(root):
    """{folder: (modules, lines of code, lines of its longest module)} of `mlpdata` and `trainer`."""
    folders = {}
    for path in sorted(p for package in ("mlpdata", "trainer") for p in (root / package).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        modules, code, longest = folders.get(path.parent.relative_to(root), (0, 0, 0))
        folders[path.parent.relative_to(root)] = (
            modules + 1, code + code_lines(source), max(longest, source.count("\n")),
        )  # fmt: skip
    return folders


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    rows = by_folder(root)
    print(f"{'folder':24}{'modules':>8}{'code':>8}{'longest':>9}")
    for folder, (modules, code, longest) in rows.items():
        print(f"{folder!s:24}{modules:8}{code:8,}{longest:9}")
    print(f"{'total':24}{sum(r[0] for r in rows.values()):8}{sum(r[1] for r in rows.values()):8,}")
